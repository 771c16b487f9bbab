"""The demo's own collection of passages, questions and judgments, and how well a ranking meets them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from o1_retriever.cli.models import CLONE
from o1_retriever.errors import DocumentError
from o1_retriever.extras import require

if TYPE_CHECKING:
    from o1_retriever.documents import Document
    from o1_retriever.retriever import SearchResult

FOLDER = Path("cookbook", "data", "everyday")
SPLITS = ("dev", "test")
ANSWER = 2  # the judgment of a passage that answers the question; 1 only helps


@dataclass(frozen=True, kw_only=True)
class Collection:
    """Passages, questions by id, and for each split the judged passages of its questions."""

    documents: list[Document]
    questions: dict[str, str]
    judgments: dict[str, dict[str, dict[str, int]]]

    def answers(self, question: str) -> set[str]:
        """The passages that answer a question."""
        judged = next(split[question] for split in self.judgments.values() if question in split)
        return {passage for passage, score in judged.items() if score >= ANSWER}


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Means over the questions of a split, and nDCG@10 of each question."""

    success_at_1: float
    ndcg_at_10: float
    by_question: dict[str, float]


def find_everyday() -> Path:
    """The collection's folder, here or in the clone that this package lies in. Raises `DocumentError`."""
    for folder in (FOLDER, CLONE / FOLDER):
        if (folder / "corpus.jsonl").is_file():
            return folder
    raise DocumentError(
        str(FOLDER),
        "the demo's documents are not here; expected a clone of the repository, of which they are a part.",
        hint="Type make demo in a clone, or o1-retriever index FOLDER for documents of your own",
    )


def read_collection(folder: Path) -> Collection:
    """Read a collection in BEIR's layout. Raises `DocumentError` for a file that cannot be used."""
    from o1_retriever.documents import Document

    documents = [
        Document(
            id=row["_id"],
            text=f"{row['title']} {row['text']}",
            metadata={"title": row["title"], "source": row["_id"]},
        )
        for row in _rows(folder / "corpus.jsonl", "_id", "title", "text")
    ]
    questions = {row["_id"]: row["text"] for row in _rows(folder / "queries.jsonl", "_id", "text")}
    judgments = {split: _judgments(folder / "qrels" / f"{split}.tsv") for split in SPLITS}
    unknown = {question for split in judgments.values() for question in split} - set(questions)
    if unknown:
        raise DocumentError(
            str(folder),
            f"{min(unknown)!r} is judged; expected only questions of queries.jsonl.",
        )
    return Collection(documents=documents, questions=questions, judgments=judgments)


def _rows(file: Path, *names: str) -> list[dict[str, Any]]:
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        for row in rows:
            if not all(isinstance(row[name], str) for name in names):
                raise ValueError(f"a row {row!r:.60}")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DocumentError(str(file), f"it cannot be used ({error}); expected {', '.join(names)}.") from None
    return rows


def _judgments(file: Path) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    try:
        for line in file.read_text(encoding="utf-8").splitlines()[1:]:
            question, passage, score = line.split("\t")
            found.setdefault(question, {})[passage] = int(score)
    except (OSError, ValueError) as error:
        raise DocumentError(
            str(file), f"it cannot be used ({error}); expected query, passage, score."
        ) from None
    return found


def require_measures() -> Any:
    """The package that computes the measures. Raises `MissingExtraError`."""
    return require("ir_measures", extra="eval", purpose="The demo's table")


def measure(judgments: Mapping[str, Mapping[str, int]], found: Mapping[str, SearchResult]) -> Quality:
    """How well what was found for the judged questions meets the judgments."""
    package = require_measures()
    first, ndcg = package.Success(rel=ANSWER) @ 1, package.nDCG @ 10
    run = {question: {hit.id: hit.score for hit in found[question]} for question in judgments}
    values = list(package.iter_calc([first, ndcg], judgments, run))
    by_question = {value.query_id: value.value for value in values if value.measure == ndcg}
    return Quality(
        success_at_1=_mean([value.value for value in values if value.measure == first]),
        ndcg_at_10=_mean(list(by_question.values())),
        by_question=by_question,
    )


def rank_of_answer(answers: set[str], result: SearchResult) -> int | None:
    """The rank of the first passage that answers, None if none was found."""
    return next((hit.rank for hit in result if hit.id in answers), None)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
