"""The application: its routes, what a request passes on its way to them, how many are worked on at once."""

from __future__ import annotations

import asyncio
import json
import math
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import FileResponse, PlainTextResponse, Response
from mcp.server.mcpserver import MCPServer
from mcp.server.transport_security import TransportSecuritySettings
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from o1_retriever import Index, Retriever, ThinkingEmbedder, __version__
from o1_retriever.search.result import SearchOptions
from o1_retriever_server import embeddings, searching, views
from o1_retriever_server.access import Access, Hosts, Keys
from o1_retriever_server.agents import agent_server
from o1_retriever_server.observing import Metrics, Observed
from o1_retriever_server.problems import add_handlers, answer, body_of
from o1_retriever_server.service import ServerSettings, Service, Serving

_PAGE = Path(__file__).parent / "page"

DEADLINE = "X-Request-Timeout"
# The last so many answers say how quick the server is.
_LATEST = 64
_LONGEST_RETRY_S = 60


class State(BaseModel):
    """How the server is, and what it serves."""

    status: str
    version: str = __version__
    model: str
    indexes: list[str]


def create_app(
    embedder: ThinkingEmbedder,
    indexes: Mapping[str, Index | Retriever] | None = None,
    *,
    name: str = "o1-retriever",
    keys: Keys | None = None,
    settings: ServerSettings | None = None,
    options: SearchOptions | None = None,
    reports: Sequence[str | os.PathLike[str]] = (),
) -> FastAPI:
    """An application that serves an embedder under `name`, and searches `indexes` by theirs.

    `keys` are those that a request must have (None: none is asked for). `options` are those of the
    retrievers that are made of indexes, `reports` folders of `o1-retriever eval --report` that the page
    shows. Mounted in another application, it loads its models when `/ready` is first asked, or a request
    comes, and `/mcp` needs its lifespan (docs/serving.md).
    Raises `FingerprintError` for an index of another embedder, `SettingsError` for a folder without a report.
    """
    chosen = settings or ServerSettings()
    folders = [Path(each) for each in reports]
    views.read_reports(folders)  # what cannot be read is said now
    service = Service(
        embedder, indexes or {}, name=name, settings=chosen, options=options or {}, reports=folders
    )
    agents = agent_server(service)

    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        with service.metrics.running():
            await service.warm()
            async with agents.session_manager.run():
                yield
                service.stopping = True

    app = FastAPI(
        title="o1-retriever",
        version=__version__,
        summary="Vectors, thoughts and passages: retrieval that thinks.",
        lifespan=running,
        docs_url=None,  # these two load scripts from elsewhere
        redoc_url=None,
        middleware=_middleware(service, keys or Keys({})),
    )
    app.state.service = service
    add_handlers(app)
    for router in (embeddings.router, searching.router, views.router):
        app.include_router(router)
    _add_states(app)
    _add_pages(app)
    app.router.routes.extend(_agent_app(agents, chosen).routes)
    return app


def _agent_app(agents: MCPServer[Any], settings: ServerSettings) -> Starlette:
    """The route `/mcp`: each request by itself, so that no session is kept for anybody."""
    hosts = [host for name in settings.hosts for host in (name, f"{name}:*")]
    origins = [f"http://{host}" for host in hosts]
    security = TransportSecuritySettings(
        enable_dns_rebinding_protection="*" not in settings.hosts,
        allowed_hosts=hosts,
        allowed_origins=[*origins, *settings.cors_origins],
    )
    return agents.streamable_http_app(
        streamable_http_path="/mcp",
        json_response=True,
        stateless_http=True,
        max_request_body_size=settings.max_body_bytes,
        transport_security=security,
    )


def _middleware(service: Service, keys: Keys) -> list[Middleware]:
    """What a request passes, the outermost first."""
    settings = service.settings
    cors: dict[str, Any] = {
        "allow_origins": settings.cors_origins,
        "allow_methods": ["GET", "POST"],
        "allow_headers": ["*"],
    }
    return [
        Middleware(Observed, metrics=service.metrics, log_texts=settings.log_texts),
        Middleware(Hosts, names=settings.hosts),
        *([Middleware(CORSMiddleware, **cors)] if settings.cors_origins else []),
        Middleware(Access, keys=keys),
        Middleware(Admission, settings=settings, metrics=service.metrics),
    ]


def _add_states(app: FastAPI) -> None:
    @app.get("/health", tags=["state"])
    async def health() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    @app.get("/ready", tags=["state"], responses={503: {"model": State}})
    async def ready(service: Serving, response: Response) -> State:
        """Whether requests should be sent here: not while models are loaded, nor before the end."""
        state = service.ready
        response.status_code = 200 if state else 503
        return State(
            status="ready" if state else "not ready", model=service.name, indexes=sorted(service.retrievers)
        )

    @app.get("/metrics", tags=["state"], response_class=PlainTextResponse)
    async def metrics(service: Serving) -> Response:
        """Figures for Prometheus."""
        return Response(service.metrics.page(), media_type=CONTENT_TYPE_LATEST)


def _add_pages(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(_PAGE / "index.html")

    @app.get("/docs", include_in_schema=False)
    async def api() -> FileResponse:
        return FileResponse(_PAGE / "api.html")

    app.mount("/page", StaticFiles(directory=_PAGE))


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
