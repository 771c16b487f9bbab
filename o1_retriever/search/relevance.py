"""How probable it is that a hit is relevant: what was fitted on labelled questions, kept beside an index."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from o1_retriever.errors import SettingsError, StoreError
from o1_retriever.index.foreign import ForeignIndex
from o1_retriever.index.hits import Hit
from o1_retriever.index.index import Index
from o1_retriever.search.result import Pooling, SearchResult, SearchSettings
from o1_retriever.storage import written_whole
from o1_retriever.thought import ThoughtSettings

_FILE = "relevance.json"
_FORMAT = 1
_VECTORS, _HYBRID = 2, 4  # features of a hit, without BM25 and with it: see `described`


def described(hits: Sequence[Hit]) -> NDArray[np.float64]:
    """What the probability of each hit of one search is told from, shape (hits, features).

    The hit's cosine and that of the first one; after a hybrid search its fused score and the logarithm of
    what BM25 gives it too. None of them depends on how many hits there are.
    """
    rows = [
        [hit.score, hits[0].score]
        if hit.fused_score is None
        else [hit.score, hits[0].score, hit.fused_score, float(np.log1p(max(hit.lexical_score or 0.0, 0.0)))]
        for hit in hits
    ]
    return np.array(rows, np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Relevance:
    """The probability that a hit is relevant, as a logistic function of what describes it.

    It was fitted on the hits of so many `questions`. What it comes to on questions that it was not fitted on
    (five parts, each told by the other four): `brier`, the mean squared error of the probabilities, beside
    `brier_of_base_rate`, that of giving every hit the share of relevant ones; and `calibration_error`, by how
    much the probabilities differ from the shares that are relevant, on average over ten equal steps.
    """

    weights: tuple[float, ...]
    bias: float
    questions: int
    brier: float
    brier_of_base_rate: float
    calibration_error: float

    def probabilities(self, hits: Sequence[Hit]) -> list[float]:
        """That of each hit of one search, all of them from its first on."""
        if not hits:
            return []
        found = probability(described(hits), np.array([*self.weights, self.bias]))
        return [float(each) for each in found]


def probability(rows: NDArray[np.float64], fitted: NDArray[np.float64]) -> NDArray[np.float64]:
    """The logistic function of rows (n, features) by weights (features + 1), the last one the bias."""
    return np.asarray(1 / (1 + np.exp(-np.clip(rows @ fitted[:-1] + fitted[-1], -30, 30))), np.float64)


def kind(hybrid: bool, pooling: Pooling, query_weight: float | None) -> str:
    """How a search is named for which a `Relevance` is kept; `query_weight` None: without thoughts."""
    thoughts = "query alone" if query_weight is None else f"query_weight {query_weight:g}"
    return f"{'hybrid' if hybrid else 'vectors'}, {pooling}, {thoughts}"


def kept(index: Index) -> dict[str, Relevance]:
    """What is kept beside an index, by `kind`; nothing where it was not calibrated.

    Raises `StoreError` for a file that cannot be read.
    """
    path = index.folder / _FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != _FORMAT:
            raise ValueError(f"format {data['format']!r}")
        return {name: _read(name, values) for name, values in data["kinds"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(
            f"{path} cannot be used: {error!r:.200}.", hint=f"Delete it, and type: {_command(index)}"
        ) from error


def _read(name: str, values: Mapping[str, Any]) -> Relevance:
    """What is written of one kind. Raises for what is none, or has not the weights of such a search."""
    found = Relevance(**{**values, "weights": tuple(values["weights"])})
    expected = _HYBRID if name.startswith("hybrid") else _VECTORS
    if len(found.weights) != expected or not np.isfinite([*found.weights, found.bias]).all():
        raise ValueError(f"{name} has the weights {found.weights}; expected {expected} numbers")
    return found


def keep(index: Index, found: Mapping[str, Relevance]) -> Path:
    """Keep these beside an index, and what is there of other kinds; return the file. Raises `StoreError`."""
    path: Path = index.folder / _FILE
    try:
        known = kept(index)
    except StoreError:  # a damaged file is made anew
        known = {}
    kinds = {name: asdict(each) for name, each in {**known, **found}.items()}
    try:
        with written_whole(path) as file:
            json.dump({"format": _FORMAT, "kinds": kinds}, file, indent=1)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error}.") from error
    return path


def not_calibrated(least: float, store: str) -> SettingsError:
    """What is raised where a store of others is searched with a cut-off."""
    return SettingsError(
        f"{store} was to be searched with min_relevance={least:g}; only our own index is calibrated.",
        hint="Type: Retriever(embedder, index, min_relevance=0.5)",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cutoff:
    """Leaves hits out whose probability is below `least`. `known` is what is kept beside the index."""

    least: float
    index: Index
    how: SearchSettings
    known: Mapping[str, Relevance]

    @classmethod
    def of(cls, index: Index | ForeignIndex, how: SearchSettings, settings: ThoughtSettings) -> Cutoff | None:
        """That of a search, None without `min_relevance`. Raises `SettingsError` without a calibration."""
        if how.min_relevance is None:
            return None
        if isinstance(index, ForeignIndex):
            raise not_calibrated(how.min_relevance, index.name)
        cutoff = cls(least=how.min_relevance, index=index, how=how, known=kept(index))
        cutoff._relevance(None)
        if how.thinking in ("always", "auto") or (how.thinking is None and settings.thinks):
            cutoff._relevance(settings.weight())
        return cutoff

    def applied(self, result: SearchResult, settings: ThoughtSettings) -> SearchResult:
        """The result with the probability of each hit, without those that do not reach it."""
        about = result.embedding
        relevance = self._relevance(settings.weight(about.thoughts) if about.thought_about else None)
        likely = [
            replace(hit, probability=round(value, 4))
            for hit, value in zip(result.hits, relevance.probabilities(result.hits), strict=True)
        ]
        enough = [(hit.probability or 0.0) >= self.least for hit in likely]
        return replace(
            result,
            hits=tuple(hit for hit, stays in zip(likely, enough, strict=True) if stays),
            left_out=tuple(hit for hit, stays in zip(likely, enough, strict=True) if not stays),
        )

    def _relevance(self, query_weight: float | None) -> Relevance:
        wanted = kind(self.how.hybrid, self.how.pooling, query_weight)
        if wanted in self.known:
            return self.known[wanted]
        found = "; ".join(self.known) or "nothing"
        raise SettingsError(
            f"min_relevance is {self.least:g}, and the index in {self.index.path} was not calibrated for "
            f"this search ({wanted}). Found: {found}.",
            hint=f"Type: {_command(self.index, self.how, query_weight)}",
        )


def _command(index: Index, how: SearchSettings | None = None, query_weight: float | None = None) -> str:
    """What to type so that an index is calibrated for such a search."""
    hybrid = " --hybrid" if how is not None and how.hybrid else ""
    best = " --pooling best" if how is not None and how.pooling == "best" else ""
    weight = f" --query-weight {query_weight:g}" if query_weight is not None else ""
    return f"o1-retriever calibrate questions.jsonl --index {index.path}{hybrid}{best}{weight}"
