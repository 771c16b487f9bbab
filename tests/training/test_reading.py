"""Rows come out the same whatever they are kept in, and damage is named."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from o1_retriever_training.rows import DataError, RowProblems, TrainingRow, count_rows, read_rows

ROWS = [
    {"query": "Was ist Wärme?", "pos": ["Bewegung\u2028kleiner Teilchen"], "type": "question", "answer": "x"},
    {"query": "two\nlines", "pos": ["a", "b"], "all_thought": ["", None, "kept"], "thought": " "},
    *({"query": f"question {number}", "pos": [f"answer {number}" * 9]} for number in range(3000)),
]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def as_plain(folder: Path) -> str:
    path = folder / "rows.jsonl"
    path.write_text(LINES.rstrip("\n"))
    return str(path)


def as_wide(folder: Path) -> str:
    path = folder / "rows.ndjson"
    path.write_text(LINES, encoding="utf-16")
    return str(path)


def as_gzip(folder: Path) -> str:
    path = folder / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(LINES.encode()))
    return str(path)


def as_zstandard(folder: Path) -> str:
    """Two frames, as appending and parallel compression leave them."""
    path, data, half = folder / "rows.jsonl.zst", LINES.encode(), len(LINES) // 2
    packer = zstandard.ZstdCompressor(write_checksum=True)
    path.write_bytes(packer.compress(data[:half]) + packer.compress(data[half:]))
    return str(path)


def as_parquet(folder: Path) -> str:
    path = folder / "rows.parquet"
    names = ["query", "pos", "type", "answer", "all_thought", "thought"]
    table = pyarrow.Table.from_pylist([{name: row.get(name) for name in names} for row in ROWS])
    pyarrow.parquet.write_table(table, path, row_group_size=500)
    return str(path)


def as_hub(folder: Path) -> str:
    (folder / "set").mkdir()
    (folder / "set" / "train.jsonl").write_text(LINES)
    return f"hub:{folder / 'set'}:train"


KEPT = [as_plain, as_wide, as_gzip, as_zstandard, as_parquet, as_hub]


def read(source: str) -> list[TrainingRow]:
    problems = RowProblems(source)
    rows = list(read_rows(source, problems))
    assert not problems, str(problems)
    return rows


@pytest.mark.parametrize("keep", KEPT, ids=lambda keep: keep.__name__)
def test_rows_are_the_same_in_every_format(keep, tmp_path: Path) -> None:
    source = keep(tmp_path)
    expected = [TrainingRow.model_validate(row) for row in ROWS]
    found = read(source)
    assert [row.identity for row in found] == [row.identity for row in expected]
    assert found[1].all_thought == [None, None, "kept"]
    assert found[1].thought is None
    assert found[0].model_extra == {"answer": "x"}
    count = count_rows(source, show=True)
    assert count is None if keep is as_hub else len(ROWS) <= count <= len(ROWS) + 1
    assert count_rows(source, show=False) is None


@pytest.mark.parametrize("keep", [as_gzip, as_zstandard, as_parquet], ids=lambda keep: keep.__name__)
@pytest.mark.parametrize("harm", ["cut", "spoilt", "spoilt at once", "another kind"])
def test_damage_is_an_error_never_fewer_rows(keep, harm: str, tmp_path: Path) -> None:
    path = Path(keep(tmp_path))
    data = path.read_bytes()
    middle = len(data) // 2
    harmed = {
        "cut": data[:middle],
        "spoilt": data[:middle]
        + bytes(byte ^ 0x5A for byte in data[middle : middle + 40])
        + data[middle + 40 :],
        "spoilt at once": data[:12] + b"\xff" * 40 + data[52:],
        "another kind": b"plain text",
    }
    path.write_bytes(harmed[harm])
    with pytest.raises(DataError, match=path.name):
        read(str(path))
    if keep is not as_parquet:
        with pytest.raises(DataError, match=path.name):
            count_rows(path, show=True)


def test_another_suffix_and_a_missing_file_say_what_to_pass(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b")
    for name in ("rows.csv", "nothing.jsonl", "nothing.parquet"):
        with pytest.raises(DataError, match=r"parquet, or hub:OWNER/NAME"):
            read(str(tmp_path / name))


@pytest.mark.parametrize("keep", [as_plain, as_gzip, as_zstandard], ids=lambda keep: keep.__name__)
def test_reading_holds_one_row_at_a_time(keep, tmp_path: Path) -> None:
    source = keep(tmp_path)
    tracemalloc.start()
    try:
        list(zip(read_rows(source, RowProblems(source)), range(10), strict=False))  # imports, first blocks
        tracemalloc.reset_peak()
        start = tracemalloc.get_traced_memory()[0]
        assert sum(1 for _ in read_rows(source, RowProblems(source))) == len(ROWS)
        peak = tracemalloc.get_traced_memory()[1] - start
    finally:
        tracemalloc.stop()
    assert peak < 3 * (1 << 20)
    assert len(LINES) > 200_000
