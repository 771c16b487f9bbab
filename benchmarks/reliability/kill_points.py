"""kill -9 at random points of everything that writes: what a second run ends with is what one run would have.

Half of the points are changes of the disk, drawn from all that the undisturbed run makes (SQLite's and
Chroma's own writes among them; every second of those writes is cut in the middle); half are moments of its
time. Every fourth run is killed again while it recovers.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.record import Figure
from benchmarks.reliability.harm import harmed
from benchmarks.reliability.jobs import HEAVY
from tests.support.forks import Forks, said

_JOBS = "benchmarks.reliability.jobs"
_STAGES = ("index", "embed", "load", "cache", "synthesize", "train")
_TRIES = 4  # for a moment that came after the end of the run


def measure(*, count: int = 100, only: Sequence[str] = _STAGES) -> Iterator[Figure]:
    """`kill_points/...`: how many kills, and after how many of them something was other than without."""
    heavy = [name for stage in only for name in HEAVY[stage]]
    with harmed(_JOBS, *heavy) as forks, tempfile.TemporaryDirectory() as folder:
        for stage in only:
            kills, found = _Kills(forks, Path(folder, stage), stage).run(count)
            yield Figure(name=f"kill_points/{stage}/kills", value=kills, unit="kills")
            yield Figure(name=f"kill_points/{stage}/differences", value=found, unit="runs", better="lower")


class _Kills:
    """The kills of one kind of work. All runs have the same path, because some outputs hold it."""

    def __init__(self, forks: Forks, folder: Path, stage: str) -> None:
        self._forks, self._stage = forks, stage
        self._origin, self._work, self._out = folder / "origin", folder / "work", folder / "found.json"
        self._log = folder / "log"
        self._chance = random.Random(stage)
        self._origin.mkdir(parents=True)

    def run(self, count: int) -> tuple[int, int]:
        """How many kills there were, and after how many points what was found differs."""
        self._work.mkdir()
        assert self._child(call="prepare", folder=self._work) == 0, said(self._log)
        shutil.rmtree(self._origin)
        self._work.rename(self._origin)
        began = time.monotonic()
        expected = self._finished()
        assert expected is not None, said(self._log)
        seconds, total = time.monotonic() - began, expected["changes"]
        print(f"   {self._stage}: {total} changes of the disk in {seconds:.1f} s", flush=True)
        kills = different = 0
        for point in range(count):
            self._begin_anew()
            kills += self._killed(total, seconds, by_time=bool(point % 2))
            if point % 4 == 3:
                kills += self._killed(total, seconds, by_time=bool(point % 8 == 7), tries=1)
            found = self._finished(anew=False)
            if found is None or found["found"] != expected["found"]:
                different += 1
                print(f"   {self._stage}, point {point}: {_difference(expected, found)}", flush=True)
                print(said(self._log)[-1500:] if found is None else "", flush=True)
        return kills, different

    def _begin_anew(self) -> None:
        shutil.rmtree(self._work, ignore_errors=True)
        shutil.copytree(self._origin, self._work)

    def _child(self, *, call: str = "run", **fields: Any) -> int:
        (code,) = self._forks.run(f"{_JOBS}:{call}", log=self._log, stage=self._stage, **fields)
        return code

    def _finished(self, *, anew: bool = True) -> dict[str, Any] | None:
        """What is there after a run that nobody killed; None where it failed."""
        if anew:
            self._begin_anew()
        self._out.unlink(missing_ok=True)
        code = self._child(folder=self._work, out=self._out)
        return dict(json.loads(self._out.read_text())) if code == 0 else None

    def _killed(self, total: int, seconds: float, *, by_time: bool, tries: int = _TRIES) -> bool:
        """Run and kill; False where the run had come to its end before."""
        for _ in range(tries):
            if by_time:
                (child,) = self._forks.start(
                    f"{_JOBS}:run", log=self._log, stage=self._stage, folder=self._work
                )
                time.sleep(self._chance.uniform(0, 0.9 * seconds))
                os.kill(child, signal.SIGKILL)
                (code,) = self._forks.finish()
            else:
                kill = [self._chance.randint(1, total), self._chance.randint(0, 1)]
                code = self._child(folder=self._work, kill=kill)
            if code == -signal.SIGKILL:
                return True
            assert code == 0, said(self._log)
            self._begin_anew()
        return False


def _difference(expected: dict[str, Any], found: dict[str, Any] | None) -> str:
    if found is None:
        return "the second run failed"
    one, other = expected["found"], found["found"]
    names = [name for name in one if one[name] != other.get(name)]
    return ", ".join(f"{name}: {str(one[name])[:200]} / {str(other.get(name))[:200]}" for name in names)
