"""Write measured figures as JSON lines, one format for all benchmarks.

A line holds `name`, `value`, `unit`, `better` (higher or lower), `commit`, `machine` and `date`. A new
figure replaces the earlier one of the same name; the file is exchanged in one step.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from o1_retriever.storage import written_whole

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured figure; `better` says in which direction."""

    name: str
    value: float
    unit: str
    better: Literal["higher", "lower"] = "higher"


def record(path: Path, figures: Iterable[Figure], *, used: str = "") -> None:
    """Add figures to a file of results, replacing those of the same name.

    `used` is written beside the machine: what of it was used, such as threads and number format.
    """
    kept = {row["name"]: row for row in read(path)}
    stamp = {
        "commit": commit(),
        "machine": f"{machine()}; {used}" if used else machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    for figure in figures:
        kept[figure.name] = {
            "name": figure.name,
            "value": figure.value,
            "unit": figure.unit,
            "better": figure.better,
            **stamp,
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as file:
        file.writelines(json.dumps(row) + "\n" for row in kept.values())


def read(path: Path) -> list[dict[str, Any]]:
    """The figures, or outcomes, of a file, none if there is no such file."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def note(path: Path, outcome: Mapping[str, Any]) -> None:
    """Add what came of one trial to a file, by which a measurement that was stopped goes on."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(outcome) + "\n")


def commit() -> str:
    """The commit that is checked out, with a plus where tracked files outside the results differ from it."""
    outside = [":(exclude)benchmarks/results"]
    known = _git("rev-parse", "--short=12", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", *outside)
    return f"{known or 'unknown'}{'+' if changed else ''}"


def machine() -> str:
    """Processor, number of cores and system."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{model}, {os.cpu_count()} cores, {platform.system()}"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
