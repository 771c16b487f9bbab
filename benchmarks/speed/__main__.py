"""Measure what thinking costs, write it to benchmarks/results/speed.jsonl, and draw docs/speed.png.

Run from the repository's root:

    python -m benchmarks.speed [--full] [--data ../shared/data] [NAME ...]

Without names everything is measured that this machine can: the quick set takes under a quarter of an hour,
`--full` hours. Ratios compare two ways side by side in one run on the same machine.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from benchmarks.record import RESULTS, ROOT, read, record
from benchmarks.speed.data import VARIABLE, data_folder

NAMES = (
    "queries", "awaited", "serve", "roofline", "documents", "cached", "search", "importing", "threads",
    "local_thinker", "gpu",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and record."""
    options = _options(arguments)
    os.environ[VARIABLE] = str(options.data)
    used = _prepared()
    parts = {"only": options.only} if options.only else {}
    for name in options.names or _possible():
        print(f"== {name}", flush=True)
        # Each as it comes: what a run that is ended has measured by then is kept.
        for figure in import_module(f"benchmarks.speed.{name}").measure(full=options.full, **parts):
            record(options.results, [figure], used=used)
            print(f"{figure.name}: {figure.value} {figure.unit}", flush=True)
    _draw(options.results, options.plots)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    said = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=said)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)}; default: all, gpu where there is one"
    )
    parser.add_argument("--full", action="store_true", help="large models and collections too")
    parser.add_argument("--only", nargs="+", help="some parts of serve")
    parser.add_argument("--data", type=Path, default=data_folder(), help="the evaluation data")
    parser.add_argument("--results", type=Path, default=RESULTS / "speed.jsonl", help="where figures go")
    parser.add_argument("--plots", type=Path, default=ROOT / "docs", help="where pictures go")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.names) - set(NAMES))
    if options.only and options.names != ["serve"]:
        parser.error("--only is for serve alone")
    if unknown:
        parser.error(f"unknown {', '.join(unknown)}; expected some of {', '.join(NAMES)}")
    return options


def _possible() -> tuple[str, ...]:
    import torch

    if torch.cuda.is_available():
        return NAMES
    print("No CUDA device: gpu is left out (python -m benchmarks.speed gpu runs a tiny model on the CPU).")
    return tuple(name for name in NAMES if name != "gpu")


def _prepared() -> str:
    """Keep what loading models says out of the report; return what of the machine is used."""
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    return f"{torch.get_num_threads()} threads"


def _draw(results: Path, folder: Path) -> None:
    from benchmarks.speed.plots import draw_growth, draw_ratios

    rows = read(results)
    for name, draw in (("speed.png", draw_ratios), ("index-growth.png", draw_growth)):
        if draw(rows, folder / name):
            print(f"drawn: {folder / name}")


if __name__ == "__main__":
    main()
