"""`transformers serve` on the loopback interface: an OpenAI-compatible server that nobody here wrote."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

PATIENCE = 120.0  # seconds; it starts in about ten where nothing else runs


@dataclass(frozen=True)
class ModelServer:
    """A running server. `url` is a client's base_url, `model` the name to ask for, `log` what it has said."""

    url: str
    model: str
    log: Path
    process: subprocess.Popen[bytes]

    def said(self) -> str:
        """The end of its log, for a failure's report."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-4000:]


@contextmanager
def model_server(model: Path, folder: Path) -> Iterator[ModelServer]:
    """Serve the checkpoint in `model`, with a log in `folder`; killed at the end.

    Fails the test, with the log, when the server ends or is not healthy in time.
    """
    port = _free_port()
    log = folder / "serve.log"
    address = f"http://127.0.0.1:{port}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*_COMMAND, str(model), *_options(port)],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=_environment(folder),
            start_new_session=True,
        )
        server = ModelServer(url=f"{address}/v1", model=str(model), log=log, process=process)
        try:
            _wait(server, f"{address}/health")
            yield server
        finally:
            process.kill()
            process.wait(timeout=30)


_COMMAND = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve"]


def _options(port: int) -> list[str]:
    return ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]


def _environment(folder: Path) -> dict[str, str]:
    quiet = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_HOME": str(folder), "NO_PROXY": "127.0.0.1"}
    return {**os.environ, **quiet}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(server: ModelServer, health: str) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    ends = time.monotonic() + PATIENCE
    while time.monotonic() < ends:
        if server.process.poll() is not None:
            pytest.fail(f"transformers serve ended with {server.process.returncode}:\n{server.said()}")
        try:
            with opener.open(health, timeout=5) as reply:
                if reply.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    pytest.fail(f"transformers serve was not healthy within {PATIENCE:g} s:\n{server.said()}")


@pytest.fixture(scope="session")
def served_model(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    """`transformers serve` with models/o1-embedder-22m, started once for all tests that ask for it."""
    with model_server(root / "models" / "o1-embedder-22m", tmp_path_factory.mktemp("serve")) as server:
        yield server
