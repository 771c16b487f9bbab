"""The application: its routes, and the order of what a request passes on its way to them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import FileResponse, PlainTextResponse, Response
from mcp.server.mcpserver import MCPServer
from mcp.server.transport_security import TransportSecuritySettings
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.staticfiles import StaticFiles

from o1_retriever import Index, Retriever, ThinkingEmbedder, __version__
from o1_retriever.search.result import SearchOptions
from o1_retriever_server import embeddings, searching, views
from o1_retriever_server.agents import agent_server
from o1_retriever_server.middleware import Access, Admission, Hosts, Keys, Observed
from o1_retriever_server.problems import add_handlers
from o1_retriever_server.service import ServerSettings, Service, Serving

_PAGE = Path(__file__).parent / "page"


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
