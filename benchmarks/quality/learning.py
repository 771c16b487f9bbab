"""Learning curves of this repository's models, from the logs of their training.

python -m benchmarks.quality.learning                                      # draws what is kept in results
python -m benchmarks.quality.learning STAGE2/log.jsonl STAGE3/log.jsonl    # keeps o1-embedder-22m's first
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.quality.pages import SETS
from benchmarks.record import RESULTS, ROOT, read


class Panel(NamedTuple):
    """One drawing: the rows of a stage, and which of their numbers are lines, by what a reader calls them."""

    stage: int | str
    title: str
    lines: Mapping[str, str]


_INDEXES = {name: text.split(":")[0] for name, text in SETS.items()}
_GAIN = "reward: gain on dev, mean of four sets"
PANELS = {
    "o1-embedder-22m": (
        Panel(2, "stage 2: 1 - cosine to MiniLM", {"cosine": ""}),
        Panel(2, "stage 2: loss of a thought's token", {"thought": ""}),
        Panel(3, "stage 3: thinking vector against the index", {"contrast": ""}),
        Panel(3, "stage 3: 1 - cosine of fast to MiniLM", {"anchor": ""}),
    ),
    "o1-embedder-135m": (
        Panel("reward", "reward: gain of three thoughts about train questions", _INDEXES),
        Panel("dev", _GAIN, {"vectors": "vectors", "bm25": "BM25", "both": "both"}),
        Panel("joint", "joint: gain of the query alone on dev", _INDEXES),
    ),
}


def kept(model: str) -> Path:
    """Where a model's curves are, one step a line."""
    return RESULTS / f"{model.replace('-', '_')}_learning.jsonl"


def main(arguments: Sequence[str] | None = None) -> int:
    """Keep the logs that are named, then draw."""
    paths = [Path(each) for each in (sys.argv[1:] if arguments is None else arguments)]
    if paths:
        panels = PANELS["o1-embedder-22m"]
        names = {
            stage: [name for panel in panels if panel.stage == stage for name in panel.lines]
            for stage in (2, 3)
        }
        rows = [
            {"stage": stage, "step": row["step"], **{name: row[name] for name in names[stage] if name in row}}
            for stage, path in zip(names, paths, strict=True)
            for row in _log(path)
        ]
        kept("o1-embedder-22m").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for model, panels in PANELS.items():
        draw(read(kept(model)), panels, ROOT / "docs" / f"{model}-learning.png")
    return 0


def _log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; of steps that a resumed run repeated, the last."""
    return sorted({row["step"]: row for row in read(path)}.values(), key=lambda row: row["step"])


def draw(rows: Sequence[dict[str, Any]], panels: Sequence[Panel], path: Path) -> None:
    """The panels side by side, over the steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 2.9), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for name, label in panel.lines.items():
            points = [(row["step"], row[name]) for row in rows if row["stage"] == panel.stage and name in row]
            if points:
                axes.plot(*zip(*points, strict=True), linewidth=1, label=label)
        axes.set(xlabel="step")
        axes.set_title(panel.title, fontsize=8)
        axes.grid(alpha=0.3)
        if len(panel.lines) > 1:
            axes.axhline(0, color="gray", linewidth=0.6)
            axes.legend(fontsize=7)
    figure.savefig(path, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    raise SystemExit(main())
