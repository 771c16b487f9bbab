"""A collection of a Chroma server (`chroma run`)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from o1_retriever.concurrency.processes import Sent
from o1_retriever.documents.document import Document
from o1_retriever.errors import SettingsError, StoreError, require
from o1_retriever.index.filters import Condition, Every, Part
from o1_retriever.index.foreign import Near
from o1_retriever.index.graph import HNSW
from o1_retriever.index.ledger import EmbeddedDocument, metadata_json
from o1_retriever.ranking.ranking import cosine_of_distance

chromadb = require("chromadb", extra="stores", purpose="A Chroma server")

_AT_ONCE = 1000
_NOTE = "o1_retriever"  # of the collection
_WHOLE = "o1_metadata"  # metadata as JSON, where Chroma has no form for some of them
_EXACT = 2**53


class ChromaStore(Sent):
    """A collection of the server at a URL; texts and metadata are where Chroma and LangChain look."""

    def __init__(self, url: str, collection: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SettingsError(
                f"Found {url!r}; expected the URL of a Chroma server.", hint="chroma:http://127.0.0.1:8000"
            )
        settings = chromadb.config.Settings(anonymized_telemetry=False)
        self.name = f"The collection {collection!r} of Chroma at {url}"
        try:
            self._client = chromadb.HttpClient(
                host=parts.hostname, port=parts.port or 8000, ssl=parts.scheme == "https", settings=settings
            )
        except Exception as error:  # it asks the server at once, and raises what it pleases
            raise StoreError(
                f"There is no Chroma at {url} ({error!s:.120}).", hint="Type: chroma run --path FOLDER"
            ) from error
        self._called = collection
        self._found: Any = None

    @property
    def _collection(self) -> Any:
        if self._found is None:
            try:
                self._found = self._client.get_collection(self._called, embedding_function=None)
            except chromadb.errors.NotFoundError as error:
                raise StoreError(f"{self.name} does not exist.", hint="Type: o1-retriever load") from error
        return self._found

    def description(self) -> dict[str, Any] | None:
        """What was noted when it was made."""
        try:
            noted = (self._collection.metadata or {}).get(_NOTE)
        except StoreError:
            return None
        return None if noted is None else json.loads(noted)

    def begin(self, description: dict[str, Any], dimension: int) -> None:
        """Make the collection."""
        self._found = self._client.get_or_create_collection(
            self._called,
            configuration={"hnsw": HNSW},
            metadata={_NOTE: json.dumps(description)},
            embedding_function=None,
        )

    def put(self, documents: Sequence[EmbeddedDocument]) -> None:
        """Keep documents."""
        for start in range(0, len(documents), _AT_ONCE):
            part = documents[start : start + _AT_ONCE]
            self._collection.upsert(
                ids=[each.document.id for each in part],
                documents=[each.document.text for each in part],
                embeddings=np.stack([each.vector for each in part]),
                metadatas=[_kept(each.document.metadata) for each in part],
            )

    def finish(self) -> None:
        """Chroma builds its graph meanwhile."""

    def count(self) -> int:
        """Number of documents."""
        return int(self._collection.count())

    def can(self, condition: Condition) -> bool:
        """Chroma compares within one type; of whole and other numbers and booleans all are asked for."""
        return condition.test in ("in", "gt", "gte", "lt", "lte") and all(
            abs(each) <= _EXACT if not isinstance(each, str) else condition.test == "in"
            for each in condition.operands
        )

    def nearest(self, vectors: Any, count: int, part: Part | None) -> list[list[Near]]:
        """Those that its graph finds."""
        found = self._collection.query(
            query_embeddings=vectors,
            n_results=count,
            where=None if part is None else _where(part),
            include=["distances", "metadatas"],
        )
        cosine = cosine_of_distance(self._collection)
        if cosine is None:
            raise StoreError(f"{self.name} has no cosines.", hint="Make it with the space cosine.")
        return [
            [
                Near(id, cosine(distance), _metadata(metadata))
                for id, distance, metadata in zip(*row, strict=True)
            ]
            for row in zip(found["ids"], found["distances"], found["metadatas"], strict=True)
        ]

    def documents(self, ids: Sequence[str]) -> dict[str, EmbeddedDocument]:
        """The documents of those ids."""
        found: dict[str, EmbeddedDocument] = {}
        for start in range(0, len(ids), _AT_ONCE):
            part = self._get(ids=list(ids[start : start + _AT_ONCE]))
            found |= {each.document.id: each for each in part}
        return found

    def pages(self, part: Part | None, *, vectors: bool) -> Iterator[list[EmbeddedDocument]]:
        """All that pass."""
        where, offset = (None if part is None else _where(part)), 0
        while page := self._get(where=where, limit=_AT_ONCE, offset=offset, vectors=vectors):
            yield page
            offset += len(page)

    def _get(self, *, vectors: bool = True, **which: Any) -> list[EmbeddedDocument]:
        include = ["documents", "metadatas", *(["embeddings"] if vectors else [])]
        found = self._collection.get(include=include, **which)
        rows = found["embeddings"] if vectors else [()] * len(found["ids"])
        return [
            EmbeddedDocument(
                document=Document(id=id, text=text or "", metadata=_metadata(metadata)),
                vector=np.asarray(vector, np.float32),
            )
            for id, text, metadata, vector in zip(
                found["ids"], found["documents"], found["metadatas"], rows, strict=True
            )
        ]

    def close(self) -> None:
        """Let go of the connection."""
        self._found = None


def _kept(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata that Chroma has a form for, and all of them as JSON: it refuses an empty dict."""
    plain = {name: value for name, value in metadata.items() if not isinstance(value, list)}
    return {**plain, _WHOLE: metadata_json(metadata)}


def _metadata(found: Mapping[str, Any] | None) -> dict[str, Any]:
    if found is None:
        return {}
    whole: dict[str, Any] = json.loads(found[_WHOLE]) if _WHOLE in found else dict(found)
    return whole


def _where(part: Part) -> dict[str, Any]:
    """A weaker filter in Chroma's words."""
    if isinstance(part, Condition):
        return _any([test for operand in part.operands for test in _tests(part, operand)] or _none(part))
    both = isinstance(part, Every)
    inner = [_where(each) for each in part.parts]  # type: ignore[union-attr]
    return inner[0] if len(inner) == 1 else {"$and" if both else "$or": inner}


def _tests(condition: Condition, operand: Any) -> list[dict[str, Any]]:
    if isinstance(operand, str):
        return [{condition.field: {"$eq": operand}}]
    field, below = condition.field, condition.test in ("lt", "lte")
    if condition.test == "in":
        same = [{field: {"$eq": float(operand)}}]
        if operand == int(operand):
            same.append({field: {"$eq": int(operand)}})
        return same + ([{field: {"$eq": bool(operand)}}] if operand in (0, 1) else [])
    # Whole numbers next to the bound on its outer side: more pass, none is lost.
    whole = int(np.ceil(operand)) if below else int(np.floor(operand))
    name = "$lte" if below else "$gte"
    booleans = [{field: {"$eq": value}} for value in (True, False)]
    return [{field: {name: float(operand)}}, {field: {name: whole}}, *booleans]


def _none(condition: Condition) -> list[dict[str, Any]]:
    """For one of no values, which nothing passes: what it finds is looked at again."""
    return [{condition.field: {"$eq": ""}}]


def _any(tests: list[dict[str, Any]]) -> dict[str, Any]:
    return tests[0] if len(tests) == 1 else {"$or": tests}
