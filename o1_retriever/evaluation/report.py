"""A report of an evaluation: a table of all systems, plots, Markdown, and one HTML file that stands alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from o1_retriever.evaluation.comparison import Comparison, Diagnosis, Evaluation, SystemResult
from o1_retriever.evaluation.metrics import write_run
from o1_retriever.evaluation.systems import family_of
from o1_retriever.reporting import (
    counted,
    drawn_svg,
    element,
    escaped,
    html_list,
    html_page,
    html_table,
    markdown_table,
)
from o1_retriever.thought import texts_of

SHOWN = 10  # queries that gain most, and that lose most
Draw: TypeAlias = Callable[[Any, Evaluation], None]
MARK = "*"  # on a time that thoughts from the cache have shortened


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A drawn figure: a name for files, a title for readers, and the SVG element itself."""

    name: str
    title: str
    svg: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What thinking changed for one query."""

    query: str
    text: str
    before: float
    after: float
    thoughts: tuple[str, ...]
    diagnosis: Diagnosis | None = None

    @property
    def gain(self) -> float:
        """The measure with thoughts less the one without."""
        return self.after - self.before


def write_report(evaluation: Evaluation, folder: Path) -> Path:
    """Write `report.md`, `report.html`, `results.jsonl`, `per_query.jsonl` and the runs with their thoughts.

    They go into a folder named after the collection and split below `folder`, which is returned; what was
    there is replaced, but for `history.jsonl`, to which each report adds its figures. Needs the extra `eval`
    for the plots.
    """
    target = folder / _file_name(f"{evaluation.collection.name}-{evaluation.collection.split}")
    (target / "runs").mkdir(parents=True, exist_ok=True)
    for result in evaluation.results:
        write_run(
            target / "runs" / f"{_file_name(result.name)}.trec",
            result.run,
            tag=_file_name(result.name),
            queries=evaluation.collection.queries,
            thoughts=result.thoughts if any(result.thoughts.values()) else None,
        )
    for name, rows in (("results", records(evaluation)), ("per_query", _per_query(evaluation))):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (target / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    drawn = plots(evaluation) + history(evaluation, target / "history.jsonl")
    (target / "plots").mkdir(exist_ok=True)
    for plot in drawn:
        (target / "plots" / f"{plot.name}.svg").write_text(plot.svg, encoding="utf-8")
    (target / "report.md").write_text(markdown(evaluation, drawn), encoding="utf-8")
    (target / "report.html").write_text(as_html(evaluation, drawn), encoding="utf-8")
    return target


def _per_query(evaluation: Evaluation) -> list[dict[str, Any]]:
    """One plain JSON object per query: every measure of every system, what its thoughts changed, and why."""
    diagnoses = evaluation.audit.diagnoses if evaluation.audit else {}
    moved = {
        change.query: {"before": change.before, "after": change.after, "thoughts": list(change.thoughts)}
        for change in changes(evaluation)
    }
    return [
        {
            "_id": key,
            "text": text,
            "systems": {
                result.name: {name: values[key] for name, values in result.values.items()}
                for result in evaluation.results
            },
            **({"thinking": moved[key]} if key in moved else {}),
            **({"diagnosis": asdict(diagnoses[key])} if key in diagnoses else {}),
        }
        for key, text in evaluation.collection.queries.items()
    ]


def history(evaluation: Evaluation, path: Path) -> list[Plot]:
    """Add the figures of a run to those of earlier ones, and draw them all where there are earlier ones."""
    measure, now = evaluation.measure, datetime.now(UTC).isoformat(timespec="seconds")
    rows = [
        {
            "date": now,
            "system": result.name,
            measure: round(result.means[measure], 4),
            "ms_per_query": None if result.cost.cached else round(result.cost.ms_per_query, 2),
            "thought_tokens": round(result.cost.thought_tokens, 1),
        }
        for result in evaluation.results
    ]
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    known = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    dates = list(dict.fromkeys(row["date"] for row in known))
    if len(known) == len(rows):
        return []

    def draw(axes: Any, evaluation: Evaluation) -> None:
        for result in evaluation.results:
            own = {row["date"]: row.get(measure) for row in known if row["system"] == result.name}
            axes.plot([own.get(date) for date in dates], marker="o", linewidth=1.2, label=result.name)
        axes.set_xticks(range(len(dates)), [date[:16].replace("T", " ") for date in dates], rotation=30)
        axes.set(xlabel="run", ylabel=measure)

    title = f"{measure} of {counted(len(dates), 'run')} into this folder"
    return [Plot(name="history", title=title, svg=_drawn(draw, evaluation))]


def records(evaluation: Evaluation) -> list[dict[str, Any]]:
    """One plain JSON object per system: means, 95 % interval, comparison with the first, costs.

    A system that was audited has `controls` too, each with its mean and what the system's own thoughts gain
    over it, and the `verdict`, a sentence.
    """
    compared = evaluation.comparisons()
    return [
        {
            "collection": evaluation.collection.name,
            "split": evaluation.collection.split,
            "queries": len(evaluation.collection.qrels),
            "documents": len(evaluation.collection.corpus.ids),
            "system": result.name,
            "measures": result.means,
            "compared_by": evaluation.measure,
            "interval": list(evaluation.interval(result.name)),
            "against_first": asdict(compared[result.name]) if result.name in compared else None,
            "cost": asdict(result.cost),
            "recall_lost": asdict(result.recall_lost) if result.recall_lost else None,
            **_audit_record(evaluation, result.name),
        }
        for result in evaluation.results
    ]


def _audit_record(evaluation: Evaluation, system: str) -> dict[str, Any]:
    audit = evaluation.audit
    if audit is None or system not in audit.compared:
        return {}
    controls = {
        name: {"mean": audit.means[system][name], **asdict(found)}
        for name, found in audit.compared[system].items()
    }
    return {"controls": controls, "verdict": audit.sentence(system)}


def audit_cells(evaluation: Evaluation) -> tuple[list[str], list[list[str]]]:
    """(heads, rows) of own thoughts against the query alone and each control; no rows without an audit."""
    measure, audit = evaluation.measure, evaluation.audit
    heads = [
        "system",
        f"{measure}, own thoughts",
        "against",
        "its",
        "gain",
        "95 %",
        "p",
        "effect",
        "won, lost",
    ]
    compared = audit.compared if audit else {}
    return heads, [
        [
            system,
            f"{evaluation[system].means[measure]:.4f}",
            other,
            f"{audit.means[system][other]:.4f}" if audit else "",
            f"{found.difference:+.4f}",
            f"{found.low:+.3f} to {found.high:+.3f}",
            f"{found.p_corrected:.4f}",
            f"{found.effect:+.2f}",
            f"{found.wins}, {found.losses}",
        ]
        for system, row in compared.items()
        for other, found in row.items()
    ]


def verdicts(evaluation: Evaluation) -> list[str]:
    """A sentence for each system that was audited."""
    audit = evaluation.audit
    return [f"{system}: {audit.sentence(system)}" for system in audit.compared] if audit else []


AUDIT_TITLE = "Thoughts against controls"
AUDIT_NOTE = (
    "Gain of the system's own thoughts over each: bootstrap interval; paired randomisation test, Holm's "
    "correction for all rows; effect is the mean gain in standard deviations of the gains."
)


def cells(evaluation: Evaluation) -> tuple[list[str], list[list[str]]]:
    """(heads, rows) of the table as text; columns that would be empty are left out."""
    compared = evaluation.comparisons()
    names = list(evaluation.results[0].values)
    costs = ["tokens thought", "repeats", "dropped", "ms/query", "documents/s", "MB", "recall lost"]
    heads = ["system", *names, "95 %", "gain", "p", *costs]
    rows = [_cells_of(evaluation, result, compared.get(result.name)) for result in evaluation.results]
    kept = [place for place in range(len(heads)) if any(row[place] for row in rows)]
    return [heads[place] for place in kept], [[row[place] for place in kept] for row in rows]


def summary(evaluations: Sequence[Evaluation]) -> tuple[list[str], list[list[str]]]:
    """(heads, rows) of several collections, such as the domains of BRIGHT: a row for each, and their mean.

    A column for each system that was measured on all of them.
    """
    every = [{result.name: result.means[each.measure] for result in each.results} for each in evaluations]
    names = [name for name in every[0] if all(name in row for row in every)]
    rows = [
        [each.collection.name, *(f"{row[name]:.4f}" for name in names)]
        for each, row in zip(evaluations, every, strict=True)
    ]
    mean = ["mean", *(f"{np.mean([row[name] for row in every]):.4f}" for name in names)]
    return [evaluations[0].measure, *names], [*rows, mean]


def caption(evaluation: Evaluation) -> str:
    """What the table was measured on and how its columns are meant."""
    collection = evaluation.collection
    queries = counted(len(collection.qrels), "query", "queries")
    documents = counted(len(collection.corpus.ids), "document")
    first = evaluation.results[0].name
    text = (
        f"{collection.name}, split {collection.split}: {queries}, {documents}. Interval, gain and p are of "
        f"{evaluation.measure}: bootstrap; against {first}; paired randomisation test, Holm's correction."
    )
    if collection.excluded:
        text += " Documents that the collection excludes for a query are left out of its rankings."
    if any(result.cost.cached for result in evaluation.results):
        text += f" {MARK} Thoughts came from the cache: the time is shorter than without."
    return text


def _cells_of(evaluation: Evaluation, result: SystemResult, compared: Comparison | None) -> list[str]:
    low, high = evaluation.interval(result.name)
    cost, lost = result.cost, result.recall_lost
    return [
        result.name,
        *(f"{value:.4f}" for value in result.means.values()),
        f"{low:.3f}–{high:.3f}",
        f"{compared.difference:+.4f}" if compared else "",
        f"{compared.p_corrected:.4f}" if compared else "",
        f"{cost.thought_tokens:.1f}" if cost.thought_tokens else "",
        f"{cost.repeats:.2f}" if cost.repeats else "",
        f"{cost.dropped:.2f}" if cost.dropped else "",
        f"{cost.ms_per_query:.1f}{MARK if cost.cached else ''}",
        f"{cost.documents_per_second:,.0f}" if cost.documents_per_second else "",
        f"{cost.peak_mb:,.0f}" if cost.peak_mb else "",
        f"{lost.at_10:.1%} @10, {lost.at_depth:.1%} @{lost.depth}" if lost else "",
    ]


def changes(evaluation: Evaluation) -> list[Change]:
    """What thinking changed for every query, largest gain first."""
    pair = evaluation.thinking_pair()
    if pair is None:
        return []
    plain, thinking = (result.values[evaluation.measure] for result in pair)
    diagnoses = evaluation.audit.diagnoses if evaluation.audit else {}
    found = [
        Change(
            query=key,
            text=text,
            before=plain[key],
            after=thinking[key],
            thoughts=tuple(texts_of(pair[1].thoughts[key])),
            diagnosis=diagnoses.get(key),
        )
        for key, text in evaluation.collection.queries.items()
    ]
    return sorted(found, key=lambda change: (-change.gain, change.query))


def markdown(evaluation: Evaluation, drawn: Sequence[Plot]) -> str:
    """The report in Markdown; plots are files in the folder `plots` beside it."""
    heads, rows = cells(evaluation)
    parts = [f"# {evaluation.collection.name}, {evaluation.collection.split}", ""]
    parts += [markdown_table(heads, rows), "", caption(evaluation), ""]
    if evaluation.audit is not None:
        parts += [
            f"## {AUDIT_TITLE}",
            "",
            markdown_table(*audit_cells(evaluation), texts=(0, 2)),
            "",
            AUDIT_NOTE,
            "",
        ]
        parts += [*(f"- {_one_line(sentence)}" for sentence in verdicts(evaluation)), ""]
    for plot in drawn:
        parts += [f"## {plot.title}", "", f"![{plot.title}](plots/{plot.name}.svg)", ""]
    for title, chosen in _chosen(evaluation):
        parts += [f"## {title}", ""]
        for change in chosen:
            gain = f"{change.before:.3f} → {change.after:.3f}{_one_line(_why(change))}"
            parts.append(f"- **{_one_line(change.text)}** {gain}")
            parts += [f"  - {_one_line(thought)}" for thought in change.thoughts]
        parts.append("")
    if evaluation.collection.report:
        parts += ["## Problems of the collection", "", "```", str(evaluation.collection.report), "```", ""]
    return "\n".join(parts)


def as_html(evaluation: Evaluation, drawn: Sequence[Plot]) -> str:
    """The report as one HTML page with its plots inside; it loads nothing from anywhere."""
    title = f"{evaluation.collection.name}, {evaluation.collection.split}"
    heads, rows = cells(evaluation)
    parts = [element("h1", escaped(title)), html_table(rows, heads)]
    parts.append(element("p", escaped(caption(evaluation))))
    if evaluation.audit is not None:
        heads, rows = audit_cells(evaluation)
        parts += [element("h2", AUDIT_TITLE), html_table(rows, heads), element("p", AUDIT_NOTE)]
        parts.append(html_list(map(escaped, verdicts(evaluation))))
    parts += [element("h2", escaped(plot.title)) + plot.svg for plot in drawn]
    for heading, chosen in _chosen(evaluation):
        parts.append(element("h2", escaped(heading)))
        parts.append(
            html_list(
                f"{element('b', escaped(each.text))} {each.before:.3f} → {each.after:.3f}"
                f"{escaped(_why(each))}"
                f"{html_list(map(escaped, each.thoughts))}"
                for each in chosen
            )
        )
    if evaluation.collection.report:
        parts.append(element("h2", "Problems of the collection"))
        parts.append(element("pre", escaped(evaluation.collection.report)))
    return html_page(title, parts, style=_STYLE)


# The table of systems is wide, and all its columns but the first are numbers.
_STYLE = (
    "table{display:block;overflow-x:auto;font-size:.85em}td,th{text-align:right;white-space:nowrap}"
    "td:first-child,th:first-child{text-align:left}ul ul{color:#555}"
)


def _chosen(evaluation: Evaluation) -> list[tuple[str, list[Change]]]:
    pair = evaluation.thinking_pair()
    if pair is None:
        return []
    found = changes(evaluation)
    helped = [change for change in found if change.gain > 0][:SHOWN]
    hurt = [change for change in reversed(found) if change.gain < 0][:SHOWN]
    against = f"{pair[1].name} against {pair[0].name}, {evaluation.measure}"
    parts = [(f"Thinking helps most ({against})", helped), (f"Thinking hurts most ({against})", hurt)]
    return [part for part in parts if part[1]]


def _why(change: Change) -> str:
    """Why a query gained or lost, with the shares of its thoughts' words; empty without a diagnosis."""
    found = change.diagnosis
    if found is None:
        return ""
    places = " to ".join("none" if place is None else str(place) for place in (found.before, found.after))
    return (
        f": {found.why} (place {places}; {found.new:.0%} of the thoughts' words are new, of these "
        f"{found.in_relevant:.0%} in a relevant document, {found.in_corpus:.0%} in any)"
    )


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.=+-]+", "-", text).strip("-") or "unnamed"


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("*", "\\*").replace("<", "&lt;")


def plots(evaluation: Evaluation) -> list[Plot]:
    """Gain per query, the measure against tokens thought, against time, and against the number of thoughts.

    What needs a system that thinks and one that does not is left out where there are none.
    """
    thinking = [result for result in evaluation.results if result.thoughts_per_query]
    if not thinking or len(evaluation.results) < 2:
        return []
    measure, first = evaluation.measure, evaluation.results[0].name
    figures: list[tuple[str, str, Draw]] = [("gain", f"Gain per query over {first}, sorted", _gain)]
    if any(result.cost.thought_tokens for result in thinking):
        tokens = partial(_costs, cost="thought_tokens", label="tokens thought per query (bars: 95 %)")
        figures.append(("tokens", f"{measure} against tokens thought per query", tokens))
    if any(not result.cost.cached for result in thinking):
        time = partial(_costs, cost="ms_per_query", label="milliseconds per query, in batches (bars: 95 %)")
        figures.append(("time", f"{measure} against milliseconds per query", time))
    figures.append(("thoughts", f"{measure} against the number of thoughts", _curve))
    return [Plot(name=name, title=title, svg=_drawn(draw, evaluation)) for name, title, draw in figures]


def _gain(axes: Any, evaluation: Evaluation) -> None:
    first = evaluation.results[0].values[evaluation.measure]
    for result in _compared(evaluation):
        values = result.values[evaluation.measure]
        gains = sorted((values[key] - first[key] for key in evaluation.collection.qrels), reverse=True)
        axes.plot(np.arange(1, len(gains) + 1), gains, label=result.name, linewidth=1.2)
    axes.axhline(0, color="0.5", linewidth=0.8)
    axes.set(xlabel="queries", ylabel=f"gain in {evaluation.measure}")


def _compared(evaluation: Evaluation) -> list[SystemResult]:
    """The first system with thoughts, as often as it was measured; where there are none, all others."""
    first, *others = evaluation.results
    return [result for result in others if family_of(result.name) == family_of(first.name)] or others


def _costs(axes: Any, evaluation: Evaluation, *, cost: str, label: str) -> None:
    """The measure against one of the costs; a time that the cache has shortened is left out."""
    for family, results in _families(evaluation).items():
        results = [each for each in results if cost != "ms_per_query" or not each.cost.cached]
        results.sort(key=lambda result: float(getattr(result.cost, cost)))
        means = np.array([result.means[evaluation.measure] for result in results])
        ends = np.array([evaluation.interval(result.name) for result in results]).reshape(-1, 2)
        axes.errorbar(
            [getattr(result.cost, cost) for result in results],
            means,
            yerr=[np.maximum(0, means - ends[:, 0]), np.maximum(0, ends[:, 1] - means)],
            fmt="o-",
            capsize=3,
            linewidth=1.2,
            label=family,
        )
    axes.set(xlabel=label, ylabel=evaluation.measure)


def _curve(axes: Any, evaluation: Evaluation) -> None:
    for family, results in _families(evaluation).items():
        points = sorted((result.thoughts_per_query, result.means[evaluation.measure]) for result in results)
        axes.plot(*zip(*points, strict=True), marker="o", linewidth=1.2, label=family)
    axes.set(xlabel="thoughts per query (0: the query alone)", ylabel=evaluation.measure)
    axes.xaxis.get_major_locator().set_params(integer=True)


def _families(evaluation: Evaluation) -> dict[str, list[SystemResult]]:
    """Systems that differ in their number of thoughts alone, by what they have in common."""
    families: dict[str, list[SystemResult]] = {}
    for result in evaluation.results:
        families.setdefault(family_of(result.name), []).append(result)
    return families


def _drawn(draw: Draw, evaluation: Evaluation) -> str:
    def all_of_it(figure: Any) -> None:
        axes = figure.subplots()
        draw(axes, evaluation)
        axes.grid(alpha=0.3)
        figure.legend(loc="outside lower center", ncols=3, fontsize="small", frameon=False)

    return drawn_svg(all_of_it, 7.5, 4.4, extra="eval")
