"""How many requests are worked on at once, how large and how long, and what becomes of those left alone."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from o1_retriever_server.observing import Metrics
from o1_retriever_server.problems import answer
from o1_retriever_server.service import ServerSettings

DEADLINE = "X-Request-Timeout"
# The last so many answers say how quick the server is.
_LATEST = 64
_LONGEST_RETRY_S = 60


class Admission:
    """Middleware that accepts a bounded number of requests, and ends those that nobody waits for.

    One more than `max_waiting` is answered with 429 and when to come back. A request is given up after
    `max_seconds`, or what its header X-Request-Timeout says if that is less, and when its client hangs up:
    what it has asked of the model is taken out of the batch. Requests without a body are not counted.
    """

    def __init__(self, app: ASGIApp, *, settings: ServerSettings, metrics: Metrics) -> None:
        self._app, self._settings = app, settings
        self._waiting: set[_Client] = set()
        self._ended: deque[float] = deque(maxlen=_LATEST)
        metrics.waiting.set_function(lambda: len(self._waiting))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it with 429."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        seconds = self._patience(Headers(scope=scope).get(DEADLINE))
        if seconds is None:
            message = f"The header {DEADLINE} is no number of seconds above 0."
            await answer(400, message, param=DEADLINE)(scope, receive, send)
        elif len(self._waiting) >= self._settings.max_waiting:
            after = self._retry_after()
            message = f"{len(self._waiting)} requests are waiting already; come back in {after} s."
            await answer(429, message, headers={"Retry-After": str(after)})(scope, receive, send)
        else:
            client = _Client(receive, send, self._settings.max_body_bytes, self._done)
            self._waiting.add(client)
            try:
                await self._within(seconds, scope, client)
            finally:
                self._done(client)

    def _done(self, client: _Client) -> None:
        """Make room for another one: at the end of an answer, or of the work where there is none."""
        if client in self._waiting:
            self._waiting.remove(client)
            self._ended.append(time.monotonic())

    def _patience(self, given: str | None) -> float | None:
        """The seconds that a request has; None for a header that says nothing."""
        if given is None:
            return self._settings.max_seconds
        with suppress(ValueError):
            seconds = float(given)
            if seconds > 0:  # not a number is not
                return min(seconds, self._settings.max_seconds)
        return None

    def _retry_after(self) -> int:
        """About when half of what waits will be done, in whole seconds."""
        if len(self._ended) < 2:
            return 1
        each = (time.monotonic() - self._ended[0]) / len(self._ended)
        return max(1, min(_LONGEST_RETRY_S, math.ceil(each * len(self._waiting) / 2)))

    async def _within(self, seconds: float, scope: Scope, client: _Client) -> None:
        work = asyncio.ensure_future(self._app(scope, client.receive, client.send))
        leaving = asyncio.ensure_future(client.left())
        try:
            await asyncio.wait({work, leaving}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            late = not work.done() and not leaving.done()
        finally:
            leaving.cancel()
            if not work.done():
                work.cancel()
        with suppress(asyncio.CancelledError):
            await work
        if late and not client.answered:
            late_answer = answer(504, f"The request was not done within {seconds:g} s.")
            await late_answer(scope, client.receive, client.send)


class _Client:
    """One client: what it has sent, whether it has an answer, and whether it has hung up."""

    def __init__(self, receive: Receive, send: Send, room: int, done: Callable[[_Client], None]) -> None:
        self._receive, self._send, self._room, self._done = receive, send, room, done
        self._asked, self._left = asyncio.Event(), asyncio.Event()
        self.answered = self._whole = False

    async def receive(self) -> Message:
        """The next part of the request; once it was whole, that the client has left."""
        if self._asked.is_set():
            await self._left.wait()
            return {"type": "http.disconnect"}
        message = await self._receive()
        self._room -= len(message.get("body", b""))
        if self._room < 0:
            raise HTTPException(413, "The body is larger than this server accepts.")
        if not message.get("more_body", False):
            self._asked.set()
        return message

    async def send(self, message: Message) -> None:
        """Pass the answer on."""
        self.answered = True
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self._whole = True
            self._done(self)
        await self._send(message)

    async def left(self) -> None:
        """Wait until the client has hung up before its answer was whole."""
        await self._asked.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._left.set()
        if self._whole:  # nobody hung up: the answer has its end
            await asyncio.Event().wait()
