"""A report of an evaluation: Markdown, and one HTML file that needs nothing else."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from o1_retriever.evaluation.comparison import Evaluation, SystemResult
from o1_retriever.evaluation.plots import Plot, plots
from o1_retriever.evaluation.runs import write_run
from o1_retriever.evaluation.table import caption, cells, markdown_table, records

SHOWN = 10  # queries that gain most, and that lose most


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What thinking changed for one query."""

    query: str
    text: str
    before: float
    after: float
    thoughts: tuple[str, ...]

    @property
    def gain(self) -> float:
        """The measure with thoughts less the one without."""
        return self.after - self.before


def write_report(evaluation: Evaluation, folder: Path, *, measure: str | None = None) -> Path:
    """Write `report.md`, `report.html`, `results.jsonl`, `per_query.jsonl` and the runs with their thoughts.

    They go into a folder named after the collection and split below `folder`, which is returned. Needs the
    extra `eval` for the plots.
    """
    measure = measure or next(iter(evaluation.results[0].values))
    name = _file_name(f"{evaluation.collection.name}-{evaluation.collection.split}")
    target = folder / name
    (target / "runs").mkdir(parents=True, exist_ok=True)
    for result in evaluation.results:
        write_run(
            target / "runs" / f"{_file_name(result.name)}.trec",
            result.run,
            tag=_file_name(result.name),
            queries=evaluation.collection.queries,
            thoughts=result.thoughts if any(result.thoughts.values()) else None,
        )
    _write_lines(target / "results.jsonl", records(evaluation, measure=measure))
    _write_lines(target / "per_query.jsonl", _per_query(evaluation))
    drawn = plots(evaluation, measure=measure)
    (target / "plots").mkdir(exist_ok=True)
    for plot in drawn:
        (target / "plots" / f"{plot.name}.svg").write_text(plot.svg, encoding="utf-8")
    (target / "report.md").write_text(as_markdown(evaluation, drawn, measure=measure), encoding="utf-8")
    (target / "report.html").write_text(as_html(evaluation, drawn, measure=measure), encoding="utf-8")
    return target


def thinking_pair(evaluation: Evaluation) -> tuple[SystemResult, SystemResult] | None:
    """(first system without thoughts, the same one with most thoughts), None where there are no such two.

    Where nothing goes by the first one's name, any system that thinks is taken.
    """
    plain = next((result for result in evaluation.results if not _thinks(result)), None)
    thinking = [result for result in evaluation.results if _thinks(result)]
    if plain is None or not thinking:
        return None
    family = re.compile(re.escape(plain.name.removesuffix("never")) + r"k=\d+")
    return plain, ([result for result in thinking if family.fullmatch(result.name)] or thinking)[-1]


def changes(evaluation: Evaluation, *, measure: str) -> list[Change]:
    """What thinking changed for every query, largest gain first."""
    pair = thinking_pair(evaluation)
    if pair is None:
        return []
    plain, thinking = pair
    found = [
        Change(
            query=key,
            text=text,
            before=plain.values[measure][key],
            after=thinking.values[measure][key],
            thoughts=tuple(thought.text for thought in thinking.thoughts[key] if not thought.failed),
        )
        for key, text in evaluation.collection.queries.items()
    ]
    return sorted(found, key=lambda change: (-change.gain, change.query))


def as_markdown(evaluation: Evaluation, drawn: Sequence[Plot], *, measure: str) -> str:
    """The report in Markdown; plots are files in the folder `plots` beside it."""
    heads, rows = cells(evaluation, measure=measure)
    parts = [f"# {evaluation.collection.name}, {evaluation.collection.split}", ""]
    parts += [*markdown_table(heads, rows), "", caption(evaluation, measure=measure), ""]
    for plot in drawn:
        parts += [f"## {plot.title}", "", f"![{plot.title}](plots/{plot.name}.svg)", ""]
    for title, chosen in _chosen(evaluation, measure):
        parts += [f"## {title}", ""]
        for change in chosen:
            parts.append(f"- **{_one_line(change.text)}** {change.before:.3f} → {change.after:.3f}")
            parts += [f"  - {_one_line(thought)}" for thought in change.thoughts]
        parts.append("")
    if evaluation.collection.report:
        parts += ["## Problems of the collection", "", "```", str(evaluation.collection.report), "```", ""]
    return "\n".join(parts)


def as_html(evaluation: Evaluation, drawn: Sequence[Plot], *, measure: str) -> str:
    """The report as one HTML page with its plots inside; it loads nothing from anywhere."""
    escape = html.escape
    title = escape(f"{evaluation.collection.name}, {evaluation.collection.split}")
    heads, rows = cells(evaluation, measure=measure)
    parts = [f"<h1>{title}</h1>", "<table><thead><tr>"]
    parts += [f"<th>{escape(head)}</th>" for head in heads]
    parts.append("</tr></thead><tbody>")
    parts += ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    parts.append(f"</tbody></table><p>{escape(caption(evaluation, measure=measure))}</p>")
    parts += [f"<h2>{escape(plot.title)}</h2>{plot.svg}" for plot in drawn]
    for heading, chosen in _chosen(evaluation, measure):
        parts.append(f"<h2>{escape(heading)}</h2><ul>")
        for change in chosen:
            thoughts = "".join(f"<li>{escape(thought)}</li>" for thought in change.thoughts)
            values = f"{change.before:.3f} → {change.after:.3f}"
            parts.append(f"<li><b>{escape(change.text)}</b> {values}<ul>{thoughts}</ul></li>")
        parts.append("</ul>")
    if evaluation.collection.report:
        parts.append(
            f"<h2>Problems of the collection</h2><pre>{escape(str(evaluation.collection.report))}</pre>"
        )
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;display:block;overflow-x:auto;font-size:.85em}"
    "td,th{padding:.2rem .6rem;border-bottom:1px solid #ddd;text-align:right;white-space:nowrap}"
    "td:first-child,th:first-child{text-align:left}svg{max-width:100%;height:auto}ul ul{color:#555}"
)


def _thinks(result: SystemResult) -> bool:
    return any(not thought.failed for row in result.thoughts.values() for thought in row)


def _chosen(evaluation: Evaluation, measure: str) -> list[tuple[str, list[Change]]]:
    pair = thinking_pair(evaluation)
    if pair is None:
        return []
    found = changes(evaluation, measure=measure)
    helped = [change for change in found if change.gain > 0][:SHOWN]
    hurt = [change for change in reversed(found) if change.gain < 0][:SHOWN]
    against = f"{pair[1].name} against {pair[0].name}, {measure}"
    parts = [(f"Thinking helps most ({against})", helped), (f"Thinking hurts most ({against})", hurt)]
    return [part for part in parts if part[1]]


def _per_query(evaluation: Evaluation) -> list[dict[str, object]]:
    return [
        {
            "_id": key,
            "text": text,
            "systems": {
                result.name: {name: values[key] for name, values in result.values.items()}
                for result in evaluation.results
            },
        }
        for key, text in evaluation.collection.queries.items()
    ]


def _write_lines(path: Path, rows: Sequence[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.=+-]+", "-", text).strip("-") or "unnamed"


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("*", "\\*").replace("<", "&lt;")
