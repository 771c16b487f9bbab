"""Queries for people with documents only: an expert writes them, and a round trip keeps the good ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from o1_retriever.progress import progress
from o1_retriever_training.corpus import Corpus
from o1_retriever_training.keys import KeyIndex
from o1_retriever_training.ledger import writing_whole
from o1_retriever_training.problems import Problems
from o1_retriever_training.reading import count_rows, read_rows
from o1_retriever_training.recipe import Contributor, Recipe
from o1_retriever_training.rows import Row
from o1_retriever_training.searching import Searcher, as_searcher

INSTRUCTION = (
    "You are given a passage. Write one question that somebody would type into a search engine and that this "
    "passage answers. The question must be understood without the passage: name things, do not say 'the "
    "passage' or 'the text'. Reply with the question alone, on one line."
)
_LONGEST = 300  # characters: what is longer is no query, but talk


def query_recipe(per_passage: int, *, seed: int = 0, examples: int = 0) -> Recipe:
    """How queries are asked for: passages stand in the place of queries, questions in that of responses."""
    voice = Contributor(n=per_passage, instruction=INSTRUCTION)
    return Recipe(
        contributors=(voice,),
        seed=seed,
        examples=examples,
        labels=("Passage", "Question"),
        max_tokens=64,
        temperature=0.9,
    )


def example_questions(pairs: str | Path, *, most: int = 1000) -> list[Row]:
    """Pairs of query and document, turned round, to show an expert what kind of questions people ask."""
    rows = islice(read_rows(pairs, Problems(str(pairs))), most)
    return [Row(query=row.pos[0], pos=[row.query]) for row in rows if row.pos]


def round_trip(
    written: str | Path,
    out: str | Path,
    corpus: Corpus,
    *,
    by: Any = "bm25",
    within: int = 1,
    show: bool | None = None,
) -> dict[str, int]:
    """Keep a query whose passage is among the first `within` that it finds; write pairs into `out`.

    `written` are rows whose `query` is a passage and whose candidates are queries about it. A query that was
    kept for another passage is left out.
    """
    places = {text: place for place, text in enumerate(corpus.texts)}
    searcher = as_searcher(by, corpus.texts)
    counts = {"written": 0, "kept": 0, "not found": 0, "repeated": 0}
    seen = KeyIndex()
    rows = read_rows(written, Problems(str(written)))
    with (
        progress("Round trip", count_rows(written, show=show), show=show) as advance,
        writing_whole(Path(out)) as target,
    ):
        while chunk := list(islice(rows, 256)):
            for row, query, found in _searched(chunk, searcher, places, within):
                counts["written"] += 1
                if not found:
                    counts["not found"] += 1
                elif not seen.see(hashlib.blake2b(query.casefold().encode(), digest_size=8).hexdigest()):
                    counts["repeated"] += 1
                else:
                    counts["kept"] += 1
                    pair = {"query": query, "pos": [row.query], "type": "question"}
                    target.write(json.dumps(pair, ensure_ascii=False) + "\n")
            advance(len(chunk))
    seen.close()
    return counts


def _searched(
    rows: Sequence[Row], searcher: Searcher, places: dict[str, int], within: int
) -> Iterator[tuple[Row, str, bool]]:
    asked = [(row, query) for row in rows for query in _queries(row) if row.query in places]
    for (row, query), scores in zip(asked, searcher.scores([query for _, query in asked]), strict=True):
        own = scores[places[row.query]]
        yield row, query, bool(np.sum(scores > own) < within and own > 0)


def _queries(row: Row) -> Iterator[str]:
    for text in row.all_thought:
        query = (text or "").strip().splitlines()[0].strip(" \"'*-") if (text or "").strip() else ""
        if query and len(query) <= _LONGEST:
            yield query
