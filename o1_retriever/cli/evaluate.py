"""`o1-retriever eval` and `calibrate`: what thinking does on questions whose answers are known.

`eval` says whether it helps on a collection, how much, and at what cost; `calibrate` how much thoughts
should count in your own index, and how probable it is that a hit is relevant.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from o1_retriever.cli.embed import RayOptions
from o1_retriever.cli.index import check_index
from o1_retriever.cli.options import (
    IndexOptions,
    ModelOptions,
    RankingOptions,
    SamplingOptions,
    ThoughtOptions,
    with_options,
)
from o1_retriever.cli.terminal import messages, output, warn, working, write_json
from o1_retriever.errors import InputError, SettingsError
from o1_retriever.reporting import counted, markdown_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from o1_retriever.embedder import ThinkingEmbedder
    from o1_retriever.evaluation.calibration import Calibration
    from o1_retriever.evaluation.comparison import Evaluation

_FORMATS = ("none", "nf4")
# Columns that a narrow terminal does without, the first ones first, once the other measures are left out.
_COSTS = ("MB", "documents/s", "recall lost", "dropped", "repeats", "95 %", "tokens thought")


_data = partial(typer.Option, rich_help_panel="Data")
_systems = partial(typer.Option, rich_help_panel="Systems")
_output = partial(typer.Option, rich_help_panel="Output")


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """What is measured on."""

    data: Annotated[
        list[str],
        _data(
            help="Folder in BEIR format, hub:OWNER/NAME, mteb:TASK, mteb:BENCHMARK, or an ir_datasets name "
            "(repeatable)."
        ),
    ]
    split: Annotated[str, _data(help="Whose judgments.")] = "test"
    strict: Annotated[bool, _data("--strict", help="Refuse a malformed collection.")] = False


@dataclass(frozen=True, kw_only=True)
class SystemOptions:
    """What is compared."""

    n_thoughts: Annotated[
        str, _systems("-n", "--n-thoughts", help="Numbers of thoughts to compare, such as never,1,3.")
    ] = "never,1,3"
    pooling: Annotated[str, _systems(help="Over several thoughts: mean, best, or mean,best.")] = "mean"
    hybrid: Annotated[bool, _systems("--hybrid", help="Also fused with BM25.")] = False
    bm25: Annotated[bool, _systems("--bm25", help="Also BM25, with the thoughts too.")] = False
    hyde: Annotated[bool, _systems("--hyde", help="Also HyDE with the thoughts.")] = False
    quantize: Annotated[str, _systems(help="Weights: none, nf4, or none,nf4.")] = "none"
    dim: Annotated[str, _systems(help="Dimensions, such as all,128.")] = "all"
    hnsw: Annotated[bool, _systems("--hnsw", help="Search an index's graph and report the recall lost.")] = (
        False
    )
    control: Annotated[
        bool,
        _systems(
            "--control", help="Also with thoughts that say nothing about the query: is it what they say?"
        ),
    ] = False
    robustness: Annotated[bool, _systems("--robustness", help="Again under typos, synonyms and case.")] = (
        False
    )


@dataclass(frozen=True, kw_only=True)
class ResultOptions:
    """Where results go."""

    report: Annotated[Path | None, _output(help="Folder for the report, run files and thoughts.")] = None
    work: Annotated[Path | None, _output(help="Folder that keeps encoded corpora.")] = None
    as_json: Annotated[bool, _output("--json", help="One JSON object a system.")] = False


@with_options
def evaluate(
    *,
    data: DataOptions,
    model: ModelOptions,
    systems: SystemOptions,
    thoughts: SamplingOptions,
    results: ResultOptions,
    cluster: RayOptions,
) -> None:
    """Measure retrieval with and without thoughts: one table per collection, with statistics and costs."""
    from o1_retriever.evaluation.comparison import evaluate as measure
    from o1_retriever.evaluation.controls import audited
    from o1_retriever.evaluation.sources import follow_wording, members, open_collection, variants
    from o1_retriever.evaluation.systems import Plan, parse_dimensions, parse_pooling, parse_thoughts
    from o1_retriever.thought import ThoughtSettings

    workers = cluster.cluster()
    thoughts.settings(ThoughtSettings())  # refuses a bad value before anything is loaded
    formats = list(dict.fromkeys(part.strip() for part in systems.quantize.split(",")))
    if unknown := [name for name in formats if name not in _FORMATS]:
        raise SettingsError(f"Found --quantize {unknown[0]!r}; expected {' or '.join(_FORMATS)}, or both.")
    numbers = parse_thoughts(systems.n_thoughts)
    if systems.control and not any(numbers):
        raise SettingsError("Found --control and no thoughts to compare.", hint="Type: --n-thoughts never,3")
    plan = Plan(
        thoughts=numbers,
        dimensions=parse_dimensions(systems.dim),
        pooling=parse_pooling(systems.pooling),
        hybrid=systems.hybrid,
        bm25=systems.bm25,
        hyde=systems.hyde,
        hnsw=systems.hnsw,
        work=results.work,
    )
    names = [member for name in data.data for member in members(name)]
    collections = [open_collection(name, split=data.split, strict=data.strict) for name in names]
    for collection in collections:
        if collection.report:
            warn(str(collection.report))
    embedders = _embedders(model, formats)
    if workers is not None:
        embedders = {name: workers.embedder(each) for name, each in embedders.items()}
    settings = thoughts.settings(next(iter(embedders.values())).settings)
    done = []
    for collection in collections:
        for variant in variants(collection) if systems.robustness else [collection]:
            own = {name: follow_wording(each, collection, variant) for name, each in embedders.items()}
            found = measure(variant, plan.systems(variant.corpus, own, settings))
            if systems.control:
                found = audited(found, plan, own, settings)
            _show(found, results)
            done.append(found)
    if len(done) > 1:
        _show_summary(done, results)


def _embedders(options: ModelOptions, formats: list[str]) -> dict[str, ThinkingEmbedder]:
    from o1_retriever.cli.models import encoder_name, load_embedder, model_name

    name = Path(model_name(options) or encoder_name(options)).name
    if formats == ["none"]:
        return {name: load_embedder(options)}
    return {
        name if kind == "none" else f"{name} {kind}": load_embedder(replace(options, four_bit=kind == "nf4"))
        for kind in formats
    }


def _show(evaluation: Evaluation, results: ResultOptions) -> None:
    from o1_retriever.evaluation.report import (
        AUDIT_NOTE,
        audit_cells,
        caption,
        cells,
        records,
        verdicts,
        write_report,
    )

    if results.report is not None:
        messages().print(f"Written: {write_report(evaluation, results.report)}")
    if results.as_json:
        for row in records(evaluation):
            write_json(row)
        return
    _, *others = evaluation.results[0].values
    _print_table(*cells(evaluation), caption(evaluation), [*reversed(others), *_COSTS])
    if evaluation.audit is not None:
        heads, rows = audit_cells(evaluation)
        above = [[""], *rows]
        # A system and its own figure stand in its first row alone.
        rows = [
            row if row[0] != last[0] else ["", "", *row[2:]] for row, last in zip(rows, above, strict=False)
        ]
        _print_table(heads, rows, AUDIT_NOTE, ["won, lost", "95 %"])
        for sentence in verdicts(evaluation):
            output().print(sentence, highlight=False)


def _show_summary(evaluations: Sequence[Evaluation], results: ResultOptions) -> None:
    from o1_retriever.evaluation.report import summary

    heads, rows = summary(evaluations)
    if results.report is not None:
        target = results.report / "summary.md"
        target.write_text(f"# {heads[0]}\n\n{markdown_table(heads, rows)}\n", encoding="utf-8")
        messages().print(f"Written: {target}")
    if not results.as_json:
        _print_table(heads, rows, f"{heads[0]} of each collection.", [])


def _print_table(
    heads: Sequence[str], lines: Sequence[Sequence[str]], note: str, spared: Sequence[str]
) -> None:
    """Print a table and the note below it; a narrow terminal is spared some columns, the first ones first."""
    from rich.table import Table

    console = output()
    widths = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]
    if not console.is_terminal:
        console.width = max(console.width, _table_width(widths))  # a file has room
    shown = _fitting(heads, widths, console.width, spared)
    if len(shown) < len(heads):
        left_out = ", ".join(head for place, head in enumerate(heads) if place not in shown)
        note += f" Left out, as the terminal is narrow: {left_out} (--json and --report have all)."
    table = Table()
    for place in shown:
        table.add_column(heads[place], justify="right" if place else "left", overflow="fold")
    for line in lines:
        table.add_row(*(line[place] for place in shown))
    console.print(table)
    console.print(note, style="italic")


def _fitting(heads: Sequence[str], widths: Sequence[int], room: int, spared: Sequence[str]) -> list[int]:
    """Places of the columns that fit into so many characters; `spared` are left out in that order."""
    shown = list(range(len(heads)))
    for head in spared:
        if _table_width([widths[place] for place in shown]) <= room:
            break
        shown = [place for place in shown if heads[place] != head]
    return shown


def _table_width(widths: Sequence[int]) -> int:
    return sum(widths) + 3 * len(widths) + 1


_QUESTIONS = 'Write lines such as {"query": "your question", "relevant": ["id or source of a passage"]}'


@with_options
def calibrate(
    questions: Annotated[
        Path, typer.Argument(help="A .jsonl file: `query`, and `relevant`, a list of ids or sources.")
    ],
    *,
    ranking: RankingOptions,
    target: IndexOptions,
    model: ModelOptions,
    thoughts: ThoughtOptions,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Find out from QUESTIONS whose passages you know how much thoughts should count in your index.

    And how probable it is that a hit is relevant: that is kept beside the index, for --min-relevance.
    """
    from o1_retriever.thought import ThoughtSettings

    relevant = read_questions(questions)
    thoughts.settings(ThoughtSettings())
    from o1_retriever.cli.models import load_embedder
    from o1_retriever.evaluation.calibration import calibrate
    from o1_retriever.index.index import Index
    from o1_retriever.search.retriever import Retriever

    with Index(target.index, create=False) as index:
        check_index(index, target, model)
    embedder = load_embedder(model)
    with Index(target.index, embedder) as index:
        retriever = Retriever(embedder, index, hybrid=ranking.hybrid, pooling=ranking.pooling)
        with working("Thinking"):
            found = calibrate(retriever, relevant, settings=thoughts.settings(embedder.settings))
        if as_json:
            write_json(found.to_dict())
        else:
            _show_calibration(found)
        found.keep(index)  # after what was found is said, where it cannot be written


def read_questions(path: Path) -> dict[str, list[str]]:
    """Relevant passages by question. Raises `InputError` with the line that cannot be used."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}.") from error
    found: dict[str, list[str]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("query"), str) or not _are_names(row):
            raise InputError(f"{path}, line {number} is {line.strip()!r:.80}.", hint=_QUESTIONS)
        found.setdefault(row["query"], []).extend(row["relevant"])
    return found


def _are_names(row: dict[str, object]) -> bool:
    names = row.get("relevant")
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


def _show_calibration(found: Calibration) -> None:
    from rich.table import Table

    table = Table(box=None, padding=(0, 1), header_style="dim")
    table.add_column("query_weight", justify="right")
    table.add_column("nDCG@10", justify="right")
    table.add_row("the query alone", f"{found.alone:.4f}")
    for weight, value in found.by_weight.items():
        chosen = "bold" if weight == found.query_weight else None
        table.add_row(f"{weight:g}", f"{value:.4f}", style=chosen)
    line = 'thinking = "never"' if found.query_weight is None else f"query_weight = {found.query_weight:g}"
    output().print(table)
    output().print(
        f"{found.sentence} ({counted(found.questions, 'question')}, p = {found.p:.3f})", highlight=False
    )
    output().print(f"For o1-retriever.toml: {line}", highlight=False)
    kinds = [each for name, each in found.relevance.items() if name.endswith(_kind_of(found.query_weight))]
    for each in kinds:
        output().print(
            f"--min-relevance: of other questions the probabilities are off by {each.calibration_error:.3f} "
            f"on average; mean squared error {each.brier:.3f}, {each.brier_of_base_rate:.3f} without them.",
            highlight=False,
        )


def _kind_of(query_weight: float | None) -> str:
    return "query alone" if query_weight is None else f"query_weight {query_weight:g}"
