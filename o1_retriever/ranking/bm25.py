"""BM25 over texts, and what it reads of a query and its thoughts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from o1_retriever.errors import require
from o1_retriever.ranking.ranking import Places, Ranking, best
from o1_retriever.thought import Thought, Vector

K1, B = 1.5, 0.75
_SETTINGS: dict[str, Any] = {"method": "lucene", "k1": K1, "b": B}
_LANGUAGE = "english"


@dataclass(frozen=True, slots=True)
class Reading:
    """What BM25 reads: a query, and its thoughts with what each counts beside it.

    `median_of` is how many thoughts there were where their median counts, and 0 where their sum does.
    """

    query: str
    thoughts: tuple[tuple[str, float], ...] = ()
    median_of: int = 0

    @classmethod
    def of(cls, query: str, thoughts: Iterable[Thought] = (), query_weight: float = 0.0) -> Reading:
        """The query, and the mean of its thoughts; the query alone where there is none.

        A mean, so that three thoughts do not weigh more than one; those that were dropped count as nothing.
        `query_weight` (that of `ThoughtSettings`) makes the thoughts count less, as it does in the vector.
        Where they count less than the query, their median stands for their mean: what one thought alone says
        of a passage is not believed, what half of them say is (docs/guard.md).
        """
        counting = [each for each in thoughts if not each.failed and each.text.strip()]
        weight = 1 / (1 + query_weight) / max(1, len(counting))
        median_of = len(counting) if query_weight > 1 and len(counting) > 2 else 0
        return cls(query, tuple((each.text, weight) for each in counting if each.usable), median_of)


class Bm25:
    """Scores texts by the words they share with a query: bm25s, Lucene's variant, k1 1.5, b 0.75.

    English stop words are left out and words are reduced to their stems (Snowball). Raises
    `MissingExtraError` when bm25s or PyStemmer is not installed.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._count = len(texts)
        tokens = _tokens(texts, ids=True)
        self._index = _package().BM25(**_SETTINGS) if tokens.vocab else None
        if self._index is not None:
            self._index.index(tokens, show_progress=False)

    def __len__(self) -> int:
        return self._count

    @property
    def vocabulary(self) -> frozenset[str]:
        """The stems of all words of all texts."""
        return frozenset() if self._index is None else frozenset(self._index.vocab_dict)

    def scores(self, read: str | Reading) -> Vector:
        """BM25 of every text, float32, 0 without a common word; a repeated word counts as often.

        With thoughts it is the sum of what the query and each thought score by themselves, weighted; or of
        what the query scores and as many times the thoughts' median, those that were dropped scoring nothing.
        """
        if isinstance(read, str):
            return self._scores(read)
        total = self._scores(read.query)
        if read.median_of:
            rows = np.zeros((read.median_of, self._count), np.float32)
            for row, (text, weight) in zip(rows, read.thoughts, strict=False):
                row += np.float32(weight) * self._scores(text)
            return total + np.float32(read.median_of) * np.median(rows, axis=0)
        for weight, alike in groupby(read.thoughts, key=lambda thought: thought[1]):
            total = total + np.float32(weight) * self._scores(" ".join(text for text, _ in alike))
        return total

    def _scores(self, text: str) -> Vector:
        words = _tokens([text], ids=False)[0]
        if self._index is None or not words:
            return np.zeros(self._count, np.float32)
        return np.asarray(self._index.get_scores(words), dtype=np.float32)

    def best(
        self, read: str | Reading, k: int, *, ties: Places | None = None, among: Places | None = None
    ) -> Ranking:
        """The places of the `k` best texts that share a word with `read`, or of those `among` these places.

        Equal scores are in ascending order of `ties[place]`, or of the place where `ties` is None.
        """
        scores = self.scores(read)
        matching = np.flatnonzero(scores > 0) if among is None else among[scores[among] > 0]
        return best(matching, scores[matching], k, ties=ties)

    @staticmethod
    def identity() -> dict[str, Any]:
        """What decides about the scores, the versions of the packages included."""
        stemmer = require("Stemmer", extra="index", purpose="BM25")
        versions = {"bm25s": _package().__version__, "snowball": stemmer.version()}
        return {**_SETTINGS, "language": _LANGUAGE, **versions}

    def save(self, folder: Path) -> None:
        """Write the index into a folder, in bm25s' own format; nothing for texts without any word."""
        if self._index is not None:
            self._index.save(str(folder), show_progress=False)

    @classmethod
    def load(cls, folder: Path, count: int) -> Bm25:
        """Read what `save` has written about `count` texts. Raises whatever reading damaged files raises."""
        found = cls.__new__(cls)
        found._count = count
        has_words = any(folder.glob("*.npy"))
        found._index = _package().BM25.load(str(folder), show_progress=False) if has_words else None
        if found._index is not None and found._index.scores["num_docs"] != count:
            raise ValueError(f"{folder} is about {found._index.scores['num_docs']} texts; expected {count}")
        return found


def content_words(texts: Sequence[str]) -> list[list[str]]:
    """The stems that BM25 counts of every text, English stop words left out."""
    found: list[list[str]] = _tokens(texts, ids=False)
    return found


def _package() -> Any:
    return require("bm25s", extra="index", purpose="BM25")


def _tokens(texts: Sequence[str], *, ids: bool) -> Any:
    stemmer = require("Stemmer", extra="index", purpose="BM25").Stemmer(_LANGUAGE)
    return _package().tokenize(
        list(texts), stopwords="en", stemmer=stemmer, return_ids=ids, show_progress=False
    )
