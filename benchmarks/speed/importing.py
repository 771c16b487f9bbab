"""How long the package keeps a program waiting before it does anything."""

from __future__ import annotations

import subprocess
import sys
from statistics import median

from benchmarks.record import ROOT, Figure
from benchmarks.speed.pairs import seconds

_TIMES = 10


def measure(*, full: bool = False) -> list[Figure]:
    """`import_time/package_s`, without the interpreter's own start; `.../cli_help_s`, with it."""
    return figures(_TIMES)


def figures(times: int) -> list[Figure]:
    """Medians over so many fresh processes of each kind, taken in turns."""
    commands = {"bare": ["-c", "pass"], "package": ["-c", "import o1_retriever"]}
    commands["help"] = ["-m", "o1_retriever", "--help"]
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(times + 1):
        for name, arguments in commands.items():
            spent = seconds(lambda arguments=arguments: _run(arguments))  # type: ignore[misc]
            if number:  # the first writes the compiled files
                taken[name].append(spent)
    package = median(full - bare for full, bare in zip(taken["package"], taken["bare"], strict=True))
    unit = f"s, median of {times}"
    return [
        Figure(name="import_time/package_s", value=round(package, 3), unit=unit, better="lower"),
        Figure(
            name="import_time/cli_help_s", value=round(median(taken["help"]), 3), unit=unit, better="lower"
        ),
    ]


def _run(arguments: list[str]) -> None:
    subprocess.run([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
