"""Thoughts that only repeat their document: good to learn to write by, and bad to learn to search by."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from o1_retriever.ranking.bm25 import content_words
from o1_retriever_training.ledger import writing_whole
from o1_retriever_training.rows import TrainingRow, read_rows


def share_copied(thought: str, documents: list[str]) -> float:
    """The share of a thought's different content words (stems) that stand in one of the documents, 0 to 1.

    The document that has most of them counts; 0 for a thought without a content word.
    """
    words, *others = [set(row) for row in content_words([thought, *documents])]
    if not words:
        return 0.0
    return max((len(words & other) / len(words) for other in others), default=0.0)


def split_copies(row: TrainingRow, most: float) -> list[TrainingRow]:
    """The row; or, where its thought copies more than `most` of a positive, one for each of the losses.

    The first then trains the vectors without a thought, the second the writing of the thought alone.
    """
    if not row.thought or not row.pos or share_copied(row.thought, row.pos) <= most:
        return [row]
    bare = row.model_copy(update={"thought": None, "all_thought": [], "key": None})
    written = row.model_copy(
        update={"pos": [], "neg": [], "pos_scores": None, "neg_scores": None, "key": None}
    )
    return [bare, written]


def separate_copies(source: str | Path, out: str | Path, *, most: float = 0.6) -> dict[str, int]:
    """Write the rows of `source` with copying thoughts kept from the thinking vector; return the counts."""
    counts = {"rows": 0, "copies": 0}

    def lines() -> Iterator[str]:
        for row in read_rows(source):
            parts = split_copies(row, most)
            counts["rows"] += 1
            counts["copies"] += len(parts) > 1
            yield from (part.line() for part in parts)

    with writing_whole(Path(out)) as file:
        file.writelines(lines())
    return counts
