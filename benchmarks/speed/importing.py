"""How long the package keeps a program waiting before it does anything."""

from __future__ import annotations

import os
import subprocess
import sys
from statistics import median

from benchmarks.record import ROOT, Figure
from benchmarks.speed.pairs import seconds

_TIMES = 10
# What a program that uses an adapter has imported anyway.
FRAMEWORKS = {
    "langchain": "langchain_core.vectorstores, langchain_core.retrievers, langchain_core.tracers",
    "llama_index": "llama_index.core",
    "chroma": "chromadb.utils.embedding_functions",
    "haystack": "haystack",
    "dspy": "dspy.retrievers",
    "mteb": "mteb, datasets",
    "fastembed": "numpy",
}


def measure(*, full: bool = False) -> list[Figure]:
    """`import_time/package_s`, without the interpreter's own start; `.../cli_help_s`, with it.

    `import_time/NAME_s` is what importing an adapter takes beyond its framework.
    """
    return [*figures(_TIMES), *adapter_figures(_TIMES // 2)]


def adapter_figures(times: int) -> list[Figure]:
    """Medians of what the adapters take where the framework and numpy are there already."""
    found = []
    for name, framework in FRAMEWORKS.items():
        alone, both = f"import numpy, {framework}", f"import numpy, {framework}, {name}_o1_retriever"
        beyond = [
            -seconds(lambda: _run(["-c", alone])) + seconds(lambda: _run(["-c", both]))  # noqa: B023
            for _ in range(times + 1)
        ]
        figure = Figure(
            name=f"import_time/{name}_s",
            value=round(median(beyond[1:]), 3),  # the first writes the compiled files
            unit=f"s beyond its framework, median of {times}",
            better="lower",
        )
        found.append(figure)
    return found


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
    path = os.pathsep.join(str(ROOT / folder) for folder in (".", "integrations", "training"))
    # Compiled files are kept even where the environment forbids it, as they are after an installation.
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": ""}
    command = [sys.executable, *arguments]
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True, env=environment)
