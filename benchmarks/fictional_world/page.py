"""The tables and the picture of docs/fictional-world.md, made of the recorded figures and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.fictional_world.variants import ABLATIONS, DRAWN
from o1_retriever.reporting import markdown_table

Rows = Sequence[Mapping[str, object]]

TITLES = {
    "no_thoughts": "trained without thoughts",
    "joint_not_thinking": "trained to think, not thinking",
    "thinking": "trained to think, thinking",
}
WAYS = {
    "not_thinking": "not thinking",
    "thinking": "thinking",
    **{f"n_thoughts={number}": f"{number} drawn" for number in DRAWN},
}
_COMMITTEE = {"reference": "right\nthoughts", "committee=on": "elected", "committee=off": "first"}
_FAST, _THINKING = "tab:gray", "tab:blue"


def two_hop_table(rows: Rows) -> str:
    """The three figures of the recipe."""
    values = _values(rows)
    body = [[title, f"{values[f'fictional_world/two_hop/{name}']:.3f}"] for name, title in TITLES.items()]
    return markdown_table(["nDCG@10, held-out two-hop questions, test", ""], body)


def ablation_table(rows: Rows) -> str:
    """A row for every variant, a column for every way to search with it."""
    values = _values(rows)
    body = [
        [variant.title, *(_cell(values, variant.name, way) for way in WAYS)]
        for variant in ABLATIONS
        if _place(variant.name, "not_thinking") in values
    ]
    return markdown_table(["nDCG@10, dev", *WAYS.values()], body)


def draw(rows: Rows, path: Path) -> None:
    """The three figures of the recipe, and what each switch changes."""
    from matplotlib.figure import Figure

    values = _values(rows)
    figure = Figure(figsize=(11, 6.2), layout="constrained")
    panels = figure.subplots(2, 3, sharey=True).flat
    _recipe(next(panels), values)
    _committee(next(panels), values)
    _thoughts(next(panels), values)
    for name, title, own in (
        ("lambda", "weight of the contrastive loss, λ", 0.5),
        ("z", "probability that z draws the thinking vector", None),
        ("thought_dropout", "thought dropout", 0.0),
    ):
        _curve(next(panels), values, name, title, own)
    figure.axes[0].set_ylabel("nDCG@10, test")
    for axes in figure.axes[1:]:
        axes.set_ylabel("nDCG@10, dev")
    for axes in figure.axes:
        axes.set_ylim(0, 1.13)
        axes.tick_params(labelleft=True)
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _recipe(axes: Any, values: Mapping[str, float]) -> None:
    heights = [values[f"fictional_world/two_hop/{name}"] for name in TITLES]
    labels = ["no thoughts", "joint,\nnot thinking", "joint,\nthinking"]
    bars = axes.bar(labels, heights, color=["tab:orange", _FAST, _THINKING], width=0.6)
    axes.bar_label(bars, fmt="%.2f")
    axes.set_title("the recipe", fontsize="medium")


def _committee(axes: Any, values: Mapping[str, float]) -> None:
    for place, name in enumerate(_COMMITTEE):
        for shift, way, colour in ((-0.2, "not_thinking", _FAST), (0.2, "thinking", _THINKING)):
            if _place(name, way) in values:
                bar = axes.bar([place + shift], [values[_place(name, way)]], 0.38, color=colour)
                axes.bar_label(bar, fmt="%.2f", fontsize="small")
    axes.set_xticks(range(len(_COMMITTEE)), list(_COMMITTEE.values()))
    axes.set_title("an expert who errs: which thought is learned", fontsize="medium")


def _thoughts(axes: Any, values: Mapping[str, float]) -> None:
    for name, title, style in (
        ("committee=on", "learned from elected thoughts", "-"),
        ("committee=off", "from first ones", ":"),
    ):
        places = {count: _place(name, f"n_thoughts={count}") for count in DRAWN}
        points = [(count, values[place]) for count, place in places.items() if place in values]
        if points:
            axes.plot(*zip(*points, strict=True), style, marker="o", color=_THINKING, label=title)
    axes.set_xticks(DRAWN)
    axes.set_xlabel("thoughts drawn per query, k")
    if axes.lines:
        axes.legend(fontsize="small", loc="center right")


def _curve(axes: Any, values: Mapping[str, float], name: str, title: str, own: float | None) -> None:
    """One switch along its values; the recipe's own value of it is the reference."""
    for way, label, colour in (("not_thinking", "not thinking", _FAST), ("thinking", "thinking", _THINKING)):
        points = [] if own is None else [(own, values[_place("reference", way)])]
        for variant in ABLATIONS:
            kind, _, value = variant.name.partition("=")
            if kind == name and _place(variant.name, way) in values:
                points.append((float(value), values[_place(variant.name, way)]))
        if points:
            axes.plot(*zip(*sorted(points), strict=True), marker="o", color=colour, label=label)
    axes.set_xlabel(title)
    if axes.lines:
        axes.legend(fontsize="small", loc="best")


def _place(variant: str, way: str) -> str:
    return f"fictional_world/ablation/{variant}/{way}"


def _cell(values: Mapping[str, float], variant: str, way: str) -> str:
    place = _place(variant, way)
    return f"{values[place]:.3f}" if place in values else "–"


def _values(rows: Rows) -> dict[str, float]:
    return {str(row["name"]): float(str(row["value"])) for row in rows}
