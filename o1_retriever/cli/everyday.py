"""The demo's own collection of passages, questions and judgments, and how well a ranking meets them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from o1_retriever.cli.models import CLONE
from o1_retriever.errors import DocumentError
from o1_retriever.extras import require

if TYPE_CHECKING:
    from o1_retriever.documents import Document
    from o1_retriever.search.retriever import SearchResult

FOLDER = Path("cookbook", "data", "everyday")
SPLITS = ("dev", "test")
ANSWER = 2  # the judgment of a passage that answers the question; 1 only helps
_FIRST, _GAIN = f"Success(rel={ANSWER})@1", "nDCG@10"


@dataclass(frozen=True, kw_only=True)
class Everyday:
    """Passages, questions by id, and for each split the judged passages of its questions."""

    documents: list[Document]
    questions: dict[str, str]
    judgments: dict[str, Mapping[str, Mapping[str, int]]]

    def answers(self, question: str) -> set[str]:
        """The passages that answer a question."""
        judged = next(split[question] for split in self.judgments.values() if question in split)
        return {passage for passage, grade in judged.items() if grade >= ANSWER}


@dataclass(frozen=True, kw_only=True)
class Quality:
    """For each question whether the first hit answers it (1 or 0), and nDCG@10."""

    first: dict[str, float]
    gain: dict[str, float]


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


def read_everyday(folder: Path) -> Everyday:
    """Read the collection. Raises `CollectionError` for files that cannot be used."""
    from o1_retriever.documents import Document
    from o1_retriever.evaluation import load_collection

    splits = {split: load_collection(folder, split=split, strict=True) for split in SPLITS}
    corpus = splits["dev"].corpus
    titles = _titles(folder)
    documents = [
        Document(id=name, text=text, metadata={"title": titles[name], "source": name})
        for name, text in zip(corpus.ids, corpus.texts(0, len(corpus.ids)), strict=True)
    ]
    questions = {name: text for split in splits.values() for name, text in split.queries.items()}
    judgments = {name: split.qrels for name, split in splits.items()}
    return Everyday(documents=documents, questions=questions, judgments=judgments)


def _titles(folder: Path) -> dict[str, str]:
    lines = (folder / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["_id"]: row.get("title") or row["_id"] for row in map(json.loads, lines)}


def require_measures() -> Any:
    """The package that computes the measures. Raises `MissingExtraError`."""
    return require("ir_measures", extra="eval", purpose="The demo's table")


def measure(judgments: Mapping[str, Mapping[str, int]], found: Mapping[str, SearchResult]) -> Quality:
    """How well what was found for the judged questions meets the judgments."""
    from o1_retriever.evaluation import per_query

    run = {question: {hit.id: hit.score for hit in found[question]} for question in judgments}
    values = per_query(judgments, run, measures=(_FIRST, _GAIN))
    return Quality(first=values[_FIRST], gain=values[_GAIN])


def rank_of_answer(answers: set[str], result: SearchResult) -> int | None:
    """The rank of the first passage that answers, None if none was found."""
    return next((hit.rank for hit in result if hit.id in answers), None)
