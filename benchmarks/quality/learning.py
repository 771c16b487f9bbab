"""o1-embedder-22m's learning curves, from the logs of its training runs.

python -m benchmarks.quality.learning STAGE2/log.jsonl STAGE3/log.jsonl    # keeps them, and draws
python -m benchmarks.quality.learning                                      # draws what was kept
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS, ROOT, read

KEPT = RESULTS / "o1_embedder_22m_learning.jsonl"
PICTURE = ROOT / "docs" / "o1-embedder-22m-learning.png"
# What is drawn of each stage: the log's name, and what a reader calls it.
PANELS = {
    2: {"cosine": "1 - cosine to MiniLM", "thought": "loss of a thought's token"},
    3: {"contrast": "thinking vector against the index", "anchor": "1 - cosine of fast to MiniLM"},
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Keep the logs that are named, then draw."""
    paths = [Path(each) for each in (sys.argv[1:] if arguments is None else arguments)]
    if paths:
        rows = [
            {
                "stage": stage,
                "step": row["step"],
                **{name: row[name] for name in PANELS[stage] if name in row},
            }
            for stage, path in zip(PANELS, paths, strict=True)
            for row in _log(path)
        ]
        KEPT.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    draw(read(KEPT), PICTURE)
    return 0


def _log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; of steps that a resumed run repeated, the last."""
    return sorted({row["step"]: row for row in read(path)}.values(), key=lambda row: row["step"])


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """A panel for each loss, over the steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 2.9), layout="constrained")
    panels = [(stage, name, title) for stage, names in PANELS.items() for name, title in names.items()]
    for axes, (stage, name, title) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        points = [(row["step"], row[name]) for row in rows if row["stage"] == stage and name in row]
        axes.plot(*zip(*points, strict=True), linewidth=1)
        axes.set(xlabel="step")
        axes.set_title(f"stage {stage}: {title}", fontsize=8)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    raise SystemExit(main())
