"""Passages, why they were found, thoughts as they are written, and documents put into order.

`/v1/rerank` has the shape that Cohere and Jina share, `/rerank` that of text-embeddings-inference.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Depends
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from o1_retriever.errors import O1RetrieverError
from o1_retriever.ranking.ranking import of_score
from o1_retriever.search.explanation import Explanation
from o1_retriever.search.result import SearchResult
from o1_retriever.thought import QueryEmbedding, ThoughtPiece
from o1_retriever_server.embeddings import ThoughtRecord, Usage
from o1_retriever_server.problems import RESPONSES, body_of
from o1_retriever_server.service import Closed, Service, Serving, ThoughtOptions, at_most

router = APIRouter(tags=["search"], responses=RESPONSES)

QUERY = "Why does my bathroom mirror go blank?"


class Turn(BaseModel):
    """What was said before the query, by whom."""

    role: str
    content: str


class Asked(Closed):
    """A query with the conversation before it."""

    query: str = Field(min_length=1)
    history: list[Turn] = Field(
        default=[], fail_fast=True, description="The turns before the query, oldest first."
    )
    thought_settings: ThoughtOptions | None = None

    def said(self) -> list[str]:
        """The texts whose tokens are counted: the query and what was said before."""
        return [self.query, *(turn.content for turn in self.history)]

    def turns(self, service: Service) -> list[dict[str, str]]:
        """The conversation as the library reads it. Raises 413 for more turns than the server accepts."""
        at_most(service.settings.max_turns, len(self.history), "turns before the query")
        return [{"role": turn.role, "content": turn.content} for turn in self.history]


class ThinkRequest(Asked):
    """A query to think about."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"query": QUERY, "thought_settings": {"n_thoughts": 2}}]}
    )


class SearchRequest(Asked):
    """A query to search with."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"query": QUERY, "k": 3},
                {"query": QUERY, "k": 3, "thinking": "never", "where": {"page": {"$gte": 1}}},
                {"query": QUERY, "k": 3, "thoughts": ["Water vapour condenses on cold glass."]},
                {
                    "query": "And on glass?",
                    "history": [
                        {"role": "user", "content": "What is dew?"},
                        {"role": "assistant", "content": "Water that condenses on cold grass."},
                    ],
                },
            ]
        }
    )

    thoughts: Annotated[list[str], Field(fail_fast=True)] | None = Field(
        default=None, description="Your own thoughts about it: then none is written. [] searches without."
    )
    index: str | None = Field(default=None, description="Which index; None takes the only one.")
    k: int = Field(default=10, ge=1, description="How many passages.")
    where: dict[str, Any] | None = Field(default=None, description="A filter by metadata (docs/filters.md).")
    thinking: Literal["always", "auto", "never"] | None = Field(
        default=None, description="auto thinks where the query alone finds nothing clear."
    )
    hybrid: bool | None = Field(default=None, description="Fuse with BM25, which reads the thoughts too.")
    pooling: Literal["mean", "best"] | None = Field(
        default=None, description="Search for the mean of the thoughts, or for each: the best counts."
    )
    min_relevance: float | None = Field(
        default=None,
        ge=0,
        le=1,
        examples=[0.5],
        description="Leave out passages that are relevant with a smaller probability; there may be none. "
        "Needs an index that was calibrated (`o1-retriever calibrate`), whose hits have a `probability`.",
    )

    async def arguments(self, service: Service) -> dict[str, Any]:
        """What `Retriever.asearch` takes besides the query. Raises 413 for more than the server accepts."""
        await self._check(service)
        options = ("thinking", "hybrid", "pooling", "min_relevance")
        return {
            "k": self.k,
            "where": self.where,
            "settings": service.thought_settings(self.thought_settings),
            "history": self.turns(service),
            "thoughts": self.thoughts,
            **{name: value for name in options if (value := getattr(self, name)) is not None},
        }

    async def _check(self, service: Service) -> None:
        given, limits = self.thoughts or [], service.settings
        at_most(limits.max_thoughts, len(given), "thoughts about the query")
        at_most(limits.max_hits, self.k, "passages to find")
        if self.where is not None:
            at_most(limits.max_filter_characters, len(json.dumps(self.where)), "characters of filter")
        await service.count([*self.said(), *given])


class Record(BaseModel):
    """A record of the library, whose further fields are passed on."""

    model_config = ConfigDict(extra="allow")


class HitRecord(Record):
    """A passage that was found. `score` is the cosine, `relevance` on one scale for every search.

    With `min_relevance` there is a `probability` too, of being relevant.
    """

    rank: int
    relevance: float
    score: float
    id: str
    source: str
    text: str
    metadata: dict[str, Any]


class SearchResponse(Record):
    """What was found, best first, and what was thought on the way."""

    query: str
    thoughts: list[ThoughtRecord]
    timings: dict[str, float]
    hits: list[HitRecord]


class MoveRecord(Record):
    """A passage's rank without thinking and with it."""

    id: str
    before: int | None
    after: int | None
    change: Literal["new", "gone", "up", "down", "same"]
    thoughts: list[int]


class ExplainResponse(Record):
    """The result, what is found without thinking, and what moved."""

    query: str
    result: SearchResponse
    without: list[HitRecord]
    moves: list[MoveRecord]
    timings: dict[str, float]


async def found(asked: SearchRequest, service: Service) -> SearchResult:
    """Search as a request says. Raises for what cannot be used, and for more than the server accepts."""
    retriever = service.retriever(asked.index)
    result = await retriever.asearch(asked.query, **await asked.arguments(service))
    service.metrics.embedded([result.embedding])
    service.metrics.stages.labels("search").observe(result.search_ms / 1000)
    return result


async def explained(asked: SearchRequest, service: Service) -> Explanation:
    """Search with thinking and without; all else is as in `found`."""
    retriever = service.retriever(asked.index)
    explanation = await retriever.aexplain(asked.query, **await asked.arguments(service))
    service.metrics.embedded([explanation.result.embedding])
    return explanation


@router.post("/v1/search")
async def search(asked: SearchRequest, service: Serving) -> SearchResponse:
    """Think about a query, and find the passages nearest to it."""
    return SearchResponse.model_validate((await found(asked, service)).to_dict())


@router.post("/v1/explain")
async def explain(asked: SearchRequest, service: Serving) -> ExplainResponse:
    """Search with thinking and without, and say what moved and which thought did it."""
    return ExplainResponse.model_validate((await explained(asked, service)).to_dict())


async def _pieces(asked: ThinkRequest, service: Serving) -> AsyncIterator[AsyncGenerator[ThoughtPiece]]:
    """The thoughts about to be written; what cannot be used is refused before the answer begins."""
    await service.count(asked.said())
    settings = service.thought_settings(asked.thought_settings)
    pieces = service.embedder.astream_thoughts(asked.query, settings=settings, history=asked.turns(service))
    try:
        yield pieces
    finally:
        await pieces.aclose()


@router.post("/v1/think", response_class=EventSourceResponse)
async def think(
    pieces: Annotated[AsyncGenerator[ThoughtPiece], Depends(_pieces)], service: Serving
) -> AsyncIterator[ServerSentEvent]:
    """Write thoughts about a query, as server-sent events.

    `piece` comes while they are written, `thought` for each as it is kept, and `done` last; or `error`.
    """
    try:
        async for piece in pieces:
            if piece.text:
                yield ServerSentEvent(event="piece", data={"index": piece.index, "text": piece.text})
            if piece.thought is not None:
                service.metrics.thought([piece.thought])
                yield ServerSentEvent(event="thought", data={"index": piece.index, **piece.thought.to_dict()})
        yield ServerSentEvent(event="done", data={})
    except O1RetrieverError:
        yield ServerSentEvent(event="error", data=body_of(500, "The thoughts could not be written."))


_EXAMPLE: dict[str, Any] = {
    "query": QUERY,
    "documents": ["Yeast makes dough rise.", "Warm water vapour condenses on cold glass."],
    "top_n": 1,
    "return_documents": True,
}


class TextDocument(BaseModel):
    """A document as an object; other fields of it are ignored."""

    text: str


class RerankRequest(BaseModel):
    """A query and documents to put into order. Unknown fields are ignored."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    query: str = Field(min_length=1)
    documents: list[str | TextDocument] = Field(
        fail_fast=True, validation_alias=AliasChoices("documents", "texts")
    )
    model: str | None = Field(default=None, description="`NAME` thinks about it, `NAME:fast` does not.")
    top_n: int | None = Field(default=None, ge=1, description="How many of the best to return; None: all.")
    return_documents: bool = False
    thoughts: bool = Field(default=False, description="Return the thoughts about the query.")
    thought_settings: ThoughtOptions | None = None


class RankedDocument(BaseModel):
    """A document by its place in the request; the score is from 0 to 1."""

    index: int
    relevance_score: float
    document: TextDocument | None = None


class RerankResponse(BaseModel):
    """The documents, best first."""

    id: str
    model: str
    results: list[RankedDocument]
    usage: Usage
    thoughts: list[ThoughtRecord] | None = None


class TextsRequest(BaseModel):
    """The same as text-embeddings-inference asks for it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"query": QUERY, "texts": _EXAMPLE["documents"], "return_text": True}]
        }
    )

    query: str = Field(min_length=1)
    texts: list[str] = Field(fail_fast=True)
    return_text: bool = False
    raw_scores: bool = Field(default=False, description="Cosines from -1 to 1, and not what is below 0 as 0.")


class RankedText(BaseModel):
    """A text by its place in the request."""

    index: int
    score: float
    text: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Ranking:
    """Places of documents, best first, with their cosines; the query with its thoughts, and tokens read."""

    places: list[int]
    cosines: list[float]
    embedding: QueryEmbedding
    tokens: int


async def _ranked(
    service: Service, query: str, documents: Sequence[str], model: str | None, options: ThoughtOptions | None
) -> _Ranking:
    fast = service.kind_of(model) != "thinking"
    service.check_texts(documents, thinking=False)
    tokens = await service.count([query, *documents])
    settings = service.thought_settings(options, fast=fast)
    embedding = await service.embedder.aembed_query(query, settings=settings)
    service.metrics.embedded([embedding])
    rows: Any = await service.embedder.aencode_documents(documents)
    cosines = [float(each) for each in np.asarray(rows) @ embedding.vector]
    places = sorted(range(len(documents)), key=lambda place: (-cosines[place], place))
    return _Ranking(places=places, cosines=cosines, embedding=embedding, tokens=tokens)


@router.post("/v1/rerank", response_model_exclude_none=True)
@router.post("/v2/rerank", response_model_exclude_none=True, include_in_schema=False)
async def rerank(asked: RerankRequest, service: Serving) -> RerankResponse:
    """Put documents into the order of their nearness to a query that is thought about."""
    texts = [each if isinstance(each, str) else each.text for each in asked.documents]
    ranking = await _ranked(service, asked.query, texts, asked.model, asked.thought_settings)
    written = ranking.embedding.thought_tokens
    return RerankResponse(
        id=uuid.uuid4().hex,
        model=asked.model or service.name,
        results=[
            RankedDocument(
                index=place,
                relevance_score=of_score(ranking.cosines[place]),
                document=TextDocument(text=texts[place]) if asked.return_documents else None,
            )
            for place in ranking.places[: asked.top_n]
        ],
        usage=Usage(prompt_tokens=ranking.tokens, total_tokens=ranking.tokens + written),
        thoughts=[ThoughtRecord(**one.to_dict()) for one in ranking.embedding.thoughts]
        if asked.thoughts
        else None,
    )


@router.post("/rerank", response_model_exclude_none=True)
async def rerank_texts(asked: TextsRequest, service: Serving) -> list[RankedText]:
    """The same in the shape of text-embeddings-inference."""
    ranking = await _ranked(service, asked.query, asked.texts, None, None)
    return [
        RankedText(
            index=place,
            score=ranking.cosines[place] if asked.raw_scores else of_score(ranking.cosines[place]),
            text=asked.texts[place] if asked.return_text else None,
        )
        for place in ranking.places
    ]
