"""Plots of an evaluation as SVG."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from o1_retriever.evaluation.comparison import Evaluation, SystemResult
from o1_retriever.extras import require


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A drawn figure: a name for files, a title for readers, and the SVG element itself."""

    name: str
    title: str
    svg: str


def plots(evaluation: Evaluation, *, measure: str) -> list[Plot]:
    """Gain per query, the measure against tokens thought, and against the number of thoughts.

    What needs a system that thinks and one that does not is left out where there are none.
    """
    thinking = [result for result in evaluation.results if _thoughts_per_query(result)]
    if not thinking or len(evaluation.results) < 2:
        return []
    first = evaluation.results[0]
    drawn = [
        Plot(
            name="gain",
            title=f"Gain per query over {first.name}, sorted",
            svg=_drawn(lambda axes: _gain(axes, evaluation, measure)),
        )
    ]
    if any(result.cost.thought_tokens for result in thinking):
        drawn.append(
            Plot(
                name="tokens",
                title=f"{measure} against tokens thought per query",
                svg=_drawn(lambda axes: _tokens(axes, evaluation, measure)),
            )
        )
    drawn.append(
        Plot(
            name="k",
            title=f"{measure} against the number of thoughts",
            svg=_drawn(lambda axes: _curve(axes, evaluation, measure)),
        )
    )
    return drawn


def _gain(axes: Any, evaluation: Evaluation, measure: str) -> None:
    first = evaluation.results[0]
    for result in _compared(evaluation):
        gains = sorted(
            (result.values[measure][key] - first.values[measure][key] for key in evaluation.collection.qrels),
            reverse=True,
        )
        axes.plot(np.arange(1, len(gains) + 1), gains, label=result.name, linewidth=1.2)
    axes.axhline(0, color="0.5", linewidth=0.8)
    axes.set(xlabel="queries", ylabel=f"gain in {measure}")


def _compared(evaluation: Evaluation) -> list[SystemResult]:
    """The first system with thoughts, as often as it was measured; where there are none, all others."""
    first, *others = evaluation.results
    return [result for result in others if _family(result) == _family(first)] or others


def _tokens(axes: Any, evaluation: Evaluation, measure: str) -> None:
    for family, results in _families(evaluation).items():
        results.sort(key=lambda result: result.cost.thought_tokens)
        means = np.array([result.means[measure] for result in results])
        ends = np.array([evaluation.interval(result.name, measure) for result in results])
        axes.errorbar(
            [result.cost.thought_tokens for result in results],
            means,
            yerr=[np.maximum(0, means - ends[:, 0]), np.maximum(0, ends[:, 1] - means)],
            fmt="o-",
            capsize=3,
            linewidth=1.2,
            label=family,
        )
    axes.set(xlabel="tokens thought per query (bars: 95 %)", ylabel=measure)


def _curve(axes: Any, evaluation: Evaluation, measure: str) -> None:
    for family, results in _families(evaluation).items():
        points = sorted((_thoughts_per_query(result), result.means[measure]) for result in results)
        axes.plot(*zip(*points, strict=True), marker="o", linewidth=1.2, label=family)
    axes.set(xlabel="thoughts per query (0: the query alone)", ylabel=measure)
    axes.xaxis.get_major_locator().set_params(integer=True)


def _families(evaluation: Evaluation) -> dict[str, list[SystemResult]]:
    """Systems that differ in their number of thoughts alone, by what they have in common."""
    families: dict[str, list[SystemResult]] = {}
    for result in evaluation.results:
        families.setdefault(_family(result), []).append(result)
    return families


def _family(result: SystemResult) -> str:
    return " ".join(part for part in result.name.split(" ") if part != "never" and not part.startswith("k="))


def _thoughts_per_query(result: SystemResult) -> float:
    counts = [sum(not thought.failed for thought in row) for row in result.thoughts.values()]
    return float(np.mean(counts)) if counts else 0.0


def _drawn(draw: Callable[[Any], None]) -> str:
    require("matplotlib", extra="eval", purpose="Drawing the plots of a report")
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # A fixed salt and no date: the same evaluation gives the same file.
    with mpl.rc_context({"svg.hashsalt": "o1-retriever", "svg.fonttype": "none"}):
        figure = Figure(figsize=(7.5, 4.4), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        draw(axes)
        axes.grid(alpha=0.3)
        figure.legend(loc="outside lower center", ncols=3, fontsize="small", frameon=False)
        target = io.StringIO()
        figure.savefig(target, format="svg", metadata={"Date": None})
    text = target.getvalue()
    return text[text.index("<svg") :]
