"""Several processes at one index, one output, one cache: one waits or says so, and nothing is doubled.

Two processes bring one index to the state of one folder, two write one output, ten share one cache. Each may
end with an error of this library's tree; what is there afterwards is what one process would have left, and no
word about a locked database reaches the user, neither as an error nor in the log.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.record import Figure
from benchmarks.reliability.harm import harmed
from benchmarks.reliability.jobs import HEAVY
from tests.support.forks import Forks, said

_JOBS = "benchmarks.reliability.jobs"
_PROCESSES = {"index": 2, "synthesize": 2, "shared cache": 10}


def measure(*, count: int = 20) -> Iterator[Figure]:
    """`sharing/...`: how many times they began together, and after how many something was wrong."""
    heavy = [name for stage in _PROCESSES for name in HEAVY[stage]]
    with harmed(_JOBS, *heavy) as forks, tempfile.TemporaryDirectory() as folder:
        for stage, processes in _PROCESSES.items():
            name = stage.replace(" ", "_")
            sharing = _Sharing(forks, Path(folder, name), stage)
            wrong = sum(sharing.once(processes) for _ in range(count))
            yield Figure(name=f"sharing/{name}/{processes}_processes/times", value=count, unit="times")
            yield Figure(name=f"sharing/{name}/waited_or_refused", value=sharing.refused, unit="processes")
            yield Figure(name=f"sharing/{name}/wrong", value=wrong, unit="times", better="lower")


class _Sharing:
    """One kind of work by several processes in one folder."""

    def __init__(self, forks: Forks, folder: Path, stage: str) -> None:
        self._forks, self._stage, self._folder = forks, stage, folder
        self._work, self._out, self._log = folder / "work", folder / "said", folder / "log"
        self.refused = 0
        self._work.mkdir(parents=True)
        self._run("prepare", folder=self._work)
        shutil.copytree(self._work, folder / "origin")
        self._expected = self._looked(work=True)

    def _run(self, call: str, **fields: Any) -> None:
        codes = self._forks.run(f"{_JOBS}:{call}", log=self._log, stage=self._stage, **fields)
        assert not any(codes), said(self._log)

    def _looked(self, *, work: bool) -> Any:
        self._run("attempt", folder=self._work, out=self._out, work=work)
        return json.loads(self._out.read_text()).get("found")

    def once(self, processes: int) -> bool:
        """Whether something was wrong."""
        shutil.rmtree(self._work)
        shutil.copytree(self._folder / "origin", self._work)
        go = self._folder / "go"
        go.unlink(missing_ok=True)
        call = {"stage": self._stage, "folder": self._work, "out": self._out, "go": go}
        self._forks.start(f"{_JOBS}:together", processes=processes, log=self._log, **call)
        go.touch()
        codes = self._forks.finish()
        faults = [said(self._log, rank)[-800:] for rank, code in enumerate(codes) if code]
        for rank in range(processes):
            path = Path(f"{self._out}.{rank}")
            told = json.loads(path.read_text()) if path.exists() else {"uncaught": "it said nothing"}
            path.unlink(missing_ok=True)
            words = f"{told.get('refused', '')} {said(self._log, rank)}"
            self.refused += "refused" in told
            if "uncaught" in told or "database is locked" in words:
                faults.append(told.get("uncaught") or words[-400:])
        left = self._looked(work=False)
        if not _is_like(self._stage, self._expected, left, processes):
            faults.append(f"left {str(left)[:300]}")
        for fault in faults:
            print(f"   {self._stage}: {fault}", flush=True)
        return bool(faults)


def _is_like(stage: str, expected: Any, left: Any, processes: int) -> bool:
    if stage != "shared cache":
        return bool(left == expected)
    shared = len(expected["entries"])
    counts = [2 * shared * (1 + processes), shared * (1 + processes)]
    return bool(
        left and left["counts"] == counts and all(left["entries"]) and left["sound"] == expected["sound"]
    )
