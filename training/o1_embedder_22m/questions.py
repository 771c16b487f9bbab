"""The rows of stage 3: questions with thoughts to write and to search with, and documents to stay true to.

```
python training/o1_embedder_22m/questions.py voted.jsonl expert.jsonl --documents rows.jsonl --out WORK
```

Writes `learned.jsonl`, thoughts that are worth writing (elected, or an expert's); `searched.jsonl`, the other
ones of the model, which the thinking vector alone learns from; and `documents.jsonl`. A thought that repeats
its passage is good to write; searched with, it would teach copying, so that its row has no positive.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sources import read_jsonl, write_jsonl

from o1_retriever_training.improve import share_copied

MOST_COPIED = 0.6  # share of a thought's content words that may stand in one of its positives


def question_rows(rows: Iterable[dict[str, Any]]) -> Iterator[tuple[bool, dict[str, Any]]]:
    """(whether its thought is worth writing, a row) for every usable thought."""
    for row in rows:
        elected = row.get("thought")
        for thought in dict.fromkeys([*(row.get("all_thought") or []), *([elected] if elected else [])]):
            copied = bool(row["pos"]) and share_copied(thought, row["pos"]) > MOST_COPIED
            positives = [] if copied else row["pos"]
            if thought and (positives or thought == elected):
                written = thought == elected or "votes" not in row
                yield written, {"query": row["query"], "thought": thought, "pos": positives}


def main() -> None:
    """Write the three files."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("rows", type=Path, nargs="+", help="voted rows with their thoughts, JSON lines")
    parser.add_argument("--documents", type=Path, required=True, help="rows that data.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    found = list(question_rows(row for path in args.rows for row in read_jsonl(path)))
    for name, kind in (("learned", True), ("searched", False)):
        count = write_jsonl(args.out / f"{name}.jsonl", (row for written, row in found if written is kind))
        print(f"{name}: {count:,} thoughts")
    documents = (row for row in read_jsonl(args.documents) if row.get("kind") == "document")
    print(f"documents: {write_jsonl(args.out / 'documents.jsonl', documents):,}")


if __name__ == "__main__":
    main()
