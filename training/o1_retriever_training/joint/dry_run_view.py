"""An estimate as tables for a terminal."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING

from o1_retriever_training.joint.hardware import GIGA

if TYPE_CHECKING:
    from rich.table import Table

    from o1_retriever_training.joint.dry_run import Estimate


def tables(estimate: Estimate) -> list[Table]:
    """What is trained and how long it takes, and the memory of one device by part."""
    return [_work(estimate), _memory(estimate)]


def _work(estimate: Estimate) -> Table:
    table = _table("a step", "in all")
    steps = estimate.steps
    trained = estimate.trained / estimate.parameters
    table.add_row("model", "", "/".join(PurePath(estimate.model).parts[-2:]))
    table.add_row("parameters", "", large(estimate.parameters))
    table.add_row("  trained", "", f"{large(estimate.trained)} ({trained:.2%})")
    table.add_row("rows", "", "unknown" if estimate.rows is None else f"{estimate.rows:,}")
    table.add_row("steps", "", "unknown" if steps is None else f"{steps:,}")
    counted = {
        "tokens": estimate.tokens,
        "  with padding": estimate.padded,
        "  predicted": estimate.labels,
        "FLOPs": estimate.flops,
    }
    for name, value in counted.items():
        table.add_row(name, large(value), "–" if steps is None else large(value * steps))
    seconds = estimate.seconds
    total = "–" if seconds is None else duration(seconds)
    table.add_row("time", duration(estimate.step_seconds), f"[bold]{total}[/bold]")
    return table


def _memory(estimate: Estimate) -> Table:
    hardware = estimate.hardware
    many = f"{estimate.devices} × " if estimate.devices > 1 else ""
    table = _table("memory of one")
    table.columns[0].header = f"{many}{hardware.name}"
    for name, value in estimate.memory.items():
        table.add_row(name, gigabytes(value))
    table.add_section()
    style = "green" if estimate.fits else "bold red"
    table.add_row(f"[{style}]at most[/]", f"[{style}]{gigabytes(estimate.peak)}[/]")
    verdict = "fits" if estimate.fits else "does not fit"
    table.add_row(f"of {gigabytes(hardware.memory)}", f"[{style}]{verdict}[/]")
    return table


def _table(*columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right")
    return table


def large(value: float) -> str:
    """A count in three digits: 7.62 B."""
    for size, unit in (
        (1e21, "Z"),
        (1e18, "E"),
        (1e15, "P"),
        (1e12, "T"),
        (1e9, "B"),
        (1e6, "M"),
        (1e3, "k"),
    ):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


def gigabytes(value: float) -> str:
    """Bytes in GB, as the makers of memory count them."""
    return f"{value / GIGA:,.2f} GB" if value < 100 * GIGA else f"{value / GIGA:,.0f} GB"


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
