"""What earlier versions wrote opens and is as it was; what a later one wrote is refused with what to type."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.reliability.upgrade import EARLIER, cache_fault, index_fault, newer_fault, unpack

PACKED = sorted(EARLIER.glob("*.tar.xz"))


@pytest.mark.parametrize("packed", PACKED, ids=lambda path: path.name)
def test_an_index_and_a_cache_of_an_earlier_version_are_as_they_were(packed: Path, tmp_path: Path) -> None:
    unpack(packed, tmp_path)
    assert index_fault(tmp_path) == ""
    assert cache_fault(tmp_path) == ""
    assert newer_fault(tmp_path) == ""


def test_there_are_stores_of_every_format() -> None:
    assert [path.name.split("-")[0] for path in PACKED] == ["format1", "format1", "format2"]
