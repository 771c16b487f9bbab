"""Do harm to what this library keeps, and count what is lost, doubled or wrong.

Run from the repository's root; every row of docs/reliability.md is one name:

    python -m benchmarks.reliability NAME [NAME ...] [--count N] [--seconds S] [--results FILE]
"""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS, Figure, read, record

NAMES = ("kill_points", "disk", "sharing", "entries", "hostile", "upgrade", "mutants", "soak", "serve")

# Rows whose parts are added up, and what of them.
TOTALS = {
    "kill_points": ("differences",),
    "mutants": ("unexplained",),
    "entries": ("inputs", "uncaught", "not_finite"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and record."""
    options = _options(arguments)
    chosen: dict[str, Any] = {
        name: value
        for name in ("count", "seconds", "only", "stages", "jobs", "outcomes")
        if (value := getattr(options, name)) is not None
    }  # fmt: skip
    for name in options.names:
        print(f"== {name}", flush=True)
        measure = import_module(f"benchmarks.reliability.{name}").measure
        taken = {key: value for key, value in chosen.items() if key in inspect.signature(measure).parameters}
        for measured in measure(**taken):
            figure = replace(measured, name=f"reliability/{measured.name}")
            record(options.results, [figure])
            print(f"{figure.name}: {figure.value} {figure.unit}", flush=True)
        if name in TOTALS:
            record(options.results, [_total(options.results, name, what) for what in TOTALS[name]])


def _total(results: Path, name: str, what: str) -> Figure:
    """What all parts of a row have in the file together, whenever each was measured."""
    pattern = re.compile(rf"reliability/{name}/[^/]+/{what}")
    parts = [row for row in read(results) if pattern.fullmatch(str(row["name"]))]
    value = sum(float(str(row["value"])) for row in parts)
    unit, better = str(parts[0]["unit"]), parts[0]["better"]
    return Figure(name=f"reliability/{name}/{what}", value=value, unit=unit, better=better)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    said = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability", description=said)
    parser.add_argument("names", nargs="+", metavar="NAME", choices=NAMES, help=", ".join(NAMES))
    parser.add_argument("--count", type=int, help="how often (default: what the row's bar asks for)")
    parser.add_argument("--seconds", type=float, help="how long, for the soak (default: 1800), kill_points")
    parser.add_argument("--only", nargs="+", help="some parts of a row")
    parser.add_argument("--stages", nargs="+", help="some kinds of work, for disk")
    parser.add_argument("--jobs", type=int, help="processes at once, for mutants (default: 1)")
    parser.add_argument("--outcomes", type=Path, help="a file to go on with, for kill_points, mutants")
    parser.add_argument("--results", type=Path, default=RESULTS / "reliability.jsonl", help="where to write")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
