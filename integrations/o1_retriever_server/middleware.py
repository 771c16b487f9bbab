"""What a request passes on its way to a route: its log and figures, host names, keys, room and deadline."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import math
import os
import re
import time
import traceback
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from o1_retriever.errors import SettingsError
from o1_retriever_server.problems import answer, body_of
from o1_retriever_server.service import Metrics, ServerSettings

VARIABLE = "O1_RETRIEVER_API_KEYS"
# Shorter ones can be guessed.
SHORTEST = 16
# What says nothing about anybody's documents or queries.
OPEN = {"/", "/docs", "/health", "/ready", "/openapi.json"}
_OPEN_FOLDER = "/page/"

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


class Keys:
    """The keys that a server knows, each with a name that goes into the log; the keys themselves are hashed.

    `Keys.read` takes them from a file or from the environment. Raises `SettingsError` for a key that is too
    short or not ASCII, and for a name or a key that is there twice.
    """

    def __init__(self, keys: Mapping[str, str]) -> None:
        for name, key in keys.items():
            if len(key) < SHORTEST:
                raise SettingsError(
                    f"The key named {name!r:.60} has {len(key)} characters; expected at least {SHORTEST}.",
                    hint="Type: python -c 'import secrets; print(secrets.token_urlsafe(32))'",
                )
            if not key.isascii():  # as which a header is read differs between clients
                raise SettingsError(
                    f"The key named {name!r:.60} has characters that are not ASCII; expected none."
                )
        self._names = {_digest(key): name for name, key in keys.items()}
        if len(self._names) < len(keys):
            raise SettingsError("Found the same key under two names; expected one for each.")

    def __bool__(self) -> bool:
        return bool(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"Keys({sorted(self._names.values())})"

    @classmethod
    def read(cls, file: str | os.PathLike[str] | None = None) -> Keys:
        """The keys of a file, one `NAME KEY` a line, and of $O1_RETRIEVER_API_KEYS (`name=key,name=key`).

        A line or an entry without a name is a key alone, and so is base64 that ends in =. Lines that begin
        with # are comments.
        """
        lines = [] if file is None else _lines(Path(file))
        entries = [entry.strip() for entry in os.environ.get(VARIABLE, "").split(",")]
        pairs = [_pair(line, None, place) for place, line in enumerate(lines, 1)]
        pairs += [_pair(entry, "=", place) for place, entry in enumerate(filter(None, entries), 1)]
        keys: dict[str, str] = {}
        for name, key in pairs:
            if name in keys:
                raise SettingsError(
                    f"Found two keys named {name!r:.60}; expected a name of its own for each."
                )
            keys[name] = key
        return cls(keys)

    def name_of(self, key: str) -> str | None:
        """Whose key it is; None for an unknown one. All are compared, each in constant time."""
        given, found = _digest(key), None
        for digest, name in self._names.items():
            if hmac.compare_digest(digest, given):
                found = name
        return found


def _lines(file: Path) -> list[str]:
    try:
        lines = file.expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"The file of keys {file} cannot be read: {error}.") from None
    found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not found:
        raise SettingsError(f"The file {file} holds no key; expected one a line, like: NAME KEY")
    return found


def _pair(text: str, between: str | None, place: int) -> tuple[str, str]:
    name, *rest = text.split(between, 1)
    if not rest or _padded(text):
        return f"key-{place}", text
    key = rest[0].strip()
    if not key.strip("="):  # what stands before it may be a key, and is not shown
        raise SettingsError(f"Entry {place} of the keys has a name and no key; expected both.")
    return name.strip(), key


def _padded(text: str) -> bool:
    """Whether it is base64 of enough bytes, whose = is no sign between a name and a key."""
    with suppress(ValueError):
        plain = text.replace("-", "+").replace("_", "/").encode()
        raw = base64.b64decode(plain, validate=True)
        return plain.endswith(b"=") and len(raw) >= SHORTEST and base64.b64encode(raw) == plain
    return False


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def secure(headers: MutableHeaders) -> None:
    """Add what browsers heed to the headers of an answer."""
    for name, value in _HEADERS.items():
        headers.setdefault(name, value)
    headers.setdefault("Cache-Control", "no-store")


class Hosts:
    """Middleware that answers to names of this server alone; `*` among them is every name."""

    def __init__(self, app: ASGIApp, names: Sequence[str]) -> None:
        self._app, self._names = app, list(names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it with 400."""
        ours = False

        async def known(*_: Any) -> None:
            nonlocal ours
            ours = True

        async def unsent(_: Message) -> None:
            """Take the refusal in the words of the framework, which is no JSON."""

        check = TrustedHostMiddleware(known, allowed_hosts=self._names, www_redirect=False)
        await check(scope, receive, unsent)
        if ours:
            await self._app(scope, receive, send)
        else:
            refusal = answer(400, "The header Host names another server than this one.", param="Host")
            await refusal(scope, receive, send)


class Access:
    """Middleware that asks for a key where one is needed."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it with 401."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        if self._refuses(scope):
            refusal = answer(
                401,
                "The request has no key that this server knows; expected a header Authorization: Bearer KEY.",
                headers={"WWW-Authenticate": "Bearer"},
            )
            await refusal(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refuses(self, scope: Scope) -> bool:
        """Whether a key is needed and missing; the name of a known one is kept for the log."""
        if not self._keys:
            return False
        name = self._keys.name_of(_given(Headers(scope=scope)))
        scope["o1_retriever.key"] = name
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        # A browser asks without a key whether it may ask with one.
        free = path in OPEN or path.startswith(_OPEN_FOLDER) or scope["method"] == "OPTIONS"
        return name is None and not free


def _given(headers: Headers) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")


logger = logging.getLogger("o1_retriever.server")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
# As nginx calls a request whose client did not wait.
GONE = 499


DEADLINE = "X-Request-Timeout"
# The last so many answers say how quick the server is.
_LATEST = 64
_LONGEST_RETRY_S = 60


class Observed:
    """Middleware that gives each request an id, counts it, and logs it without anybody's text.

    As the outermost it adds the headers that browsers heed to every answer, whoever made it.
    What nobody handled is answered here, with 500; the log has where it was raised, and not its message,
    which may hold a text.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, *, log_texts: bool) -> None:
        self._app, self._metrics, self._log_texts = app, metrics, log_texts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and note what became of it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        identity = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        status, started = GONE, time.perf_counter()

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = identity
                secure(headers)
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception as error:
            self._failed(identity, error)
            if status != GONE:
                raise
            message = f"The server failed; its log says more about request {identity}."
            await answer(500, message)(scope, receive, noted)
        finally:
            self._note(scope, identity, status, time.perf_counter() - started)

    def _note(self, scope: Scope, identity: str, status: int, seconds: float) -> None:
        path = getattr(scope.get("route"), "path", "other")
        self._metrics.requests.labels(path, str(status)).inc()
        self._metrics.seconds.labels(path).observe(seconds)
        client = scope.get("client") or ("", 0)
        record = {
            **_stamp("info"),
            "id": identity,
            "method": scope["method"],
            "path": path,
            "status": status,
            "ms": round(seconds * 1000, 3),
            "client": client[0],
            "key": scope.get("o1_retriever.key"),
        }
        logger.info("%s", json.dumps({name: value for name, value in record.items() if value is not None}))

    def _failed(self, identity: str, error: Exception) -> None:
        where = [
            f"{frame.filename}:{frame.lineno} {frame.name}"
            for frame in traceback.extract_tb(error.__traceback__)
        ]
        said = {"message": str(error)} if self._log_texts else {}
        record = {
            **_stamp("error"),
            "id": identity,
            "error": type(error).__name__,
            **said,
            "where": where[-8:],
        }
        logger.error("%s", json.dumps(record))


class JsonLines(logging.Formatter):
    """One JSON object a record. Texts that a message was made with are left out, unless `texts`."""

    def __init__(self, *, texts: bool) -> None:
        super().__init__()
        self._texts = texts

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        if record.name == logger.name:
            return record.getMessage()
        given = record.args if isinstance(record.args, tuple) else ()
        if not self._texts:
            given = tuple("[not logged]" if isinstance(each, str) else each for each in given)
        said = record.msg % given if given else str(record.msg)
        return json.dumps({**_stamp(record.levelname.lower()), "logger": record.name, "message": said})


def _stamp(level: str) -> dict[str, str]:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return {"time": now, "level": level}


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
        message = f"The request was not done within {seconds:g} s."
        if late and not client.answered:
            await answer(504, message)(scope, client.receive, client.send)
        elif late and client.streams:
            await client.send_error(message)


class _Client:
    """One client: what it has sent, whether it has an answer, and whether it has hung up."""

    def __init__(self, receive: Receive, send: Send, room: int, done: Callable[[_Client], None]) -> None:
        self._receive, self._send, self._room, self._done = receive, send, room, done
        self._asked, self._left = asyncio.Event(), asyncio.Event()
        self.answered = self.streams = self._whole = False

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
        if message["type"] == "http.response.start":
            self.streams = Headers(scope=message).get("content-type", "").startswith("text/event-stream")
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self._whole = True
            self._done(self)
        await self._send(message)

    async def send_error(self, message: str) -> None:
        """End a stream of events that has begun, so that it does not look like a broken connection."""
        if not self._whole:
            event = f"event: error\ndata: {json.dumps(body_of(504, message))}\n\n"
            await self.send({"type": "http.response.body", "body": event.encode()})

    async def left(self) -> None:
        """Wait until the client has hung up before its answer was whole."""
        await self._asked.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._left.set()
        if self._whole:  # nobody hung up: the answer has its end
            await asyncio.Event().wait()
