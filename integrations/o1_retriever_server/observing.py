"""What a server says about itself: figures for Prometheus, and a line of JSON for each request."""

from __future__ import annotations

import json
import logging
import re
import time
import traceback
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from o1_retriever.concurrency.shared import watching
from o1_retriever.thought import QueryEmbedding, Thought
from o1_retriever_server.access import secure
from o1_retriever_server.problems import answer

logger = logging.getLogger("o1_retriever.server")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
# As nginx calls a request whose client did not wait.
GONE = 499


class Metrics:
    """The figures of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "o1_requests", "Requests by route and status.", ["path", "status"], registry=registry
        )
        self.seconds = Histogram(
            "o1_request_seconds",
            "Seconds until the answer's end.",
            ["path"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.waiting = Gauge("o1_waiting", "Requests accepted and not yet answered.", registry=registry)
        self.batches = Histogram(
            "o1_batch_size", "What one batch holds: queries, or parts of a request's documents.",
            ["thread"], buckets=_ROWS, registry=registry,
        )  # fmt: skip
        self.tokens = Counter("o1_tokens", "Tokens: input, prompt, thought.", ["kind"], registry=registry)
        self.thoughts = Counter(
            "o1_thoughts",
            "Thoughts, cached to failed, and dropped.",
            ["how"],
            registry=registry,
        )
        self.stages = Histogram(
            "o1_stage_seconds", "Seconds of a query by stage: think, embed, search.",
            ["stage"], buckets=_SECONDS, registry=registry,
        )  # fmt: skip

    def embedded(self, embeddings: Iterable[QueryEmbedding]) -> None:
        """Count queries that have been embedded."""
        for embedding in embeddings:
            self.stages.labels("embed").observe(embedding.timings.embed_ms / 1000)
            if embedding.thoughts:
                self.stages.labels("think").observe(embedding.timings.think_ms / 1000)
            self.thought(embedding.thoughts)

    def thought(self, thoughts: Sequence[Thought]) -> None:
        """Count thoughts, and what those cost that were written now."""
        for thought in thoughts:
            found = {"failed": "failed", "given": "given"}.get(thought.finish)
            how = found or ("cached" if thought.cached else "written")
            if thought.dropped:
                self.thoughts.labels("dropped").inc()
            self.thoughts.labels(how).inc()
            if how == "written":
                self.tokens.labels("prompt").inc(thought.prompt_tokens)
                self.tokens.labels("thought").inc(thought.completion_tokens)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the batches of this process meanwhile."""
        with watching(lambda thread, size: self.batches.labels(thread).observe(size)):
            yield

    def page(self) -> bytes:
        """All figures, in Prometheus' text format."""
        return generate_latest(self.registry)


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
