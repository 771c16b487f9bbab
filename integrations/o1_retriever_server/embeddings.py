"""`/v1/embeddings` and `/v1/models`, as OpenAI's clients speak them."""

from __future__ import annotations

import asyncio
import base64
import codecs
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from o1_retriever.errors import InputError, SettingsError
from o1_retriever.thought import Vector
from o1_retriever_server.problems import RESPONSES
from o1_retriever_server.service import SUFFIXES, Kind, Service, Serving, ThoughtOptions

router = APIRouter(prefix="/v1", tags=["vectors"], responses=RESPONSES)

# Ours, those of Voyage and NVIDIA, and those of Cohere. Texts that are compared with each other are not
# thought about.
InputType = Literal[
    "query", "document", "passage", "search_query", "search_document", "classification", "clustering"
]
_QUERIES = ("query", "search_query")

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
# What is wrong with a list is said of its first bad element: a body may have millions.
_Texts = Annotated[list[str], Field(fail_fast=True)]
_Row = Annotated[list[TokenId], Field(fail_fast=True)]
_Rows = Annotated[list[_Row], Field(fail_fast=True)]


class EmbeddingRequest(BaseModel):
    """Texts to embed. Fields that are not OpenAI's are optional; unknown ones are ignored."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"input": "Why does my bathroom mirror go blank?", "thoughts": True},
                {
                    "input": ["Water vapour condenses on cold glass.", "Yeast makes dough rise."],
                    "input_type": "document",
                },
            ]
        }
    )

    input: str | _Texts | _Row | _Rows = Field(description="A text, several, or the same as token ids.")
    model: str | None = Field(
        default=None, description="`NAME` thinks about each text; `NAME:fast` and `NAME:document` do not."
    )
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, ge=1, description="Vectors are cut to it, and normalised.")
    user: str | None = None
    input_type: InputType | None = Field(
        default=None, description="What the texts are; None is as the model's name says."
    )
    thoughts: bool = Field(default=False, description="Return the thoughts with the vectors.")
    thought_settings: ThoughtOptions | None = None


class ThoughtRecord(BaseModel):
    """One thought about a query; `error` says why it could not be had."""

    text: str
    finish: str
    error: str | None = None
    dropped: str | None = None
    tokens: int
    cached: bool


class EmbeddingRecord(BaseModel):
    """One vector, as numbers or as base64 of little-endian float32."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str
    thoughts: list[ThoughtRecord] | None = None


class Usage(BaseModel):
    """Tokens of the texts; the total has those of the thoughts too. 0 where the encoder does not count."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingResponse(BaseModel):
    """The vectors in the order of the texts."""

    object: Literal["list"] = "list"
    data: list[EmbeddingRecord]
    model: str
    usage: Usage


class ModelRecord(BaseModel):
    """A name to ask for, and what its vectors are."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "o1-retriever"
    thinks: bool
    dimension: int
    max_tokens: int | None
    fingerprint: str


class ModelList(BaseModel):
    """All names."""

    object: Literal["list"] = "list"
    data: list[ModelRecord]


@router.post("/embeddings", response_model_exclude_none=True)
async def embeddings(asked: EmbeddingRequest, service: Serving) -> EmbeddingResponse:
    """Embed texts: queries with thoughts about them, documents without."""
    kind = _kind(service, asked)
    texts = await _texts(asked.input, service)
    service.check_texts(texts, thinking=kind == "thinking")
    dimension = service.embedder.dimension
    if asked.dimensions is not None and asked.dimensions > dimension:
        raise SettingsError(f"dimensions is {asked.dimensions}; expected at most {dimension}.")
    tokens = await service.count(texts)
    thoughts: Sequence[list[ThoughtRecord] | None] = [None] * len(texts)
    written = 0
    if kind == "document":
        rows: Any = await service.embedder.aencode_documents(texts, truncate_dim=asked.dimensions)
    else:
        settings = service.thought_settings(asked.thought_settings, fast=kind == "fast")
        embedded = await service.embedder.aembed_queries(
            texts, settings=settings, truncate_dim=asked.dimensions
        )
        service.metrics.embedded(embedded)
        rows = [each.vector for each in embedded]
        written = sum(each.thought_tokens for each in embedded)
        if asked.thoughts:
            thoughts = [[ThoughtRecord(**one.to_dict()) for one in each.thoughts] for each in embedded]
    return EmbeddingResponse.model_construct(
        data=[
            # Made by us, so that nobody need look at each number again.
            EmbeddingRecord.model_construct(index=place, embedding=_encoded(row, asked), thoughts=own)
            for place, (row, own) in enumerate(zip(rows, thoughts, strict=True))
        ],
        model=asked.model or service.name,
        usage=Usage(prompt_tokens=tokens, total_tokens=tokens + written),
    )


@router.get("/models")
async def models(service: Serving) -> ModelList:
    """The names that `model` may have."""
    return ModelList(data=[_record(service, suffix) for suffix in SUFFIXES])


@router.get("/models/{name:path}")
async def model(name: str, service: Serving) -> ModelRecord:
    """What is behind one name."""
    service.kind_of(name)
    return _record(service, name.removeprefix(service.name))


def _record(service: Service, suffix: str) -> ModelRecord:
    space = service.embedder.space
    return ModelRecord(
        id=f"{service.name}{suffix}",
        thinks=SUFFIXES[suffix] == "thinking",
        dimension=space.dimension,
        max_tokens=space.max_tokens,
        fingerprint=space.fingerprint,
    )


def _kind(service: Service, asked: EmbeddingRequest) -> Kind:
    """What the name of the model and the type of the input say together."""
    named = service.kind_of(asked.model)
    if asked.input_type is None:
        return named
    if asked.input_type not in _QUERIES:
        return "document"
    if named == "document":
        raise InputError(
            f"Found the model {asked.model!r:.100} with input_type {asked.input_type!r}; expected one."
        )
    return named


def _encoded(row: Vector, asked: EmbeddingRequest) -> list[float] | str:
    if asked.encoding_format == "base64":
        return base64.b64encode(row.astype("<f4").tobytes()).decode("ascii")
    numbers: list[float] = np.asarray(row, np.float32).tolist()
    return numbers


async def _texts(
    given: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]], service: Service
) -> list[str]:
    """The texts of an input, token ids read as text."""
    if isinstance(given, str):
        return [given]
    if all(isinstance(each, str) for each in given):
        return list(given)  # type: ignore[arg-type]
    rows: Any = [given] if isinstance(given[0], int) else given
    encoding = service.settings.token_ids
    try:
        # The first time a vocabulary is read.
        return await asyncio.to_thread(_decoded, rows, encoding, service)
    except InputError:
        raise
    except Exception as error:
        raise HTTPException(
            400,
            f"The input is token ids, which cannot be read by the vocabulary {encoding!r} of this server "
            f"({type(error).__name__}). Send texts; LangChain does with check_embedding_ctx_length=False.",
        ) from error


def _decoded(rows: Sequence[Sequence[int]], encoding: str, service: Service) -> list[str]:
    if encoding == "model":
        limit = service.token_limit
        if limit is None:
            raise InputError("The input is token ids, and the encoder says of no vocabulary; expected texts.")
        tokenizer = _tokenizer(limit.tokenizer)
        size = tokenizer.get_vocab_size()
        for place, row in enumerate(rows):
            if any(each >= size for each in row):
                raise InputError(
                    f"Input {place} has the token id {max(row)}; expected ids below {size}.", position=place
                )
        return [str(tokenizer.decode(list(row))) for row in rows]
    import tiktoken

    found = tiktoken.get_encoding(encoding)
    return [_whole(found.decode_bytes(list(row))) for row in rows]


def _whole(raw: bytes) -> str:
    """The text of UTF-8 that may have been cut within a character at either end: the rest of it is left out.

    Where nothing else is there, a replacement character stands for it.
    """
    most = min(3, len(raw))
    start = next((at for at in range(most) if raw[at] & 0xC0 != 0x80), most)
    text = codecs.getincrementaldecoder("utf-8")().decode(raw[start:])
    return text or ("\N{REPLACEMENT CHARACTER}" if raw else "")


@lru_cache(maxsize=1)
def _tokenizer(text: str) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(text)
