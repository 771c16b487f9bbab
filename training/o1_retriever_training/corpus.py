"""The documents that are searched while training data is made."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from o1_retriever_training.errors import DataError
from o1_retriever_training.problems import Problems
from o1_retriever_training.reading import read_values


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Corpus:
    """Documents in order, as title, space, text; `places` finds them by id."""

    texts: list[str]
    places: dict[str, int]


def read_corpus(path: str | Path) -> Corpus:
    """Documents of a BEIR corpus: `_id`, `title` and `text`, in any format that rows may have.

    Empty documents are left out. Raises `DataError` when there is none at all.
    """
    problems = Problems(str(path))
    texts: list[str] = []
    places: dict[str, int] = {}
    for place, value in read_values(path, problems):
        if not isinstance(value, dict) or not isinstance(value.get("text", value.get("query")), str):
            raise DataError(
                f"{path}, {place}: found {json.dumps(value)[:60]}; expected an object with a 'text'."
            )
        body = value.get("text", value.get("query"))
        text = " ".join(part for part in (value.get("title"), body) if part and part.strip()).strip()
        name = str(value.get("_id", value.get("id", place)))
        if text and name not in places:
            places[name] = len(texts)
            texts.append(text)
    if problems or not texts:
        raise DataError(f"The corpus cannot be used: {problems}; {len(texts)} documents.")
    return Corpus(texts=texts, places=places)
