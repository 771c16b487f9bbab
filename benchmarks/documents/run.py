"""Read small files of many kinds, and write the share of those that are read rightly.

Type: python -m benchmarks.documents.run
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.documents.cases import cases
from benchmarks.record import RESULTS, Figure, record

OUT = RESULTS / "documents.jsonl"


def main() -> None:
    """Read every case, print what is wrong, and write the figures."""
    with tempfile.TemporaryDirectory() as folder:
        found = {case.name: case.wrong(Path(folder)) for case in cases()}
    for name, wrong in found.items():
        if wrong:
            print(f"{name}: {wrong}")
    share = sum(not wrong for wrong in found.values()) / len(found)
    print(f"{len(found)} files, {share:.3f} of them read rightly")
    record(
        OUT,
        [
            Figure(name="documents/files", value=len(found), unit="files"),
            Figure(name="documents/files_read_rightly_share", value=share, unit="share"),
        ],
    )


if __name__ == "__main__":
    main()
