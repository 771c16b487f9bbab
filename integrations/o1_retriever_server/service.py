"""What the routes of one server share: the embedder, its indexes, its limits and its figures."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import Depends, Request
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.exceptions import HTTPException

from o1_retriever import Index, Retriever, ThinkingEmbedder, ThoughtSettings
from o1_retriever.concurrency.shared import watching
from o1_retriever.errors import InputError, SettingsError
from o1_retriever.search.result import SearchOptions
from o1_retriever.thought import QueryEmbedding, Thought
from o1_retriever.vectors import TokenLimit

Kind = Literal["thinking", "fast", "document"]
# Behind the name of a model: how its texts are embedded.
SUFFIXES: dict[str, Kind] = {"": "thinking", ":fast": "fast", ":document": "document"}

# So many characters are tokenised in well under a millisecond: sooner than a thread can be asked.
_AT_ONCE = 4000
# Buckets of the figures.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]

# Names by which a server on the loopback interface may be addressed. Any other one comes from a page that has
# its own name point here (DNS rebinding).
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


class ServerSettings(BaseModel):
    """Limits of a server. What goes beyond one is refused before any model runs, and the answer says which.

    `max_waiting` requests are accepted and not yet answered at most; one more is answered with 429. A request
    is given up after `max_seconds`, or sooner where its header `X-Request-Timeout` says so. A request has
    `max_texts` texts with `max_tokens` tokens together, of which `max_queries` may be thought about, with
    `max_thoughts` thoughts of `max_new_tokens` tokens. `hosts` are the names in the `Host` header that are
    answered ("*": all), `cors_origins` the pages of other origins that may call, none of them by default.
    `token_ids` is the vocabulary of inputs that are token ids: an encoding of tiktoken, as OpenAI's clients
    send them, or "model" for the model's own. `log_texts` writes queries into the log.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_waiting: Count = 128
    max_seconds: Seconds = 60.0
    max_body_bytes: Count = 8 * 2**20
    max_texts: Count = 2048
    max_queries: Count = 256
    max_tokens: Count = 300_000
    max_hits: Count = 1000
    max_thoughts: Count = 16
    max_new_tokens: Count = 1024
    max_filter_characters: Count = 16_000
    max_turns: Count = 200
    hosts: tuple[str, ...] = LOOPBACK
    cors_origins: tuple[str, ...] = ()
    token_ids: str = "cl100k_base"
    log_texts: bool = False


class Closed(BaseModel):
    """An object whose unknown fields are refused; of many the first is named."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _first_unknown(cls, given: Any) -> Any:
        """Leave out the others: an error for each would cost more than the body."""
        if not isinstance(given, dict):
            return given
        first = next((name for name in given if name not in cls.model_fields), None)
        return {name: value for name, value in given.items() if name in cls.model_fields or name == first}


class ThoughtOptions(Closed):
    """How to think, where it is not to be as the server does it; the server's limits hold."""

    n_thoughts: int | None = Field(default=None, ge=1, description="How many thoughts.")
    temperature: float | None = Field(default=None, ge=0, le=100, description="0 takes the likeliest token.")
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_new_tokens: int | None = Field(default=None, ge=1, description="How long a thought may get.")
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    repetition_penalty: float | None = Field(default=None, ge=0.01, le=100)
    budget_ms: float | None = Field(default=None, gt=0, description="How long may be written about a query.")
    query_weight: float | None = Field(default=None, ge=0, le=100)
    guard: bool | None = Field(default=None, description="Leave out thoughts that cannot help.")


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
            "o1_thoughts", "Thoughts, cached to failed, and dropped.", ["how"], registry=registry
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


class Service:
    """One embedder behind an address, by its name, with the indexes that can be searched."""

    def __init__(
        self,
        embedder: ThinkingEmbedder,
        indexes: Mapping[str, Index | Retriever],
        *,
        name: str,
        settings: ServerSettings,
        options: SearchOptions,
        reports: Sequence[Path] = (),
    ) -> None:
        self.embedder, self.settings, self.name, self.reports = embedder, settings, name, reports
        self.retrievers = {
            each: found if isinstance(found, Retriever) else Retriever(embedder, found, **options)
            for each, found in indexes.items()
        }
        self.metrics = Metrics()
        self._warm: asyncio.Task[Any] | None = None
        self.stopping = False

    @property
    def ready(self) -> bool:
        """Whether the models are loaded and the server is not to stop; the first who asks has them loaded."""
        if self._warm is None:
            self.warm()
        task = self._warm
        return not self.stopping and task is not None and task.done() and not task.exception()

    def warm(self) -> asyncio.Task[Any]:
        """Load what is loaded when it is first used, and compute once."""
        if self._warm is None or (self._warm.done() and (self._warm.cancelled() or self._warm.exception())):
            self._warm = asyncio.ensure_future(self.embedder.aencode_documents(["Is everything here?"]))
        return self._warm

    @cached_property
    def token_limit(self) -> TokenLimit | None:
        """How the embedder counts tokens; None where nobody does."""
        return self.embedder.token_limit

    def kind_of(self, model: str | None) -> Kind:
        """How the texts of a request are embedded, by the model that it names. 404 for an unknown one."""
        for suffix, kind in SUFFIXES.items():
            if model is None or model == f"{self.name}{suffix}":
                return kind
        names = ", ".join(f"{self.name}{suffix}" for suffix in SUFFIXES)
        raise HTTPException(404, f"Found the model {model!r:.100}; expected one of {names}.")

    def retriever(self, name: str | None) -> Retriever:
        """The index of that name; None takes the only one. Raises 404."""
        found = self.retrievers.get(name) if name is not None else next(iter(self.retrievers.values()), None)
        if found is not None and (name is not None or len(self.retrievers) == 1):
            return found
        if not self.retrievers:
            raise HTTPException(404, "This server has no index. Start it with --index FOLDER.")
        names = ", ".join(map(repr, sorted(self.retrievers)))
        given = "no index" if name is None else f"the index {name!r:.100}"
        raise HTTPException(404, f"Found {given}; expected one of {names}.")

    def thought_settings(self, options: ThoughtOptions | None, *, fast: bool = False) -> ThoughtSettings:
        """The embedder's own settings with what a request changes. Raises `SettingsError` beyond a limit."""
        changes = {} if options is None else options.model_dump(exclude_none=True)
        for name, most in (
            ("n_thoughts", self.settings.max_thoughts),
            ("max_new_tokens", self.settings.max_new_tokens),
        ):
            if changes.get(name, 0) > most:
                raise SettingsError(f"{name} is {changes[name]}; this server allows at most {most}.")
        return self.embedder.settings.with_changes(**changes, thinking="never" if fast else None)

    def check_texts(self, texts: Sequence[str], *, thinking: bool) -> None:
        """Raise `InputError` or 413 for more texts than a request may have."""
        if not texts:
            raise InputError("The request has no text; expected at least one.")
        at_most(self.settings.max_texts, len(texts), "texts")
        if thinking:
            hint = f"Documents are not thought about: name the model {self.name}:document, or pass "
            hint += "input_type='document'."
            at_most(self.settings.max_queries, len(texts), "texts to think about", hint)

    async def count(self, texts: Sequence[str]) -> int:
        """Tokens of all texts, 0 where the encoder does not count. 413 for more than a request may have."""
        limit = self.token_limit
        if limit is None:
            return 0
        if sum(map(len, texts)) <= _AT_ONCE:
            found = sum(limit.count(texts))
        else:
            found = sum(await asyncio.to_thread(limit.count, texts))
        at_most(self.settings.max_tokens, found, "tokens")
        self.metrics.tokens.labels("input").inc(found)
        return found


def at_most(most: int, found: int, what: str, hint: str = "") -> None:
    """Raise 413 for more of something than a request may have."""
    if found > most:
        said = f"Found {found:,} {what}; expected at most {most:,} a request."
        raise HTTPException(413, f"{said} {hint}".rstrip())


async def _serving(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


# What a route takes.
Serving = Annotated[Service, Depends(_serving)]
