"""Real processes for tests: forks of one that has imported everything heavy, alone or as a distributed world.

`with Forks(root, "torch") as forks` starts the one; `forks.run("tests.support.jobs:work", processes=2, ...)`
has two children call a function with the remaining fields and returns how they ended. Each child of several
finds RANK, WORLD_SIZE and the rest in its environment, as `torchrun` sets them.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import pytest


class Forks:
    """The process whose children do the work; `imports` are modules that all of them need."""

    def __init__(self, root: Path, *imports: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.forks", *imports],
            cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        )  # fmt: skip

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate()

    def start(self, call: str, *, processes: int = 1, log: Path | None = None, **fields: Any) -> list[int]:
        """The children's process ids; what they print goes to `log`, with the rank added, or nowhere."""
        job = {"call": call, "processes": processes, "log": log and str(log), "fields": fields}
        return list(self._ask(job))

    def finish(self, timeout: float = 250) -> list[int]:
        """How the children ended: 0 for well, 1 for an error, -9 for a kill or for too slow."""
        return list(self._ask({"timeout": timeout}))

    def run(self, call: str, *, timeout: float = 250, **fields: Any) -> list[int]:
        """Start, and wait for the end."""
        self.start(call, **fields)
        return self.finish(timeout)

    def _ask(self, question: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question, default=str) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def said(log: Path, rank: int = 0) -> str:
    """What a child printed."""
    return Path(f"{log}.{rank}").read_text()


def ran_well(codes: list[int], log: Path) -> None:
    """Fail with what the children said unless all of them ended well."""
    if any(codes):
        pytest.fail(f"{codes}\n" + "\n".join(said(log, rank)[-3000:] for rank in range(len(codes))))


def leave_together() -> None:
    """End a child well when all processes of its world have come this far.

    Taking a process group and a model under DDP down again may wait for threads that are gone.
    """
    import torch.distributed as dist

    dist.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def main() -> None:
    """Fork the children of each question of standard input."""
    sys.path[:0] = [str(Path(__file__).resolve().parents[2] / "training")]
    gc.disable()  # as in conftest.py; and what is frozen is not copied into each child by looking at it
    for name in sys.argv[1:]:
        importlib.import_module(name)
    gc.freeze()
    gc.enable()
    children: list[int] = []
    for line in sys.stdin:
        question = json.loads(line)
        if "call" in question:
            children = _forked(**question)
            _tell(children)
        else:
            _tell(_ends(children, question["timeout"]))


def _tell(numbers: list[int]) -> None:
    sys.stdout.write(json.dumps(numbers) + "\n")
    sys.stdout.flush()


def _forked(*, call: str, processes: int, log: str | None, fields: dict[str, Any]) -> list[int]:
    port, children = _free_port(), []
    for rank in range(processes):
        child = os.fork()
        if not child:
            world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
            if processes > 1:
                where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                os.environ.update({name: str(value) for name, value in {**world, **where}.items()})
            _work(call, f"{log}.{rank}" if log else os.devnull, fields)
        children.append(child)
    return children


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _work(call: str, log: str, fields: dict[str, Any]) -> None:
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    faulthandler.register(signal.SIGUSR1)
    code = 1
    try:
        module, name = call.split(":")
        getattr(importlib.import_module(module), name)(**fields)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _ends(children: list[int], timeout: float) -> list[int]:
    deadline, codes = time.monotonic() + timeout, {}
    while len(codes) < len(children):
        for child in children:
            if child not in codes:
                found, status = os.waitpid(child, os.WNOHANG)
                if found:
                    codes[child] = os.waitstatus_to_exitcode(status)
                elif time.monotonic() > deadline:
                    # Where it stands goes to its log.
                    os.kill(child, signal.SIGUSR1)
                    time.sleep(0.5)
                    os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    return [codes[child] for child in children]


if __name__ == "__main__":
    main()
