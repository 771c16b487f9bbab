"""`python -m benchmarks.fictional_world FOLDER` writes a world to train on."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from benchmarks.fictional_world.world import WorldSettings
from benchmarks.fictional_world.writing import WorldReport, write_world
from o1_retriever.cli.models import quiet
from o1_retriever.cli.terminal import fail, messages
from o1_retriever.errors import O1RetrieverError

_HELP = {
    "seed": "another seed, another world",
    "held_out": "share of the two-hop questions that is never trained on",
    "candidates": "candidate thoughts of each row of candidates.jsonl",
    "wrong": "how often a candidate goes astray",
    "layers": "layers of the base model",
    "width": "its hidden size",
    "heads": "its attention heads",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a world as the command line says; 0, or 1 with the reason on standard error."""
    given = vars(_parser().parse_args(arguments))
    folder = given.pop("folder")
    quiet()
    try:
        report = write_world(folder, WorldSettings(**given))
    except O1RetrieverError as error:
        fail(error.message, error.hint)
        return 1
    messages().print(_summary(report), markup=False)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fictional_world", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the files go")
    for field in fields(WorldSettings):
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=type(field.default),
            default=field.default,
            help=f"{_HELP.get(field.name, f'how many {field.name}')} (default: {field.default})",
        )
    return parser


def _summary(report: WorldReport) -> str:
    return (
        f"{report.folder}: {report.entities:,} pages with {report.facts:,} facts; "
        f"to train on, {report.one_hop:,} one-hop and {report.two_hop:,} two-hop questions; "
        f"held out, {report.dev:,} for dev and {report.test:,} for test; "
        f"a base model of {report.parameters:,} weights and {report.vocabulary:,} words"
    )


if __name__ == "__main__":
    sys.exit(main())
