"""What reports are made of: tables, HTML, counted nouns, and lists of problems."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import ClassVar

import pytest

from o1_retriever.errors import CollectionError
from o1_retriever.reporting import (
    SHOWN,
    Problems,
    counted,
    element,
    escaped,
    html_list,
    html_page,
    html_table,
    markdown_table,
    progress,
)


class Doubts(Problems):
    remedies: ClassVar = {"not JSON": "the line is left out", "empty": "left out"}
    error = CollectionError


def test_one_of_a_thing_is_not_several() -> None:
    assert [counted(count, "thought") for count in (0, 1, 2)] == ["0 thoughts", "1 thought", "2 thoughts"]
    assert counted(1, "query", "queries") == "1 query"
    assert counted(1200, "query", "queries") == "1,200 queries"


def test_a_markdown_table_has_numbers_to_the_right_and_keeps_bars_inside_their_cells() -> None:
    table = markdown_table(["system", "nDCG@10", "note"], [["a|b", "0.5", ""]], texts=(0, 2))
    assert table.splitlines() == ["| system | nDCG@10 | note |", "| --- | ---: | --- |", "| a\\|b | 0.5 |  |"]


def test_html_shows_whatever_text_it_is_given_and_stays_well_formed() -> None:
    bad = "<script>alert('&')</script>\""
    parts = [html_table([[bad, "1"]], heads=["a<b", "c"]), html_list([element("b", escaped(bad))])]
    page = html_page(bad, [element("div", *parts[:1], class_="row", title=bad), parts[1]], style="b{}")
    assert "<script>" not in page
    tree = ET.fromstring(page.removeprefix("<!doctype html>\n").replace('<meta charset="utf-8">', ""))
    assert tree.findtext("head/title") == bad
    division = tree.find("body/div")
    assert division is not None
    assert division.attrib == {"class": "row", "title": bad}
    assert [cell.text for cell in division.iter("td")] == [bad, "1"]
    assert [cell.text for cell in division.iter("th")] == ["a<b", "c"]
    assert tree.findtext("body/ul/li/b") == bad


def test_problems_are_counted_by_kind_with_their_first_places() -> None:
    problems = Doubts("rows.jsonl")
    assert not problems
    assert str(problems) == "rows.jsonl: no problems."
    problems.raise_if_any()
    problems.add("empty", "line 1")
    assert str(problems) == "rows.jsonl: 1 kind of problems\n  empty: 1 (line 1); left out"
    for number in range(SHOWN + 1):
        problems.add("not JSON", f"line {number + 2}", "expected a value")
    assert problems.kinds == ("empty", "not JSON")
    assert len(problems) == SHOWN + 2
    _, last = problems
    assert (last.count, len(last.places), last.remedy) == (SHOWN + 1, SHOWN, "the line is left out")
    assert "rows.jsonl: 2 kinds of problems\n" in str(problems)
    assert f"not JSON: {SHOWN + 1} (line 2: expected a value; " in str(problems)
    assert f"line {SHOWN + 2}:" not in str(problems)
    with pytest.raises(CollectionError, match="2 kinds of problems"):
        problems.raise_if_any()
    with pytest.raises(ValueError, match="Unknown kind of problem 'else'"):
        problems.add("else", "line 1")


def test_a_strict_reading_ends_at_the_first_problem() -> None:
    problems = Doubts("rows.jsonl", strict=True)
    with pytest.raises(CollectionError, match=r"rows\.jsonl, line 3: not JSON: no brace\.") as caught:
        problems.add("not JSON", "line 3", "no brace")
    assert "--strict" in (caught.value.hint or "")


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
