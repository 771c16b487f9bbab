"""BM25 as a member of a committee, over a row's own candidates or over a corpus."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain

from o1_retriever.extras import require
from o1_retriever_training.cases import Case, Verdict

K1, B = 1.5, 0.75


class Bm25Member:
    """BM25 by the words that candidate and positive share (Lucene's variant, English).

    By default the positive is the query and the row's candidates are the texts that are searched, with the
    bare query as one more of them where its own score is asked. With a
    `corpus` of documents, each candidate is a query and its score is that of the positive among them.
    """

    def __init__(self, corpus: Iterable[str] | None = None) -> None:
        self._corpus = corpus
        self._statistics: _Statistics | None = None
        self.name = "bm25" if corpus is None else "bm25-corpus"
        self.identity = self.name
        if isinstance(corpus, Sequence):
            content = hashlib.blake2b(json.dumps(list(corpus)).encode(), digest_size=8).hexdigest()
            self.identity = f"{self.name} {content}"

    def open(self) -> None:
        """Count the words of the corpus, if there is one."""
        if self._corpus is not None and self._statistics is None:
            self._statistics = _Statistics.of_all(self._corpus)

    def close(self) -> None:
        """Little is kept, and that may be needed again."""

    def score(self, cases: Sequence[Case]) -> list[Verdict]:
        """Tokenise all texts of the cases at once, each different one once."""
        texts = dict.fromkeys(
            text for case in cases for text in (case.query, case.positive, *case.candidates)
        )
        words = dict(zip(texts, _words(list(texts)), strict=True))
        return [self._verdict(case, words) for case in cases]

    def _verdict(self, case: Case, words: dict[str, list[str]]) -> Verdict:
        candidates = [words[text] for text in case.candidates]
        positive, query = words[case.positive], words[case.query]
        if self._statistics is None:
            own = _Statistics.of(candidates)
            scores = [own.score(positive, text) for text in candidates]
            # The query's words would count as rarer than any candidate's where it is not one of the texts.
            beside = _Statistics.of([*candidates, query])
            return Verdict(scores=tuple(scores), bare=beside.score(positive, query))
        scores = [self._statistics.score(text, positive) for text in candidates]
        return Verdict(scores=tuple(scores), bare=self._statistics.score(query, positive))


class _Statistics:
    """How many texts there are, how long they are on average, and how many hold each word."""

    def __init__(self) -> None:
        self.count = 0
        self.length = 0
        self.holding: Counter[str] = Counter()

    @classmethod
    def of(cls, texts: Iterable[list[str]]) -> _Statistics:
        found = cls()
        for words in texts:
            found.count += 1
            found.length += len(words)
            found.holding.update(set(words))
        return found

    @classmethod
    def of_all(cls, corpus: Iterable[str], *, at_once: int = 4096) -> _Statistics:
        found = cls()
        batch: list[str] = []
        for text in chain(corpus, (None,)):
            if text is not None:
                batch.append(text)
            if len(batch) == at_once or text is None:
                part = cls.of(_words(batch))
                found.count, found.length = found.count + part.count, found.length + part.length
                found.holding.update(part.holding)
                batch = []
        return found

    def score(self, query: list[str], text: list[str]) -> float:
        """BM25 of a text for a query; a word that the query repeats counts as often."""
        if not self.length:
            return 0.0
        norm = K1 * (1 - B + B * len(text) * self.count / self.length)
        frequency = Counter(text)
        total = 0.0
        for word, times in Counter(query).items():
            if found := frequency[word]:
                holding = self.holding[word]
                rarity = math.log(1 + (self.count - holding + 0.5) / (holding + 0.5))
                total += times * rarity * found / (found + norm)
        return total


def _words(texts: list[str]) -> list[list[str]]:
    bm25s = require("bm25s", extra="train", purpose="A BM25 member")
    stemmer = require("Stemmer", extra="train", purpose="A BM25 member").Stemmer("english")
    if not texts:
        return []
    found = bm25s.tokenize(texts, stopwords="en", stemmer=stemmer, return_ids=False, show_progress=False)
    return [list(words) for words in found]
