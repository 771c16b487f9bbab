"""Calibrates adaptive thinking on dev and train splits, draws its curve, and reports it on test splits.

Run from the repository's root, after `python -m benchmarks.retrieval.run` (which makes the indexes):

    python -m benchmarks.retrieval.adaptive [DATA] [--sets ...] [--test ...] [--plot docs/adaptive.png]

It prints the gate that `o1_retriever.guard.Gate` has as its default, and how a gate does on each set that
was calibrated on the others. Test splits are read with the gate as it is shipped, and change nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.record import ROOT, Figure, record
from benchmarks.retrieval.measure import MEASURE, Values, opened
from benchmarks.retrieval.run import minilm, options_of
from o1_retriever.guard import LOOKED_AT, Gate, calibrate

SETS = ("entailmentbank/dev", "strategyqa_facts/train", "scifact/train", "hotpotqa_1k/train")
TEST = ("entailmentbank/test",)
SHARES = np.linspace(0, 1, 21)
KEEP = 0.95


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Queries of one set: the best scores without thoughts, and nDCG@10 without and with."""

    name: str
    scores: list[list[float]]
    plain: Values
    thinking: Values

    @property
    def gains(self) -> Values:
        """What thinking adds to each."""
        return self.thinking - self.plain


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, calibrate, draw and print."""
    options = options_of("adaptive", __doc__, SETS, arguments)
    if not (options.data / "eval").is_dir():
        print(f"There is no folder {options.data / 'eval'}: nothing is measured.", file=sys.stderr)
        return 1
    encoder = minilm()
    curves = {}
    for kind, hybrid in (("dense", False), ("hybrid", True)):
        seen = [_seen(options.data, name, options.work, encoder, hybrid=hybrid) for name in options.sets]
        gate = _calibrated(seen)
        print(f"{kind}: {gate}")
        figures = [
            *_left_out(kind, seen),
            *_curve(kind, seen, gate),
            *_at(f"adaptive/{kind}/all", seen, Gate()),
        ]
        curves[kind] = [figure.value for figure in figures if "/share=" in figure.name]
        reported = [_seen(options.data, name, options.work, encoder, hybrid=hybrid) for name in TEST]
        for split in reported:
            figures += _at(f"adaptive/{kind}/{split.name}", [split], Gate())
        record(options.results, figures)
        for figure in figures:
            print(f"{figure.name}: {figure.value:g} {figure.unit}", flush=True)
    _draw(curves, ROOT / "docs" / "adaptive.png")
    return 0


def _seen(data: Path, name: str, work: Path, encoder: object, *, hybrid: bool) -> Seen:
    with opened(data, name, work, encoder) as bench:
        fast = bench.search(thoughts=0, k=LOOKED_AT)
        plain = bench.search(thoughts=0, hybrid=True) if hybrid else fast
        thinking = bench.search(thoughts=3, hybrid=hybrid)
        return Seen(
            name=name,
            scores=[[hit.score for hit in result] for result in fast],
            plain=bench.values(plain),
            thinking=bench.values(thinking),
        )


def _calibrated(seen: Sequence[Seen]) -> Gate:
    scores = [row for split in seen for row in split.scores]
    return calibrate(scores, np.concatenate([split.gains for split in seen]).tolist(), keep=KEEP)


def _left_out(kind: str, seen: Sequence[Seen]) -> Iterator[Figure]:
    """Each set with the gate of the others."""
    for split in seen:
        others = [other for other in seen if other is not split]
        if others:
            yield from _at(f"adaptive/{kind}/left_out/{split.name}", [split], _calibrated(others))


def _at(name: str, seen: Sequence[Seen], gate: Gate) -> list[Figure]:
    """How many are thought about, what is kept of the gain, and nDCG@10 never, by the gate, and always."""
    plain = np.concatenate([split.plain for split in seen])
    thinking = np.concatenate([split.thinking for split in seen])
    thinks = np.array([gate.decide(row).think for split in seen for row in split.scores])
    gated = np.where(thinks, thinking, plain)
    kept = (gated - plain).sum() / (thinking - plain).sum()
    values = {"never": plain.mean(), "auto": gated.mean(), "always": thinking.mean()}
    return [
        Figure(
            name=f"{name}/thought_about", value=round(float(thinks.mean()), 3), unit="share", better="lower"
        ),
        Figure(name=f"{name}/gain_kept", value=round(float(kept), 3), unit="share"),
        *(
            Figure(name=f"{name}/{key}", value=round(float(value), 4), unit=MEASURE)
            for key, value in values.items()
        ),
    ]


def _curve(kind: str, seen: Sequence[Seen], gate: Gate) -> Iterator[Figure]:
    """nDCG@10 over all queries where that share of them, the most promising first, is thought about."""
    plain = np.concatenate([split.plain for split in seen])
    thinking = np.concatenate([split.thinking for split in seen])
    worth = np.array([gate.worth(row) for split in seen for row in split.scores])
    order = np.argsort(-worth, kind="stable")
    for share in SHARES:
        chosen = order[: round(share * len(order))]
        value = plain.copy()
        value[chosen] = thinking[chosen]
        name = f"adaptive/{kind}/share={share:.2f}"
        yield Figure(name=name, value=round(float(value.mean()), 4), unit=MEASURE)


def _draw(curves: dict[str, list[float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.8), layout="constrained")
    for (kind, values), colour in zip(curves.items(), ("C0", "C1"), strict=False):
        axes.plot(100 * SHARES, values, "o-", markersize=3, color=colour, label=kind)
        axes.plot([0, 100], [values[0], values[-1]], ":", color=colour, label=f"{kind}, chosen at random")
        bar = values[0] + KEEP * (values[-1] - values[0])
        axes.axhline(bar, linewidth=0.6, color=colour, alpha=0.6)
        axes.annotate("95 % of the gain", (1, bar), va="bottom", fontsize=7, color=colour)
    axes.set_xlabel("queries that are thought about, %")
    axes.set_ylabel("nDCG@10, dev and train queries")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Software": None})


if __name__ == "__main__":
    raise SystemExit(main())
