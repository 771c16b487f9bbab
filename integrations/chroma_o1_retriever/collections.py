"""Opening a Chroma collection with the certainty that its vectors are of the embedder's space."""

from __future__ import annotations

import json
from typing import Any

from chromadb.api import ClientAPI
from chromadb.api.models.Collection import Collection

from chroma_o1_retriever.function import O1EmbeddingFunction
from o1_retriever.errors import FingerprintError


def open_collection(
    client: ClientAPI, name: str, embedding_function: O1EmbeddingFunction, **options: Any
) -> Collection:
    """Open a collection, made when missing, and check that it is of the function's document space.

    Chroma itself accepts any function of the same name. `options` go to `get_or_create_collection`.
    Raises `FingerprintError` for a collection of another document space, or of another function's.
    """
    own = {key: embedding_function.get_config()[key] for key in ("fingerprint", "truncate_dim")}
    if name in {collection.name for collection in client.list_collections()}:
        _check(client.get_collection(name, embedding_function=None), own)
    return client.get_or_create_collection(name, embedding_function=embedding_function, **options)  # type: ignore[arg-type]


def _check(collection: Collection, own: dict[str, Any]) -> None:
    stored: Any = collection.configuration_json
    known = (json.loads(stored) if isinstance(stored, str) else stored).get("embedding_function") or {}
    if known.get("name") != O1EmbeddingFunction.name():
        raise FingerprintError(
            f"The collection {collection.name!r} was made with the embedding function "
            f"{known.get('name', 'none')!r}; expected {O1EmbeddingFunction.name()!r}."
        )
    kept = {key: known["config"].get(key) for key in own}
    if kept != own:
        raise FingerprintError(
            f"The collection {collection.name!r} is of another document space: {kept} there, {own} here.",
            hint="Use the model that embedded the documents, or make another collection.",
        )
