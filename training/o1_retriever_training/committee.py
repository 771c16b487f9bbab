"""Who judges the candidates: members that score thoughts against the document that they should lead to."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from o1_retriever.errors import SettingsError
from o1_retriever_training.bm25_member import Bm25Member
from o1_retriever_training.cases import Case, Verdict
from o1_retriever_training.dense import Dense

Judge: TypeAlias = Callable[[list[str], list[str]], Sequence[float]]
COSINE_SCALE = 100.0  # dense members score by cosine x 100, as the reference does


class Member(Protocol):
    """Anything that scores candidates, higher for better. `open` loads it, `close` gives its memory back.

    A member may have an `identity` too (default: its name): what its scores depend on, for the manifest.
    """

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


class DenseMember:
    """Cosine x 100 between the vectors of candidate and positive, both read as documents.

    `model` is a sentence-transformers model (loaded, a folder or a Hub id), an encoder, or a model of ours
    (`ThinkingEmbedder`, or the folder of one): it is loaded while it votes only.
    """

    def __init__(self, model: Any, *, name: str | None = None, batch_size: int = 64) -> None:
        self._model = model
        self._batch_size = batch_size
        self._dense: Dense | None = None
        self.name = name or _name_of(model)
        self.identity = os.fspath(model) if isinstance(model, str | os.PathLike) else self.name

    def open(self) -> None:
        """Load the model, unless one was brought."""
        if self._dense is None:
            self._dense = Dense(self._model, batch_size=self._batch_size)

    def close(self) -> None:
        """Forget what was loaded here, on a GPU too."""
        if self._dense is None:
            return
        import gc

        import torch

        self._dense = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def score(self, cases: Sequence[Case]) -> list[Verdict]:
        """Embed every different text once, in batches of similar length."""
        self.open()
        assert self._dense is not None
        texts = list(
            dict.fromkeys(
                text for case in cases for text in (case.query, case.positive, *case.candidates) if text
            )
        )
        if not texts:
            return []
        places = {text: place for place, text in enumerate(texts)}
        vectors = self._dense.documents(texts)
        return [self._verdict(case, places, vectors) for case in cases]

    def _verdict(self, case: Case, places: dict[str, int], vectors: Any) -> Verdict:
        rows = vectors[[places[text] for text in (*case.candidates, case.query)]]
        *scores, bare = (COSINE_SCALE * (rows @ vectors[places[case.positive]])).tolist()
        return Verdict(scores=tuple(scores), bare=bare)


def _name_of(model: Any) -> str:
    """A folder's last part, an id of the Hub as it is: so the released data calls its members."""
    if not isinstance(model, str | os.PathLike):
        return type(model).__name__
    return Path(model).resolve().name if Path(model).is_dir() else os.fspath(model)


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
        return DenseMember("minilm", name="minilm")
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
