"""From documents to rows: checking them, gathering them into batches, embedding those that are new."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from o1_retriever.documents import Document
from o1_retriever.errors import EncoderError, InputError
from o1_retriever.index.rows import Row, Session, metadata_json
from o1_retriever.query import check_text
from o1_retriever.thought import Vector
from o1_retriever.vectors import Precision, VectorSpace

# Batches of the encoder that are written at once: what a kill may cost.
_WRITE_EVERY = 2
_LARGEST = 2**63


class DocumentEmbedder(Protocol):
    """What turns documents into vectors; a `ThinkingEmbedder` does."""

    @property
    def space(self) -> VectorSpace:
        """Identity of the document space."""

    @property
    def precision(self) -> Precision:
        """How the encoder computes."""

    def encode_documents(
        self, documents: list[str], *, batch_size: int = ..., show_progress_bar: bool | None = ...
    ) -> Any:
        """A float array of shape (documents, dimension)."""


def batches(documents: Iterable[Document], batch_size: int) -> Iterator[list[Document]]:
    """Checked documents in portions to write at once. A bad one raises `InputError` after those before it."""
    batch: list[Document] = []
    for position, document in enumerate(documents):
        try:
            check_document(document, position)
        except InputError:
            if batch:
                yield batch
            raise
        batch.append(document)
        if len(batch) == batch_size * _WRITE_EVERY:
            yield batch
            batch = []
    if batch:
        yield batch


def check_document(document: Any, position: int) -> None:
    """Raise `InputError` unless the document can be kept."""
    if not isinstance(document, Document):
        raise InputError(
            f"document {position} is {type(document).__name__}; expected a Document.",
            hint="Write: Document(id='1', text='...', metadata={'source': 'a.txt'})",
            position=position,
        )
    check_text(document.id, what="the id of document", position=position)
    check_text(document.text, what="document", position=position)
    if not isinstance(document.metadata, dict):
        raise InputError(
            f"The metadata of document {position} is {type(document.metadata).__name__}; expected a dict.",
            position=position,
        )
    for key, value in document.metadata.items():
        if not _is_key(key) or not _is_value(value):
            raise InputError(
                f"document {position} has the metadata {key!r:.60}: {value!r:.60}; expected a name that does "
                "not begin with '$' or '#', and a string, a number of 64 bits, True or False.",
                position=position,
            )


def _is_key(key: object) -> bool:
    reserved = isinstance(key, str) and (key[:1] in ("$", "#", "") or key == "chroma:document")
    return isinstance(key, str) and not reserved and _is_unicode(key)


def _is_value(value: object) -> bool:
    if isinstance(value, str):
        return _is_unicode(value)
    if isinstance(value, int):
        return -_LARGEST <= value < _LARGEST
    return isinstance(value, float) and math.isfinite(value)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def new_documents(session: Session, batch: Sequence[Document]) -> tuple[list[Document], dict[bytes, Vector]]:
    """Those that are not in the index as they are, and what vectors of their texts there are.

    Of several with one id, the last counts.
    """
    latest = {document.id: document for document in batch}
    known = session.known(list(latest))
    new = [
        document
        for document in latest.values()
        if known.get(document.id) != (digest_of(document.text), metadata_json(document.metadata))
    ]
    return new, session.vectors_of_texts([digest_of(document.text) for document in new])


def digest_of(text: str) -> bytes:
    """16 bytes that stand for a text."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def embed_rows(
    embedder: DocumentEmbedder, documents: Sequence[Document], have: dict[bytes, Vector], *, batch_size: int
) -> list[Row]:
    """Rows for the documents. `have` are vectors by digest; each other text is embedded once."""
    digests = [digest_of(document.text) for document in documents]
    missing = {
        digest: document.text
        for digest, document in zip(digests, documents, strict=True)
        if digest not in have
    }
    vectors = dict(have)
    if missing:
        found = embedder.encode_documents(
            list(missing.values()), batch_size=batch_size, show_progress_bar=False
        )
        vectors.update(
            zip(missing, check_vectors(found, len(missing), embedder.space.dimension), strict=True)
        )
    return [
        Row(document=document, digest=digest, vector=vectors[digest])
        for document, digest in zip(documents, digests, strict=True)
    ]


def check_vectors(vectors: Any, count: int, dimension: int) -> Vector:
    """Return the encoder's vectors as float32 of shape (count, dimension). Raises `EncoderError`."""
    array = np.asarray(vectors, dtype=np.float32)
    if array.shape != (count, dimension):
        raise EncoderError(
            f"The embedder returned an array of shape {array.shape} for {count} documents; "
            f"expected {(count, dimension)}."
        )
    bad = ~np.isfinite(array).all(axis=1) | ~array.any(axis=1)
    if bad.any():
        raise EncoderError(
            f"The embedder returned {int(bad.sum())} vectors of {count} that are zero or not finite; "
            "expected a direction for each."
        )
    return array
