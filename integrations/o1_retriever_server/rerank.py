"""`/v1/rerank` in the shape that Cohere and Jina share, and `/rerank` as text-embeddings-inference has it."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import APIRouter
from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from o1_retriever.ranking.ranking import of_score
from o1_retriever.thought import QueryEmbedding
from o1_retriever_server.embeddings import ThoughtRecord, Usage
from o1_retriever_server.problems import RESPONSES
from o1_retriever_server.service import Service, Serving, ThoughtOptions

router = APIRouter(tags=["search"], responses=RESPONSES)

_EXAMPLE: dict[str, Any] = {
    "query": "Why does my bathroom mirror go blank?",
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
            "examples": [{"query": _EXAMPLE["query"], "texts": _EXAMPLE["documents"], "return_text": True}]
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
