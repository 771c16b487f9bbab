"""`o1-retriever size`: what a load takes of machines like this one."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from o1_retriever.cli.options import ModelOptions, ThoughtOptions, with_options
from o1_retriever.cli.terminal import output, working, write_json

if TYPE_CHECKING:
    from o1_retriever.embedder import ThinkingEmbedder

_GB = 1e9


@with_options
def size(
    *,
    model: ModelOptions,
    thoughts: ThoughtOptions,
    qps: Annotated[float, typer.Option(min=0.001, help="Queries a second that come.")] = 1.0,
    docs: Annotated[int, typer.Option(min=0, help="Documents in the index.")] = 0,
    within: Annotated[
        float | None, typer.Option(min=0.001, help="Seconds within which 95 of 100 must be answered.")
    ] = None,
    share: Annotated[
        float, typer.Option(min=0, max=1, help="Part of the queries that thinking=auto thinks about.")
    ] = 0.5,
    price: Annotated[float, typer.Option(min=0, help="What a machine like this costs an hour.")] = 0.1,
    json: Annotated[bool, typer.Option("--json", help="As one JSON value.")] = False,
) -> None:
    """Measure the model here for some seconds, and say what a load takes: machines, waiting, memory, money.

    Each tier is a way to think: fast never does, guarded about a part of the queries, always about all.
    """
    from o1_retriever.cli.models import load_embedder
    from o1_retriever.evaluation.sizing import index_needs, measure_costs

    embedder = load_embedder(replace(model, no_cache=True))
    with working("Measuring"):
        costs = measure_costs(embedder, _queries(), settings=thoughts.settings(embedder.settings))
    lengths = [tokens for row in costs.lengths for tokens in row]
    needs = index_needs(docs, embedder.dimension)
    found = {
        "costs": {name: value for name, value in asdict(costs).items() if name != "lengths"},
        "tokens_of_a_thought": round(sum(lengths) / max(1, len(lengths)), 1),
        "thoughts": len(costs.lengths[0]),
        "process_bytes": _resident(),
        "index": asdict(needs),
        "tiers": [_tier(costs, tier, qps, within, price) for tier in _tiers(share)],
    }
    if json:
        write_json(found)
        return
    _show(found, embedder, qps, docs, price)


def _tiers(share: float) -> tuple[Any, ...]:
    from o1_retriever.evaluation.sizing import tiers

    return tiers(share)


def _tier(costs: Any, tier: Any, qps: float, within: float | None, price: float) -> dict[str, Any]:
    from o1_retriever.evaluation.sizing import capacity, cost_of_a_million, machines, simulate

    one = capacity(costs, tier, within_s=within)
    if not one:
        return {
            "name": tier.name,
            "capacity": 0.0,
            "machines": None,
            "p50_ms": None,
            "p95_ms": None,
            "million": None,
        }
    count = machines(qps, one)
    waiting = simulate(costs, qps / count, tier)
    return {
        "name": tier.name,
        "capacity": one,
        "machines": count,
        "p50_ms": waiting.p50_ms,
        "p95_ms": waiting.p95_ms,
        "busy": waiting.busy,
        "batch": waiting.batch,
        "million": cost_of_a_million(one, price),
    }


def _show(found: dict[str, Any], embedder: ThinkingEmbedder, qps: float, docs: int, price: float) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("tier")
    for head in ("one machine", f"for {qps:g}/s", "p50", "p95", "a million"):
        table.add_column(head, justify="right")
    for tier in found["tiers"]:
        if tier["machines"] is None:
            table.add_row(tier["name"], "too slow", *[""] * 4)
            continue
        table.add_row(
            tier["name"],
            f"{tier['capacity']:.1f}/s",
            f"{tier['machines']:,}",
            f"{tier['p50_ms']:,.0f} ms",
            f"{tier['p95_ms']:,.0f} ms",
            f"{tier['million']:,.2f}",
        )
    console = output()
    console.print(table)
    index, process = found["index"], found["process_bytes"]

    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    say(
        f"{found['thoughts']} thoughts of {found['tokens_of_a_thought']} tokens; a machine is given six "
        f"tenths of its capacity, and costs {price:g} an hour."
    )
    say("How long queries wait is simulated: a real server was within a fifth of it up to six tenths of its")
    say("capacity, and slower than it beyond (docs/scaling.md). Measure yours.")
    memory, disk = index["memory"] / _GB, index["disk"] / _GB
    say(f"Memory of one machine: {process / _GB:.1f} GB with the model, {memory:.1f} GB for the index.")
    if docs:
        say(
            f"{docs:,} documents of {embedder.dimension} numbers: {disk:.1f} GB on disk beside the texts, "
            f"{index['add_s'] / 3600:.1f} h to add vectors that are there, {index['open_s']:.0f} s to open."
        )


def _resident() -> int:
    """Bytes of memory of this process, at its highest."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    import sys

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _queries() -> list[str]:
    """Questions of usual lengths, all different."""
    things = ("a mirror", "sea water", "an old battery", "bread dough", "a diesel engine", "wood",
              "a vaccine", "wool", "a thunderstorm", "stainless steel", "a coral reef", "cheese",
              "glass")  # fmt: skip
    asked = (
        "What happens to {} in the cold?", "Why does {} change over the years?", "How is {} made?",
        "What did people believe about {} before it was understood?", "Is {} of any use?",
    )  # fmt: skip
    return [form.format(thing) for form in asked for thing in things]
