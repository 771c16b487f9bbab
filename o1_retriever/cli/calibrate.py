"""`o1-retriever calibrate`: how much thoughts should count and which hits are relevant, by questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from o1_retriever.cli.index import check_index
from o1_retriever.cli.options import IndexOptions, ModelOptions, RankingOptions, ThoughtOptions, with_options
from o1_retriever.cli.terminal import output, working, write_json
from o1_retriever.errors import InputError
from o1_retriever.reporting import counted

if TYPE_CHECKING:
    from o1_retriever.evaluation.calibration import Calibration

_FORMAT = 'Write lines such as {"query": "your question", "relevant": ["id or source of a passage"]}'


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
            _show(found)
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
            raise InputError(f"{path}, line {number} is {line.strip()!r:.80}.", hint=_FORMAT)
        found.setdefault(row["query"], []).extend(row["relevant"])
    return found


def _are_names(row: dict[str, object]) -> bool:
    names = row.get("relevant")
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


def _show(found: Calibration) -> None:
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
    kinds = [each for name, each in found.relevance.items() if name.endswith(_kind(found.query_weight))]
    for each in kinds:
        output().print(
            f"--min-relevance: of other questions the probabilities are off by {each.calibration_error:.3f} "
            f"on average; mean squared error {each.brier:.3f}, {each.brier_of_base_rate:.3f} without them.",
            highlight=False,
        )


def _kind(query_weight: float | None) -> str:
    return "query alone" if query_weight is None else f"query_weight {query_weight:g}"
