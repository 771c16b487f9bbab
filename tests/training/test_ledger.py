"""The output file: nothing lost, nothing twice, whatever happens to the process that writes it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o1_retriever_training.ledger import Ledger, LedgerError
from o1_retriever_training.rows import TrainingRow

RECIPE = {"seed": 1}


def row(number: int, text: str = "some text") -> TrainingRow:
    return TrainingRow(query=f"question {number}", pos=[text])


def write(path: Path, numbers, *, finish: bool = True, text: str = "some text") -> None:
    with Ledger(path, stage="synthesize", recipe=RECIPE) as ledger:
        for number in numbers:
            one = row(number, text)
            ledger.append(one.identity, one.line())
            ledger.index.place(one.identity, number)
        if finish:
            ledger.finish({})


def queries(path: Path) -> list[str]:
    return [json.loads(line)["query"] for line in path.read_text().splitlines()]


def test_rows_are_written_once_and_end_up_in_the_order_of_the_input(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    write(out, [2, 0, 2, 1])
    assert queries(out) == ["question 0", "question 1", "question 2"]
    manifest = json.loads((tmp_path / "out.jsonl.manifest.json").read_text())
    assert manifest["finished"]
    assert manifest["rows"] == 3


@settings(max_examples=30)
@given(text=st.text(min_size=1).filter(lambda text: text.strip()), cut=st.integers(min_value=0))
def test_a_line_cut_anywhere_is_taken_off_and_written_again(tmp_path_factory, text: str, cut: int) -> None:
    out = tmp_path_factory.mktemp("torn") / "out.jsonl"
    write(out, range(3), text=text)
    whole = out.read_bytes()
    out.write_bytes(whole[: cut % len(whole)])
    with Ledger(out, stage="synthesize", recipe=RECIPE) as ledger:
        assert b"".join(ledger._lines()) == out.read_bytes()
        assert out.read_bytes().count(b"\n") == len(ledger)
    write(out, range(3), text=text)
    assert out.read_bytes() == whole


def test_a_line_of_another_hand_is_refused_with_its_number(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    write(out, range(2))
    lines = out.read_text().splitlines(keepends=True)
    out.write_text(lines[0] + "something else\n" + lines[1])
    with pytest.raises(LedgerError, match=r"line 2, is none that this command"):
        write(out, [5])


def test_another_recipe_is_refused_with_the_way_out(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    write(out, range(2))
    with (
        pytest.raises(LedgerError, match="seed was 1, is 2") as caught,
        Ledger(out, stage="synthesize", recipe={"seed": 2}),
    ):
        pass
    assert "another --out" in str(caught.value)
    with (
        pytest.raises(LedgerError, match="stage 'synthesize', not 'vote'"),
        Ledger(out, stage="vote", recipe=RECIPE),
    ):
        pass


def test_a_file_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("my diary\n")
    with pytest.raises(LedgerError, match="has no manifest"):
        write(out, [1])
    assert out.read_text() == "my diary\n"


def test_two_writers_do_not_share_a_file(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with (
        Ledger(out, stage="synthesize", recipe=RECIPE),
        pytest.raises(LedgerError, match="Another process"),
    ):
        write(out, [1])
    write(out, [1])


FULL = """
import resource, sys
sys.path.insert(0, "training")
from o1_retriever_training.ledger import Ledger
from o1_retriever_training.ledger import LedgerError
from o1_retriever_training.rows import TrainingRow
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    with Ledger(sys.argv[1], stage="synthesize", recipe={"seed": 1}) as ledger:
        for number in range(200):
            row = TrainingRow(query=f"question {number}", pos=["some text"])
            ledger.append(row.identity, row.line())
except LedgerError as error:
    print(error)
"""


def test_a_full_disk_stops_cleanly_and_the_rest_follows(tmp_path: Path, root: Path) -> None:
    out = tmp_path / "out.jsonl"
    said = subprocess.run(
        [sys.executable, "-c", FULL, out, "10000"], cwd=root, capture_output=True, text=True, check=True
    ).stdout
    assert "cannot be written" in said
    assert "goes on where it was" in said
    assert 0 < out.stat().st_size <= 10_000
    assert out.read_bytes().endswith(b"\n")
    write(out, range(200))
    assert queries(out) == [f"question {number}" for number in range(200)]


@pytest.mark.parametrize("damage", [b"\0", b"}"])
def test_a_damaged_line_is_named_and_a_changed_file_is_told(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out.jsonl"
    write(out, range(3))
    write(out, range(4), finish=False)  # a longer input, and a kill before its end
    write(out, range(4))
    assert not caplog.records
    raw = bytearray(out.read_bytes())
    place = raw.index(b'"', 40)
    raw[place : place + 1] = damage
    out.write_bytes(raw)
    with Ledger(out, stage="synthesize", recipe=RECIPE) as ledger:
        assert "no longer as it was when it was finished" in caplog.text
        with pytest.raises(LedgerError, match=r"has a damaged line.*Remove that line"):
            list(ledger.rows())
        with pytest.raises(LedgerError, match="has a damaged line"):
            ledger.forget(lambda row: True)
