"""Chroma: an embedding function that thinks about queries, so that `query(query_texts=...)` does.

```python
import chromadb
from chroma_o1_retriever import O1EmbeddingFunction, open_collection

client = chromadb.PersistentClient("chroma")
collection = open_collection(client, "facts", O1EmbeddingFunction("models/o1-embedder-22m"))
collection.add(ids=["1"], documents=["Water vapour condenses on cold glass."])
collection.query(query_texts=["Why does my bathroom mirror go blank?"], n_results=1)
```

`models/o1-embedder-22m` is a folder of the repository; any other `ThinkingEmbedder` does as well.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from o1_retriever.errors import require

require("chromadb", extra="index", purpose="The Chroma embedding function")

import numpy as np
from chromadb.api import ClientAPI
from chromadb.api.models.Collection import Collection
from chromadb.api.types import Documents, EmbeddingFunction, Embeddings, Space
from chromadb.utils.embedding_functions import register_embedding_function

from o1_retriever.embedder import ThinkingEmbedder, as_embedder
from o1_retriever.errors import FingerprintError, ModelError, SettingsError
from o1_retriever.query import History
from o1_retriever.thought import QueryEmbedding, ThoughtSettings

__all__ = ["O1EmbeddingFunction", "open_collection"]


@register_embedding_function
class O1EmbeddingFunction(EmbeddingFunction[Documents]):
    """Embeds documents as they are and queries with thoughts about them.

    `embedder` is the folder or Hub id of a checkpoint, loaded when first used, or a `ThinkingEmbedder`.
    Chroma keeps the name, the settings and the fingerprint with the collection, and makes the function
    again when the collection is opened without one; for a `ThinkingEmbedder` it cannot, and embedding raises
    `ModelError`. `settings` None takes the embedder's own; `truncate_dim` shortens all vectors. `fingerprint`
    is the document space that the embedder must have (None: any), or using it raises `FingerprintError`.
    """

    def __init__(
        self,
        embedder: ThinkingEmbedder | str | os.PathLike[str] | None,
        *,
        settings: ThoughtSettings | None = None,
        truncate_dim: int | None = None,
        fingerprint: str | None = None,
    ) -> None:
        self._given, self._expected = embedder, fingerprint
        self._settings, self._truncate_dim = settings, truncate_dim

    @cached_property
    def embedder(self) -> ThinkingEmbedder:
        """The embedder behind it, loaded when first used."""
        if self._given is None:
            what = "The collection was made with an embedder that has no name to load it by."
            raise ModelError(what, hint="Open it with embedding_function=O1EmbeddingFunction(embedder).")
        embedder = as_embedder(self._given)
        found = embedder.space.fingerprint
        _check_same({"fingerprint": self._expected or found}, {"fingerprint": found})
        return embedder

    def __call__(self, input: Documents) -> Embeddings:
        """Embed documents, without thinking."""
        how: Any = {"show_progress_bar": False, "truncate_dim": self._truncate_dim}
        return list(np.asarray(self.embedder.encode_documents(input, **how)))

    def embed_query(self, input: Documents, histories: Sequence[History] | None = None) -> Embeddings:
        """Embed queries with thoughts; `histories` are the conversations before each. With one, type
        `collection.query(query_embeddings=function.embed_query(["Why?"], histories=[messages]))`.
        """
        return [embedding.vector for embedding in self.think(input, histories)]

    def think(self, queries: Documents, histories: Sequence[History] | None = None) -> list[QueryEmbedding]:
        """What `embed_query` makes, with the thoughts and timings that a bare vector does not show."""
        how: Any = {"settings": self._settings, "truncate_dim": self._truncate_dim, "histories": histories}
        return self.embedder.embed_queries(queries, show_progress_bar=False, **how)

    @staticmethod
    def name() -> str:
        """The name under which Chroma knows it."""
        return "o1-retriever"

    def default_space(self) -> Space:
        """Cosine: the vectors are directions."""
        return "cosine"

    def get_config(self) -> dict[str, Any]:
        """What Chroma keeps with the collection, as JSON values."""
        return {
            "model": None if isinstance(self._given, ThinkingEmbedder | None) else os.fspath(self._given),
            "settings": self._settings and self._settings.to_dict(),
            "truncate_dim": self._truncate_dim,
            "fingerprint": self._expected or self.embedder.space.fingerprint,
        }

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> O1EmbeddingFunction:
        """Make it again from what Chroma kept; the model is loaded when first used."""
        O1EmbeddingFunction.validate_config(config)
        settings = config.get("settings") and ThoughtSettings().with_changes(**config["settings"])
        own: Any = {name: config.get(name) for name in ("truncate_dim", "fingerprint")}
        return O1EmbeddingFunction(config["model"], settings=settings, **own)

    @staticmethod
    def validate_config(config: dict[str, Any]) -> None:
        """Raise `SettingsError` for a configuration that is not ours."""
        missing = sorted({"model", "fingerprint"} - set(config))
        if missing:
            raise SettingsError(f"The configuration {config!r:.120} lacks {missing}.")

    def validate_config_update(self, old_config: dict[str, Any], new_config: dict[str, Any]) -> None:
        """Raise `FingerprintError` for an update to another document space."""
        _check_same(old_config, new_config)


def _check_same(kept: dict[str, Any], own: dict[str, Any]) -> None:
    for name in ("fingerprint", "truncate_dim"):
        there, here = kept.get(name), own.get(name)
        if there != here:
            what = f"The collection is of another document space: its {name} is {there}, and {here} here."
            raise FingerprintError(what, hint="Use its model, or embed the documents again into another one.")


def open_collection(
    client: ClientAPI, name: str, embedding_function: O1EmbeddingFunction, **options: Any
) -> Collection:
    """`client.get_or_create_collection(name, **options)`, of the function's document space for certain.

    Chroma itself accepts any function of the same name; this raises `FingerprintError`.
    """
    if name in {collection.name for collection in client.list_collections()}:
        stored: Any = client.get_collection(name, embedding_function=None).configuration_json
        known = (json.loads(stored) if isinstance(stored, str) else stored).get("embedding_function") or {}
        if (found := known.get("name", "none")) != embedding_function.name():
            what = f"The collection {name!r} was made with the embedding function {found!r}"
            raise FingerprintError(f"{what}; expected {embedding_function.name()!r}.")
        _check_same(known["config"], embedding_function.get_config())
    return client.get_or_create_collection(name, embedding_function=embedding_function, **options)  # type: ignore[arg-type]
