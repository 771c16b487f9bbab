"""Two pages in HTML: whether a file of training rows is any good, and how far an adaptation is."""

from __future__ import annotations

import json
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from o1_retriever.reporting import counted, drawn_svg, element, escaped, html_list, html_page, html_table
from o1_retriever_training.ledger import KeyIndex, write_whole
from o1_retriever_training.rows import DataError, TrainingRow, key_of, read_rows
from o1_retriever_training.vote import Agreement

SHOWN = 20
_STEP = 10  # words per bar of a histogram, at least
_BARS = 30  # bars of a histogram, about


@dataclass(slots=True, kw_only=True)
class Quality:
    """What a pass over the rows has found; histograms are counts by their lower edge."""

    rows: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    lengths: dict[str, Counter[int]] = field(default_factory=dict)
    gains: dict[str, Counter[int]] = field(default_factory=dict)
    agreement: Agreement = field(default_factory=Agreement)
    voted: int = 0
    sample: list[TrainingRow] = field(default_factory=list)


def examine(path: str | Path) -> Quality:
    """Look at every row once, in constant memory. Raises `DataError` for an empty file."""
    found = Quality()
    generator = random.Random(0)
    seen = KeyIndex()
    for row in read_rows(path):
        found.rows += 1
        if len(found.sample) < SHOWN:
            found.sample.append(row)
        elif (place := generator.randrange(found.rows)) < SHOWN:
            found.sample[place] = row
        _count(found, row, seen)
    seen.close()
    if not found.rows:
        raise DataError(f"{path} holds no rows; expected some to report on.")
    return found


def _count(found: Quality, row: TrainingRow, seen: KeyIndex) -> None:
    usable = [row.all_thought[place] or "" for place in row.usable]
    found.counts["candidates"] += len(usable)
    found.counts["candidates that failed"] += len(row.all_thought) - len(usable)
    found.counts["rows without a thought"] += row.thought is None
    found.counts["rows without a positive"] += not row.pos
    found.counts["rows with negatives"] += bool(row.neg)
    found.counts["candidates that repeat one of their row"] += len(usable) - len(set(usable))
    for text in usable:
        found.counts["candidates that repeat an earlier one"] += not seen.see(key_of(" ".join(text.split())))
    named = {"query": [row.query], "thought": [row.thought] if row.thought else [], "positive": row.pos[:1]}
    for name, texts in named.items():
        for text in texts:
            found.lengths.setdefault(name, Counter())[len(text.split()) // _STEP * _STEP] += 1
    _count_votes(found, row, usable)


def _count_votes(found: Quality, row: TrainingRow, usable: list[str]) -> None:
    votes = {name: vote for name, vote in row.votes.items() if vote is not None}
    if row.thought is None or not votes or row.thought not in row.all_thought:
        return
    found.voted += 1
    winner = row.all_thought.index(row.thought)
    found.agreement.add(votes, winner, len(usable))
    for name, scores in row.model2scores.items():
        bare, own = row.bare_scores.get(name), scores[winner]
        if bare is not None and own is not None:
            found.agreement.gain(name, own, bare)
            found.gains.setdefault(name, Counter())[math.floor(own - bare)] += 1


def write_page(rows: str | Path, page: str | Path) -> Path:
    """Write the report on a file of rows as one HTML file that needs nothing else; its path."""
    found = examine(rows)
    title = f"Training data: {Path(rows).name}"
    parts = [element("h1", escaped(title)), html_table(_figures(found))]
    parts += [element("h2", "Length in words"), _drawn(found.lengths, _STEP, "words")]
    if found.gains:
        parts.append(element("h2", "Score of the elected thought less that of the bare query"))
        parts.append(_drawn(found.gains, 1, "gain"))
    parts.append(element("h2", counted(len(found.sample), "random row")))
    parts += [_row(row) for row in found.sample]
    write_whole(Path(page), html_page(title, parts, style=_STYLE))
    return Path(page)


_STYLE = (
    ".row{border-top:2px solid #888;margin-top:1.5rem}.row td{width:33%;font-size:.9rem}"
    ".won{background:#eaf6ea}small{color:#666}"
)


def _figures(found: Quality) -> list[tuple[str, str]]:
    lines = [("rows", f"{found.rows:,}"), *((name, f"{count:,}") for name, count in found.counts.items())]
    if found.voted:
        figures = found.agreement.to_dict(found.voted)
        kappa = figures["fleiss_kappa"]
        lines.append(("unanimous votes", f"{figures['unanimous']:.1%}"))
        lines.append(("Fleiss' kappa", "one member" if kappa is None else f"{kappa:.3f}"))
        for name, share in figures["win_rate"].items():
            lines.append((f"{name}: votes for the winner", f"{share:.1%}"))
        for name, gain in figures["mean_gain"].items():
            better = figures["better_than_query"][name]
            lines.append((f"{name}: mean gain over the bare query", f"{gain:+.2f} (better in {better:.1%})"))
    return lines


def _row(row: TrainingRow) -> str:
    """A row with its candidates side by side, the elected one marked."""
    cells = "".join(_candidate(row, place) for place in range(len(row.all_thought)))
    bare = ", ".join(f"{name} {score:.1f}" for name, score in row.bare_scores.items() if score is not None)
    parts = [
        element("h3", escaped(row.query)),
        _note(f"the query alone: {bare}") if bare else "",
        html_list(escaped(document[:600]) for document in row.pos),
        element("table", element("tr", cells)),
        _note(f"{counted(len(row.neg), 'negative')}, such as: {row.neg[0][:300]}") if row.neg else "",
    ]
    return element("div", "".join(parts), class_="row")


def _candidate(row: TrainingRow, place: int) -> str:
    text = row.all_thought[place]
    scores = ", ".join(
        f"{name} {score:.1f}"
        for name, own in row.model2scores.items()
        if (score := own[place] if place < len(own) else None) is not None
    )
    why = next((each.reason for each in row.failures if each.candidate == place), "not recorded")
    shown = element("em", escaped(f"failed: {why}")) if text is None else escaped(text)
    won = text is not None and text == row.thought
    return element("td", f"{shown}<br>{element('small', escaped(scores))}", class_="won" if won else "")


def _note(text: str) -> str:
    return element("p", element("small", escaped(text)))


def _histograms(figure: Any, counts: dict[str, Counter[int]], step: int, label: str) -> None:
    """One panel each; what lies far out is counted in the last bar."""
    panels = figure.subplots(1, len(counts), squeeze=False)[0]
    for axes, (name, bars) in zip(panels, counts.items(), strict=True):
        low, high = min(bars), _most(bars)
        width = step * max(1, math.ceil((high - low) / step / _BARS))
        edges = range(low // width * width, high // width * width + width + 1, width)
        places = [min(place, high) for place in bars]
        axes.hist(places, edges, weights=list(bars.values()), rwidth=0.9, color="#4878a8")
        axes.set(title=name, xlabel=f"{label} (last bar: and more)" if high < max(bars) else label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.yaxis.get_major_locator().set_params(integer=True)
        if low < 0 < high:
            axes.axvline(0, color="#222", linewidth=0.8)
    figure.axes[0].set_ylabel("rows")


def _most(bars: Counter[int]) -> int:
    """The bar above which there is half a percent of all."""
    left = sum(bars.values()) / 200
    for place in sorted(bars, reverse=True):
        left -= bars[place]
        if left < 0:
            return place
    return max(bars)


def _drawn(counts: dict[str, Counter[int]], step: int, label: str) -> str:
    draw, width = partial(_histograms, counts=counts, step=step, label=label), 3.6 * max(2, len(counts))
    return drawn_svg(draw, width, 2.8, extra="train")


class ProgressPage:
    """How far an adaptation is, as an HTML file: what was said, the loss so far, the time left, the verdict.

    Browsers load it again by themselves until the end. What is said goes to `say` as well, and is kept in a
    file beside the page, so that a call that goes on shows what came before it. Nothing is written before
    there is something to show. Leaving the `with` block by an error is written down.
    """

    def __init__(self, page: Path, title: str, say: Callable[[str], None]) -> None:
        self.page, self.title = page, title
        self._tell, self._said = say, page.with_suffix(".jsonl")
        self._state, self._plot = "", ""
        self._begun: tuple[int, float] | None = None  # the first step that was heard of, and when

    def __enter__(self) -> ProgressPage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self._state:
            self._state = f"Stopped by {type(error).__name__}. The same command goes on from here."
            self._write([], over=True)

    def say(self, text: str) -> None:
        """Hand a line on, and write it down."""
        self._tell(text)
        with self._said.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"at": time.strftime("%Y-%m-%d %H:%M"), "said": text}) + "\n")
        self._state, self._begun = text, None
        self._write([])

    def trained(self, step: int, steps: int, history: Sequence[Mapping[str, float]]) -> None:
        """Show a training at `step` of `steps`; `history` has what was logged, also before it went on."""
        first, since = self._begun = self._begun or (step, time.monotonic())
        left = (steps - step) * (time.monotonic() - since) / (step - first) if step > first else None
        wait = "" if left is None else f", about {max(1, round(left / 60))} min left"
        self._state = f"Training, step {step:,} of {steps:,}{wait}"
        losses = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
        self._plot = drawn_svg(partial(_curve, losses=losses, steps=steps), 7.2, 2.6, extra="train")
        self._write([])

    def end(self, sentence: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Show what it came to."""
        self._state = sentence
        self._write([html_table(rows, heads)], over=True)

    def _write(self, parts: Sequence[str], *, over: bool = False) -> None:
        said = self._said.read_text(encoding="utf-8") if self._said.is_file() else ""
        lines = []
        for line in said.splitlines():
            with suppress(ValueError):  # one that was cut short
                lines.append(json.loads(line))
        page = [
            element("h1", escaped(self.title)),
            element("p", element("strong", escaped(self._state))),
            *parts,
            self._plot,
            html_table([(line["at"], line["said"]) for line in lines]),
            _note(f"Written at {time.strftime('%H:%M:%S')}."),
        ]
        if not over:
            page.append(element("script", "setTimeout(() => location.reload(), 10000)"))
        write_whole(self.page, html_page(self.title, page))


def _curve(figure: Any, losses: Sequence[tuple[float, float]], steps: int) -> None:
    axes = figure.subplots()
    axes.plot(*zip(*losses, strict=True), color="#4878a8")
    axes.set(xlim=(0, steps), xlabel="step", ylabel="loss")
    axes.spines[["top", "right"]].set_visible(False)
