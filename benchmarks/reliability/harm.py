"""What does harm to a process of ours: an end at a change of the disk, locks that fail, a clock that jumps.

`harm.c` stands between the process and the C library, so that it meets SQLite and Chroma too. It is compiled
when it is needed, and obeys the functions below in processes that `harmed()` starts.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.record import ROOT
from tests.support.forks import Forks

_SOURCE = Path(__file__).with_name("harm.c")


@contextmanager
def harmed(*imports: str) -> Iterator[Forks]:
    """A process whose children can be harmed; `imports` are modules that they need."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise SystemExit("Found no C compiler, which harm.c needs. Type: apt-get install gcc")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "harm.so")
        subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, _SOURCE, "-ldl"], check=True)
        before = os.environ.get("LD_PRELOAD")
        os.environ["LD_PRELOAD"] = str(library)
        try:
            forks = Forks(ROOT, *imports)
        finally:
            if before is None:
                del os.environ["LD_PRELOAD"]
            else:
                os.environ["LD_PRELOAD"] = before
        with forks:
            yield forks


def end_at(call: int, *, half: bool = False) -> None:
    """End this process by SIGKILL at its n-th change of the disk, or count them (0).

    The change is a write, a truncation, a renaming, a deletion or a wait for the disk. A write is done by
    `half` before the end, or not at all.
    """
    _loaded().harm_arm(ctypes.c_long(call), int(half))


def changes() -> int:
    """How many changes of the disk there were since `end_at`."""
    library = _loaded()
    library.harm_made.restype = ctypes.c_long
    return int(library.harm_made())


def fail_locks(error: int) -> None:
    """From now on the system refuses locks of files with this errno, as NFS does; 0: no longer."""
    _loaded().harm_locks(error)


def jump_clock(seconds: int) -> None:
    """From now on the clock of the wall is so many seconds ahead of the real one."""
    _loaded().harm_clock(ctypes.c_long(seconds))


def _loaded() -> ctypes.CDLL:
    return ctypes.CDLL(None)
