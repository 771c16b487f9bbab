"""The curves of the number of thoughts and of their length as one picture."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_MODELS = {"minilm": ("MiniLM, recorded thoughts", "-"), "o1_embedder_22m": ("o1-embedder-22m, its own", ":")}
_LENGTHS = {"minilm": "words", "o1_embedder_22m": "tokens"}


def draw(rows: Sequence[Mapping[str, object]], path: Path) -> None:
    """nDCG@10 against the number of thoughts, and against their length, a colour for each set."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    values = {str(row["name"]): float(str(row["value"])) for row in rows}
    names = list(dict.fromkeys("/".join(name.split("/")[:2]) for name in values))
    figure = Figure(figsize=(10.5, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for place, name in enumerate(names):
        colour = mpl.colormaps["tab10"](place)
        for model, (title, style) in _MODELS.items():
            look: dict[str, Any] = {"color": colour, "linestyle": style, "marker": "o", "markersize": 4}
            label = f"{name}, {title}"
            _line(left, _by_number(values, f"{name}/{model}"), {**look, "label": label})
            _line(right, _by_length(values, f"{name}/{model}", _LENGTHS[model]), look)
    left.set(xlabel="thoughts per query (0: the query alone)", ylabel="nDCG@10")
    right.set(xlabel="words (recorded) or tokens (o1-embedder-22m) of each of three thoughts")
    right.set_xscale("log", base=2)
    right.xaxis.set_major_formatter(mpl.ticker.ScalarFormatter())
    left.xaxis.get_major_locator().set_params(integer=True)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _line(axes: Any, points: list[tuple[int, float]], look: Mapping[str, Any]) -> None:
    if points:
        axes.plot(*zip(*points, strict=True), **look)


def _by_number(values: Mapping[str, float], where: str) -> list[tuple[int, float]]:
    points = [(0, values[f"{where}/never"])] if f"{where}/never" in values else []
    return sorted(points + _matching(values, rf"{re.escape(where)}/n_thoughts=(\d+)"))


def _by_length(values: Mapping[str, float], where: str, unit: str) -> list[tuple[int, float]]:
    return sorted(_matching(values, rf"{re.escape(where)}/n_thoughts=3/{unit}=(\d+)"))


def _matching(values: Mapping[str, float], pattern: str) -> list[tuple[int, float]]:
    found = ((re.fullmatch(pattern, name), value) for name, value in values.items())
    return [(int(match[1]), value) for match, value in found if match]
