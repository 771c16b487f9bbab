"""A disk, a clock and locks that fail: a clear error or a safe degradation, and never a wrong vector.

Each kind of work of `jobs.py` meets a full disk (a small tmpfs), one that is read-only, damaged pages in every
file that it keeps, a clock that is years wrong, and locks that the system refuses as NFS does. Allowed is an
error of this library's tree, or the result of the undisturbed run; a cache may also have forgotten entries.
Where the trouble is over, a second run has to end with the undisturbed result.
"""

from __future__ import annotations

import errno
import json
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.record import Figure
from benchmarks.reliability.harm import harmed
from benchmarks.reliability.jobs import HEAVY
from tests.support.forks import Forks, said

_JOBS = "benchmarks.reliability.jobs"
_PARTS = ("full", "read_only", "pages", "clock", "locks")
_WRITING = ("index", "embed", "load", "cache", "synthesize", "train")
_DAMAGED = ("index", "embed", "cache", "synthesize", "weights")
_STAGES = tuple(dict.fromkeys((*_WRITING, *_DAMAGED)))
_PAGE = 4096
_YEARS = 10 * 365 * 24 * 3600
_SLOW_S = 120.0  # a job that takes longer hangs


def measure(
    *, count: int = 100, only: Sequence[str] = _PARTS, stages: Sequence[str] = _STAGES
) -> Iterator[Figure]:
    """`disk/<trouble>/<work>/...`: how often it struck, and after how many of them something was wrong."""
    for stage in stages:
        with harmed(_JOBS, *HEAVY[stage]) as forks, tempfile.TemporaryDirectory() as folder:
            for part in only:
                trouble = _Trouble(forks, Path(folder, part), part, [stage])
                getattr(trouble, part)(count)
                if trouble.tried:
                    name = f"disk/{part}/{stage}"
                    yield Figure(name=f"{name}/tried", value=trouble.tried, unit="runs")
                    yield Figure(name=f"{name}/wrong", value=trouble.wrong, unit="runs", better="lower")


class _Trouble:
    """One kind of trouble for all kinds of work."""

    def __init__(self, forks: Forks, folder: Path, name: str, stages: Sequence[str]) -> None:
        self._forks, self._folder, self._name, self._stages = forks, folder, name, stages
        self._log, self._out = folder / "log", folder / "said.json"
        self._chance = random.Random(name)
        self.tried = self.wrong = 0
        folder.mkdir()

    # Troubles.

    def full(self, count: int) -> None:
        """A tmpfs with less room than is needed, then with enough."""
        for stage in self._chosen(_WRITING):
            work = self._folder / "work"
            origin, expected, done = self._undisturbed(stage, work)
            need, had = _bytes(done), _bytes(origin)
            shutil.rmtree(work)
            for _ in range(max(1, count // len(_WRITING))):
                room = had + int(self._chance.uniform(0.05, 1.1) * max(need - had, 64 * 1024))
                with _mounted(work, room):
                    _copied(origin, work)
                    self._judge(stage, expected, self._attempt(stage, work))
                    _mount("-o", "remount,size=512m", str(work))
                    self._judge(stage, expected, self._attempt(stage, work), strict=True)

    def read_only(self, count: int) -> None:
        """What was done before, on a disk that only reads: looked at, and gone on with."""
        for stage in self._chosen(_STAGES):
            work = self._folder / "work"
            origin, expected, done = self._undisturbed(stage, work)
            shutil.rmtree(work)
            for state in (origin, done):
                with _mounted(work, 512 << 20):
                    _copied(state, work)
                    _mount("-o", "remount,ro", str(work))
                    if state is done:
                        self._judge(stage, expected, self._attempt(stage, work, work=False))
                    self._judge(stage, expected, self._attempt(stage, work))
                    _mount("-o", "remount,rw", str(work))
                    self._judge(stage, expected, self._attempt(stage, work), strict=True)

    def pages(self, count: int) -> None:
        """A page of a file that the work has left is damaged."""
        for stage in self._chosen(_DAMAGED):
            work = self._folder / "work"
            origin, expected, done = self._undisturbed(stage, work)
            inputs = {path.relative_to(origin) for path in origin.rglob("*") if path.is_file()}
            for _ in range(max(1, count // len(_DAMAGED))):
                _copied(done, work)
                files = [path for path in sorted(work.rglob("*")) if path.is_file() and path.stat().st_size]
                if stage in ("index", "embed", "synthesize"):  # what was read to make them is not theirs
                    files = [
                        path
                        for path in files
                        if path.relative_to(work) not in inputs or "index" in path.parts
                    ]
                path = self._chance.choice(files)
                what = self._damage(path)
                found = self._attempt(stage, work, work=stage == "synthesize")
                self._judge(stage, expected, found, what=f"{path.relative_to(work)}, {what}")

    def clock(self, count: int) -> None:
        """The clock of the wall is years early, then years late, then right."""
        for stage in self._chosen(_WRITING):
            work = self._folder / "work"
            origin, expected, _ = self._undisturbed(stage, work)
            for jumps in ((-_YEARS, _YEARS, 0), (_YEARS, -_YEARS, 0)):
                _copied(origin, work)
                for jump in jumps:
                    found = self._attempt(stage, work, clock=jump)
                    self._judge(stage, expected, found, strict=True, what=f"{jump} s")

    def locks(self, count: int) -> None:
        """The system gives no locks, in the ways that NFS has."""
        for stage in self._chosen(_WRITING):
            work = self._folder / "work"
            origin, expected, done = self._undisturbed(stage, work)
            for number in (errno.ENOLCK, errno.EIO, errno.EOPNOTSUPP, errno.ESTALE):
                for state, writes in ((origin, True), (done, False)):
                    _copied(state, work)
                    what = f"{errno.errorcode[number]}, {'writing' if writes else 'reading'}"
                    found = self._attempt(stage, work, work=writes, locks=number)
                    self._judge(stage, expected, found, what=what)
                    self._judge(stage, expected, self._attempt(stage, work), strict=True, what=what)

    # What they share.

    def _chosen(self, stages: Sequence[str]) -> list[str]:
        return [stage for stage in stages if stage in self._stages]

    def _undisturbed(self, stage: str, work: Path) -> tuple[Path, Any, Path]:
        """The prepared folder, what is found after the work, and the folder after it."""
        shutil.rmtree(work, ignore_errors=True)
        origin, done = self._folder / f"{stage}-origin", self._folder / f"{stage}-done"
        work.mkdir()
        (code,) = self._forks.run(f"{_JOBS}:prepare", log=self._log, stage=stage, folder=work)
        assert code == 0, said(self._log)
        shutil.copytree(work, origin)
        found = self._attempt(stage, work)
        assert "found" in found, found
        shutil.copytree(work, done)
        return origin, found["found"], done

    def _attempt(self, stage: str, place: Path, **fields: Any) -> dict[str, Any]:
        self._out.unlink(missing_ok=True)
        call = {"stage": stage, "folder": place, "out": self._out, **fields}
        (code,) = self._forks.run(f"{_JOBS}:attempt", log=self._log, timeout=_SLOW_S, **call)
        if code or not self._out.exists():
            return {"uncaught": f"ended with {code}: {said(self._log)[-1500:]}"}
        return dict(json.loads(self._out.read_text()))

    def _judge(
        self, stage: str, expected: Any, found: dict[str, Any], *, strict: bool = False, what: str = ""
    ) -> None:
        """Count it; `strict` where no error is allowed."""
        self.tried += 1
        if "refused" in found and not strict:
            return
        if "found" in found and _is_like(stage, expected, found["found"], strict=strict):
            return
        # A text that the user reads, and that is said to be another than it was, is no wrong vector.
        if stage == "synthesize" and any("no longer as it was" in each for each in found.get("warned", ())):
            return
        self.wrong += 1
        words = found.get("uncaught") or found.get("refused") or _differences(expected, found["found"])
        print(f"   {self._name}, {stage} {what}: {words}", flush=True)

    def _damage(self, path: Path) -> str:
        raw = bytearray(path.read_bytes())
        start = self._chance.randrange(0, len(raw), _PAGE)
        end = min(start + _PAGE, len(raw))
        kind = self._chance.choice(["zeros", "noise", "bit", "cut"])
        if kind == "zeros":
            raw[start:end] = bytes(end - start)
        elif kind == "noise":
            raw[start:end] = self._chance.randbytes(end - start)
        elif kind == "bit":
            raw[self._chance.randrange(start, end)] ^= 1 << self._chance.randrange(8)
        else:
            del raw[start:]
        path.write_bytes(raw)
        return f"{kind} at {start}"


def _is_like(stage: str, expected: Any, found: Any, *, strict: bool) -> bool:
    if stage == "cache" and not strict:  # whatever is there has been compared with what was put
        return True
    if stage == "embed" and not strict and found["problems"]:  # the check has said so
        return True
    if stage == "cache":  # what was moved aside stays there
        return bool(found["entries"] == expected["entries"] and found["sound"][:2] == expected["sound"][:2])
    return bool(found == expected)


def _differences(expected: Any, found: Any) -> str:
    return ", ".join(
        f"{name}: {str(expected[name])[:150]} / {str(found.get(name))[:150]}"
        for name in expected
        if expected[name] != found.get(name)
    )


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size + _PAGE for path in folder.rglob("*"))


def _copied(origin: Path, work: Path) -> None:
    for path in work.iterdir() if work.exists() else ():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(origin, work, dirs_exist_ok=True)


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(
            f"A tmpfs cannot be mounted here: {done.stderr.strip()} Run this row as root on Linux."
        )


@contextmanager
def _mounted(place: Path, size: int) -> Iterator[None]:
    """A tmpfs of so many bytes at a folder, as long as the block lasts."""
    place.mkdir(exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place))
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)
        place.rmdir()
