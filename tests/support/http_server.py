"""A server of ours on the loopback interface, in a thread of the test's own process."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

PATIENCE = 60.0  # seconds until a server has begun, or has ended


def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds."""
    ends = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.005)


class ThreadServer:
    """A running server. `url` is its address; `stop` ends it as a signal would, and waits."""

    def __init__(self, app: Any) -> None:
        import uvicorn

        self.app = app
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._begun = threading.Event()
        begun = self._begun

        class Server(uvicorn.Server):
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets=sockets)
                begun.set()

        self._server = Server(uvicorn.Config(app, log_config=None, access_log=False, server_header=False))
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True
        )
        self._thread.start()
        assert begun.wait(PATIENCE)
        assert self._server.started

    @property
    def service(self) -> Any:
        """What the routes share."""
        return self.app.state.service

    def end(self) -> None:
        """Ask for a graceful end."""
        self._server.should_exit = True

    def stop(self) -> None:
        """Ask for a graceful end, and wait for it."""
        self.end()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()


class Words:
    """Counts a token a word, for the limits of a server whose encoder counts none."""

    def count(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]


@contextmanager
def serving(app: Any) -> Iterator[ThreadServer]:
    """The application on an address of its own."""
    server = ThreadServer(app)
    try:
        yield server
    finally:
        server.stop()
