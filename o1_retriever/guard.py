"""Whether a query is worth thinking about, told from what it finds without thoughts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from o1_retriever.errors import SettingsError
from o1_retriever.reporting.text import counted
from o1_retriever.thought import Vector

# Best scores of the fast ranking that are looked at, and the least number that says anything.
LOOKED_AT = 100
ENOUGH = 10
_RIDGE = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Whether a query was to be thought about, and why.

    `worth` is what the gate expects of thinking and `threshold` the least that is enough. Both are
    None where no gate was.
    """

    think: bool
    reason: str
    worth: float | None = None
    threshold: float | None = None

    def to_dict(self) -> dict[str, bool | str | float | None]:
        """The decision as plain JSON values."""
        return asdict(self)


def features(scores: Sequence[float] | Vector) -> NDArray[np.float64]:
    """What a ranking's best scores, best first, say about it: `drop`, `step`, `peak`, `entropy`.

    None of them changes when an encoder's scores are stretched; `peak` and `entropy` do not when they are
    shifted either. `drop` is the share of the first score that is lost down to the tenth, `step` the part of
    that loss that lies after the first, `peak` the first score in standard deviations above the mean, and
    `entropy` that of the scores' softmax in those units, from 0 to 1.
    """
    best = np.asarray(scores, dtype=np.float64)[:LOOKED_AT]
    spread = max(float(best.std()), 1e-9)
    standard = (best - best.mean()) / spread
    shares = np.exp(standard - standard[0])
    shares /= shares.sum()
    tenth = best[min(9, len(best) - 1)]
    lost = max(float(best[0] - tenth), 1e-9)
    return np.array(
        [
            float(best[0] - tenth) / max(abs(float(best[0])), 1e-9),
            float(best[min(1, len(best) - 1)] - tenth) / lost,
            float(standard[0]),
            float(-(shares * np.log(shares)).sum() / np.log(max(2, len(best)))),
        ]
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Thinks about a query where the gain in nDCG@10 that its fast ranking promises reaches `threshold`.

    The promise is `bias` plus the `weights` times `features`. The defaults were calibrated with recorded
    thoughts and all-MiniLM-L6-v2 on dev and train splits (`python -m benchmarks.retrieval.adaptive`), at the
    threshold where 95 % of the gain is kept. `calibrate` makes a gate for another encoder or thinker.
    """

    weights: tuple[float, float, float, float] = (-0.3942, -0.0290, -0.0260, -0.2357)
    bias: float = 0.5167
    threshold: float = 0.0597

    def worth(self, scores: Sequence[float] | Vector) -> float:
        """The gain in nDCG@10 that thinking promises after these best scores of the fast ranking."""
        return self.bias + float(np.dot(self.weights, features(scores)))

    def decide(self, scores: Sequence[float] | Vector) -> Decision:
        """Think or not; always where the ranking has fewer than ten documents and says little."""
        if len(scores) < ENOUGH:
            few = f"the fast ranking has only {counted(len(scores), 'document')}"
            return Decision(think=True, reason=few, threshold=self.threshold)
        worth = self.worth(scores)
        think = worth >= self.threshold
        reason = f"the fast ranking {'leaves room' if think else 'is clear'}"
        return Decision(think=think, reason=reason, worth=worth, threshold=self.threshold)


def calibrate(
    rankings: Sequence[Sequence[float] | Vector], gains: Sequence[float], *, keep: float = 0.95
) -> Gate:
    """A gate from queries whose gain by thinking is known; never calibrate on the queries you report on.

    `rankings` are the best scores (100, best first) of each query without thoughts, `gains` what thinking
    added to the measure of each. The threshold is the highest that keeps the share `keep` of all the gain.
    """
    if len(rankings) != len(gains) or len(gains) < ENOUGH:
        raise SettingsError(
            f"Found {counted(len(rankings), 'ranking')} and {counted(len(gains), 'gain')}; "
            f"expected as many of both, from {ENOUGH}."
        )
    if not 0 < keep <= 1:
        raise SettingsError(f"keep is {keep!r}; expected a share above 0, up to 1.")
    described = np.stack([features(scores) for scores in rankings])
    known = np.asarray(gains, dtype=np.float64)
    centre, scale = described.mean(axis=0), np.maximum(described.std(axis=0), 1e-9)
    standard = (described - centre) / scale
    square = standard.T @ standard + _RIDGE * np.eye(standard.shape[1])
    weights = np.linalg.solve(square, standard.T @ (known - known.mean())) / scale
    drop, step, peak, entropy = (float(weight) for weight in weights)
    bias = float(known.mean() - weights @ centre)
    gate = Gate(weights=(drop, step, peak, entropy), bias=bias)
    worths = np.array([gate.worth(scores) for scores in rankings])
    order = np.argsort(-worths, kind="stable")
    kept = np.cumsum(known[order])
    reached = np.flatnonzero(kept >= keep * kept[-1])
    return replace(gate, threshold=float(worths[order[reached[0]]]) if len(reached) else -np.inf)
