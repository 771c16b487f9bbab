"""The progress bar on a narrow terminal."""

from __future__ import annotations

import pytest

from o1_retriever.reporting import progress


def test_a_long_note_leaves_room_for_the_count_and_the_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with progress("Training", 4, show=True) as advance:
        advance(1, "short")
        advance(1, "loss 1.816 (contrastive 0.767, thoughts 6.013), gradient 14.36, 192 tokens/s")
    said = capsys.readouterr().err.splitlines()
    [bar] = [line for line in said if line.startswith("Training")]
    assert "2/4" in bar
    assert bar.count(":") >= 4
    assert "short" not in bar
    assert any("thoughts 6.013), gradient 14.36" in line for line in said)


def test_a_short_note_stands_beside_the_rate(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with progress("Searching", 2, show=True) as advance:
        advance(2, "3 failed")
    assert "3 failed" in capsys.readouterr().err.splitlines()[0]


def test_a_finished_bar_is_wiped_from_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with progress("Training", 2, show=True) as advance:
        advance(2)
    assert capsys.readouterr().err.endswith("\x1b[1A\x1b[2K")


def test_without_a_terminal_nothing_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("Training", 4, show=None) as advance:
        advance(1, "note")
    assert capsys.readouterr() == ("", "")
