"""A collection of Qdrant: of a server by its URL, or of a folder (the client's local mode)."""

from __future__ import annotations

import atexit
import re
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from o1_retriever.concurrency.processes import Sent
from o1_retriever.documents.document import Document
from o1_retriever.errors import StoreError, require
from o1_retriever.index.filters import Condition, Every, Part
from o1_retriever.index.foreign import Near
from o1_retriever.index.ledger import EmbeddedDocument

client = require("qdrant_client", extra="stores", purpose="Qdrant")
models = client.models

_AT_ONCE = 500
_NOTE = "o1_retriever"  # of the collection
# Where LangChain's store keeps them too.
_ID, _TEXT, _METADATA = "o1_id", "page_content", "metadata"
_NAMESPACE = uuid.UUID("6f317231-0000-4000-8000-000000000000")
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_EXACT = 2**53  # greater whole numbers are rounded where it compares


class QdrantStore(Sent):
    """A collection of the server at a URL, or of a folder."""

    def __init__(self, place: str, collection: str) -> None:
        remote = place.startswith(("http://", "https://"))
        self.name = f"The collection {collection!r} of Qdrant in {place}"
        self._collection = collection
        try:
            self._client = (
                client.QdrantClient(url=place, check_compatibility=False) if remote else _local(place)
            )
            self._there = self._client.collection_exists(collection)
        except Exception as error:  # what a client raises depends on its transport
            raise StoreError(
                f"Qdrant cannot be opened in {place} ({error!s:.120}).",
                hint="Check the address; a folder can be open in one process alone.",
            ) from error

    def description(self) -> dict[str, Any] | None:
        """What was noted when it was made."""
        if not self._there:
            return None
        noted: dict[str, Any] | None = (
            self._client.get_collection(self._collection).config.metadata or {}
        ).get(_NOTE)
        return noted

    def begin(self, description: dict[str, Any], dimension: int) -> None:
        """Make the collection."""
        if not self._there:
            self._client.create_collection(
                self._collection,
                vectors_config=models.VectorParams(size=dimension, distance=models.Distance.COSINE),
                metadata={_NOTE: description},
            )
            self._there = True

    def put(self, documents: Sequence[EmbeddedDocument]) -> None:
        """Keep documents."""
        for start in range(0, len(documents), _AT_ONCE):
            points = [
                models.PointStruct(
                    id=_point(each.document.id),
                    vector=each.vector.tolist(),
                    payload={
                        _ID: each.document.id,
                        _TEXT: each.document.text,
                        _METADATA: dict(each.document.metadata),
                    },
                )
                for each in documents[start : start + _AT_ONCE]
            ]
            self._client.upsert(self._collection, points, wait=True)

    def finish(self) -> None:
        """Qdrant builds its graph by itself."""

    def count(self) -> int:
        """Number of documents."""
        return int(self._client.count(self._collection, exact=True).count)

    def can(self, condition: Condition) -> bool:
        """Strings that are equal, and numbers that are not too great, of fields with plain names."""
        return (
            condition.test in ("in", "gt", "gte", "lt", "lte")
            and _PLAIN.fullmatch(condition.field) is not None
            and all(
                condition.test == "in" if isinstance(each, str) else abs(each) <= _EXACT
                for each in condition.operands
            )
        )

    def nearest(self, vectors: Any, count: int, part: Part | None) -> list[list[Near]]:
        """Those that its graph finds."""
        requests = [
            models.QueryRequest(
                query=vector.tolist(),
                filter=None if part is None else _filter(part),
                limit=count,
                with_payload=[_ID, _METADATA],
            )
            for vector in vectors
        ]
        found = self._client.query_batch_points(self._collection, requests)
        return [
            [Near(_id(point), point.score, dict((point.payload or {}).get(_METADATA) or {})) for point in
            each.points] for each in found ]  # fmt: skip

    def documents(self, ids: Sequence[str]) -> dict[str, EmbeddedDocument]:
        """The documents of those ids."""
        found: dict[str, EmbeddedDocument] = {}
        for start in range(0, len(ids), _AT_ONCE):
            points = [_point(id) for id in ids[start : start + _AT_ONCE]]
            rows = self._client.retrieve(self._collection, points, with_payload=True, with_vectors=True)
            found |= {each.document.id: each for each in map(_embedded, rows)}
        return found

    def pages(self, part: Part | None, *, vectors: bool) -> Iterator[list[EmbeddedDocument]]:
        """All that pass."""
        chosen, offset = (None if part is None else _filter(part)), None
        while True:
            rows, offset = self._client.scroll(
                self._collection, chosen, limit=_AT_ONCE, offset=offset, with_vectors=vectors
            )
            if rows:
                yield [_embedded(row) for row in rows]
            if offset is None:
                return

    def close(self) -> None:
        """Let go of the connection, or of the folder."""
        if self._client in _folders.values():
            _users[self._client] -= 1
            if _users[self._client]:
                return
            _folders.pop(next(path for path, each in _folders.items() if each is self._client))
        self._client.close()


# The client of each folder, which one alone may have open, and how many use it in this process.
_folders: dict[Path, Any] = {}
_users: Counter[Any] = Counter()


def _local(place: str) -> Any:
    """The client of a folder."""
    path = Path(place).expanduser().absolute()
    if path not in _folders:
        _folders[path] = client.QdrantClient(path=str(path))
        # One that is never closed prints an error of its own while Python ends.
        atexit.register(_folders[path].close)
    _users[_folders[path]] += 1
    return _folders[path]


def _point(id: str) -> str:
    """Qdrant's own id: the same UUID, or one that is made of another id."""
    try:
        return str(uuid.UUID(id))
    except ValueError:
        return str(uuid.uuid5(_NAMESPACE, id))


def _id(point: Any) -> str:
    return str((point.payload or {}).get(_ID, point.id))


def _embedded(point: Any) -> EmbeddedDocument:
    payload = point.payload or {}
    document = Document(
        id=_id(point), text=payload.get(_TEXT) or "", metadata=dict(payload.get(_METADATA) or {})
    )
    return EmbeddedDocument(document=document, vector=np.asarray(point.vector or (), np.float32))


def _filter(part: Part) -> Any:
    """A weaker filter in Qdrant's words. Of a list in a payload one element is enough."""
    if isinstance(part, Condition):
        key = f"{_METADATA}.{part.field}"
        return models.Filter(should=[test for each in part.operands for test in _tests(key, part.test, each)])
    inner = [_filter(each) for each in part.parts]  # type: ignore[union-attr]
    return models.Filter(must=inner) if isinstance(part, Every) else models.Filter(should=inner)


def _tests(key: str, test: str, operand: Any) -> list[Any]:
    def field(**how: Any) -> Any:
        return models.FieldCondition(key=key, **how)

    if isinstance(operand, str):
        return [field(match=models.MatchValue(value=operand))]
    booleans = [field(match=models.MatchValue(value=value)) for value in (True, False)]
    if test == "in":
        return [field(range=models.Range(gte=operand, lte=operand)), *(booleans if operand in (0, 1) else [])]
    bound = {"lte": operand} if test in ("lt", "lte") else {"gte": operand}
    return [field(range=models.Range(**bound)), *booleans]
