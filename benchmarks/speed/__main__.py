"""Measure what thinking costs, and write it to benchmarks/results/speed.jsonl.

Run from the repository's root:

    python -m benchmarks.speed [--full] [NAME ...]

Without names everything is measured: the quick set takes minutes, `--full` about an hour. Ratios compare two
ways side by side in one run on the same machine.
"""

from __future__ import annotations

import argparse
import logging
from importlib import import_module

from benchmarks.record import RESULTS, record

NAMES = ("queries", "roofline", "documents", "cached", "growth", "importing", "gpu")


def main() -> None:
    """Measure, print and record."""
    said = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=said)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)}; default: all")
    parser.add_argument("--full", action="store_true", help="large models and collections too")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(NAMES))
    if unknown:
        parser.error(f"unknown {', '.join(unknown)}; expected some of {', '.join(NAMES)}")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    for name in options.names or NAMES:
        print(f"== {name}")
        figures = import_module(f"benchmarks.speed.{name}").measure(full=options.full)
        record(RESULTS / "speed.jsonl", figures)
        for figure in figures:
            print(f"{figure.name}: {figure.value} {figure.unit}")


if __name__ == "__main__":
    main()
