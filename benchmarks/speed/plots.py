"""The figures of speed as two pictures: how many times as fast, and what an index costs as it grows."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

_OURS, _INK = "#2a6fbb", "#333333"
_THINKING = re.compile(r"encode_queries/(?P<model>\w+)/q(?P<count>\d+)/(?P<kind>\w*?)_?ratio")
_GROWTH = re.compile(r"search/(?P<size>\d+)/(?P<what>add_s|query_p50_ms)")


def draw_ratios(rows: Sequence[Mapping[str, object]], path: Path) -> bool:
    """Every ratio of two ways of one job as a bar, with a line at 1; False without any."""
    bars = {label: float(str(row["value"])) for row in rows if (label := _label(str(row["name"])))}
    if not bars:
        return False
    figure = Figure(figsize=(8.6, 1.3 + 0.46 * len(bars)), layout="constrained")
    axes: Any = figure.subplots()
    axes.barh(list(bars), list(bars.values()), height=0.62, color=_OURS)
    for place, value in enumerate(bars.values()):
        axes.annotate(
            f"{value:.1f}×", (value, place), (5, 0), textcoords="offset points", va="center", color=_INK
        )
    axes.axvline(1, color=_INK, linewidth=1.2, linestyle="--")
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * max(1.0, *bars.values()))
    axes.set_xlabel("times as fast as the usual way (dashed line), in the same run")
    axes.tick_params(length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    _save(figure, path)
    return True


def draw_growth(rows: Sequence[Mapping[str, object]], path: Path) -> bool:
    """Seconds to fill an index and milliseconds of a search in it, by the number of documents."""
    costs: dict[str, dict[int, float]] = {"add_s": {}, "query_p50_ms": {}}
    for row in rows:
        if match := _GROWTH.fullmatch(str(row["name"])):
            costs[match["what"]][int(match["size"])] = float(str(row["value"]))
    if not all(costs.values()):
        return False
    values = {str(row["name"]): row["value"] for row in rows}
    figure = Figure(figsize=(8.6, 3.4), layout="constrained")
    panels: Any = figure.subplots(1, 2)
    titles = {"add_s": "seconds to add them all", "query_p50_ms": "milliseconds a search (p50)"}
    for axes, (what, by_size) in zip(panels, costs.items(), strict=True):
        points = sorted(by_size.items())
        axes.loglog(*zip(*points, strict=True), marker="o", color=_OURS)
        for size, cost in points:
            axes.annotate(
                f"{cost:,.0f}" if cost >= 100 else f"{cost:.3g}",
                (size, cost),
                (0, 7),
                textcoords="offset points",
                ha="center",
            )
        slope = values.get(f"search/{what.partition('_')[0]}_exponent")
        axes.set(title=titles[what], xlabel=f"vectors in the index (exponent {slope})")
        axes.margins(x=0.12)
        # Whole decades, so that the same slope looks the same in every run.
        axes.set_ylim(*(10.0 ** edge(math.log10(end)) for edge, end in _ends(by_size.values())))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)
    return True


def _ends(costs: Iterable[float]) -> list[tuple[Callable[[float], int], float]]:
    """How to round the least and the largest cost, and both."""
    every = list(costs)
    return [(math.floor, min(every)), (math.ceil, 1.01 * max(every))]


def _label(name: str) -> str:
    """What a ratio is about; empty for other figures."""
    if match := _THINKING.fullmatch(name):
        queries = f"{match['count']} {'query' if match['count'] == '1' else 'queries'}"
        kind = f", {match['kind']}" if match["kind"] else ""
        return f"think about {queries}, {match['model']}{kind}\nbeside two passes of transformers"
    if name == "encode_documents/ratio":
        return "embed documents, o1-embedder-22m\nbeside sentence-transformers"
    return ""


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
