"""kill -9 at random points of everything that writes: what a second run ends with is what one run would have.

Half of the points are changes of the disk, drawn from all that the undisturbed run makes (SQLite's and
Chroma's own writes among them; every second of those writes is cut in the middle); half are moments of its
time. Every fourth run is killed again while it recovers. A file of outcomes keeps what came of each point: a
run that was stopped, or had its time, goes on behind the last of them.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.record import Figure, note, read
from benchmarks.reliability.harm import harmed
from benchmarks.reliability.jobs import HEAVY
from tests.support.forks import Forks, said

_JOBS = "benchmarks.reliability.jobs"
_STAGES = ("index", "embed", "load", "cache", "synthesize", "train")
_TRIES = 4  # for a moment that came after the end of the run


def measure(
    *,
    count: int = 100,
    only: Sequence[str] = _STAGES,
    seconds: float = math.inf,
    outcomes: Path | None = None,
) -> Iterator[Figure]:
    """`kill_points/...`: how many kills, and after how many of them something was other than without.

    Points are numbered from 0 to `count`, and each is drawn from its own number; none is begun after
    `seconds`. Those that `outcomes` has are counted and not tried again.
    """
    ends = time.monotonic() + seconds
    for stage in only:
        known = {row["point"]: row for row in (read(outcomes) if outcomes else []) if row["stage"] == stage}
        for row in _tried(stage, [point for point in range(count) if point not in known], ends):
            known[row["point"]] = row
            if outcomes is not None:
                note(outcomes, row)
        kills, different = (sum(row[what] for row in known.values()) for what in ("kills", "differs"))
        yield Figure(name=f"kill_points/{stage}/kills", value=kills, unit="kills")
        yield Figure(name=f"kill_points/{stage}/differences", value=different, unit="runs", better="lower")


def _tried(stage: str, points: Sequence[int], ends: float) -> Iterator[dict[str, Any]]:
    """What comes of each point, from a process that has imported what this stage needs."""
    if points:
        with harmed(_JOBS, *HEAVY[stage]) as forks, tempfile.TemporaryDirectory() as folder:
            yield from _Kills(forks, Path(folder, stage), stage).run(points, ends)


class _Kills:
    """The kills of one kind of work. All runs have the same path, because some outputs hold it."""

    def __init__(self, forks: Forks, folder: Path, stage: str) -> None:
        self._forks, self._stage = forks, stage
        self._origin, self._work, self._out = folder / "origin", folder / "work", folder / "found.json"
        self._log = folder / "log"
        self._chance = random.Random(stage)
        self._origin.mkdir(parents=True)

    def run(self, points: Iterable[int], ends: float) -> Iterator[dict[str, Any]]:
        """What came of each point: how many kills there were, and whether what was found differs."""
        self._work.mkdir()
        assert self._child(call="prepare", folder=self._work) == 0, said(self._log)
        shutil.rmtree(self._origin)
        self._work.rename(self._origin)
        expected, seconds = self._undisturbed()
        total = expected["changes"]
        print(f"   {self._stage}: {total} changes of the disk in {seconds:.1f} s", flush=True)
        for point in itertools.takewhile(lambda _: time.monotonic() < ends, points):
            self._chance.seed(f"{self._stage} {point}")
            self._begin_anew()
            kills = self._killed(total, seconds, by_time=bool(point % 2))
            if point % 4 == 3:
                kills += self._killed(total, seconds, by_time=bool(point % 8 == 7), tries=1)
            found = self._finished(anew=False)
            differs = found is None or found["found"] != expected["found"]
            if differs:
                print(f"   {self._stage}, point {point}: {_difference(expected, found)}", flush=True)
                print(said(self._log)[-1500:] if found is None else "", flush=True)
            yield {"stage": self._stage, "point": point, "kills": kills, "differs": differs}

    def _undisturbed(self) -> tuple[dict[str, Any], float]:
        """What is there without a kill, and in how many seconds; of two runs, which have to agree, the quicker."""
        runs, spent = [], []
        for _ in range(2):
            began = time.monotonic()
            runs.append(self._finished())
            spent.append(time.monotonic() - began)
        assert runs[0] is not None, said(self._log)
        assert runs[1] is not None, said(self._log)
        assert runs[0]["found"] == runs[1]["found"], _difference(*runs)
        return runs[0], min(spent)

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
