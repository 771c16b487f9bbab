"""Chroma's embedding function, and opening a collection with the certainty that it is of the same space."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from chromadb.api import ClientAPI
from chromadb.api.models.Collection import Collection
from chromadb.api.types import Documents, EmbeddingFunction, Embeddings, Space
from chromadb.utils.embedding_functions import register_embedding_function

from o1_retriever.embedder import ThinkingEmbedder
from o1_retriever.errors import FingerprintError, ModelError, SettingsError
from o1_retriever.query import History
from o1_retriever.thought import QueryEmbedding, ThoughtSettings


@register_embedding_function
class O1EmbeddingFunction(EmbeddingFunction[Documents]):
    """Embeds documents as they are and queries with thoughts about them.

    `embedder` is the folder or Hub id of a checkpoint, loaded when first used, or a `ThinkingEmbedder`.
    Chroma keeps the name, the settings and the fingerprint with the collection, and makes the function
    again when the collection is opened without one. It cannot do so from a `ThinkingEmbedder`: such a
    collection is opened with the function, or embedding raises `ModelError`.

    `settings` None takes the embedder's own; `truncate_dim` shortens all vectors. `fingerprint` is the
    document space that the embedder must have, None for any; `FingerprintError` when first used otherwise.
    """

    def __init__(
        self,
        embedder: ThinkingEmbedder | str | os.PathLike[str] | None,
        *,
        settings: ThoughtSettings | None = None,
        truncate_dim: int | None = None,
        fingerprint: str | None = None,
    ) -> None:
        self._loaded = embedder if isinstance(embedder, ThinkingEmbedder) else None
        self._model = os.fspath(embedder) if isinstance(embedder, str | os.PathLike) else None
        self._settings = settings
        self._truncate_dim = truncate_dim
        self._expected = fingerprint

    @property
    def embedder(self) -> ThinkingEmbedder:
        """The embedder behind it, loaded now if it has not been."""
        if self._loaded is None:
            if self._model is None:
                raise ModelError(
                    "The collection was made with an embedder that has no name to load it by.",
                    hint="Open it with embedding_function=O1EmbeddingFunction(embedder).",
                )
            self._loaded = ThinkingEmbedder.from_pretrained(self._model)
        found = self._loaded.space.fingerprint
        if self._expected not in (None, found):
            raise FingerprintError(
                f"The collection was made in the document space {self._expected}; the embedder's is {found}.",
                hint="Use the model that embedded the documents, or embed them again.",
            )
        return self._loaded

    @property
    def fingerprint(self) -> str:
        """The document space of the vectors; their truncation belongs to it."""
        return self._expected or self.embedder.space.fingerprint

    def __call__(self, input: Documents) -> Embeddings:
        """Embed documents, without thinking."""
        vectors = self.embedder.encode_documents(
            input, show_progress_bar=False, truncate_dim=self._truncate_dim
        )
        return list(np.asarray(vectors))

    def embed_query(self, input: Documents, histories: Sequence[History] | None = None) -> Embeddings:
        """Embed queries with thoughts about them.

        `histories` are the conversations before each; Chroma itself passes none. With one, type
        `collection.query(query_embeddings=function.embed_query(["Why?"], histories=[messages]))`.
        """
        return [embedding.vector for embedding in self.think(input, histories)]

    def think(self, queries: Documents, histories: Sequence[History] | None = None) -> list[QueryEmbedding]:
        """What `embed_query` makes, with the thoughts and timings that a bare vector does not show."""
        return self.embedder.embed_queries(
            queries,
            settings=self._settings,
            show_progress_bar=False,
            truncate_dim=self._truncate_dim,
            histories=histories,
        )

    @staticmethod
    def name() -> str:
        """The name under which Chroma knows it."""
        return "o1-retriever"

    def default_space(self) -> Space:
        """Cosine: the vectors are directions."""
        return "cosine"

    def supported_spaces(self) -> list[Space]:
        """All of them, as the vectors have length 1."""
        return ["cosine", "l2", "ip"]

    def get_config(self) -> dict[str, Any]:
        """What Chroma keeps with the collection, as JSON values."""
        return {
            "model": self._model,
            "settings": None if self._settings is None else self._settings.to_dict(),
            "truncate_dim": self._truncate_dim,
            "fingerprint": self.fingerprint,
        }

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> O1EmbeddingFunction:
        """Make it again from what Chroma kept; the model is loaded when first used."""
        O1EmbeddingFunction.validate_config(config)
        settings = config.get("settings")
        return O1EmbeddingFunction(
            config["model"],
            settings=None if settings is None else ThoughtSettings().with_changes(**settings),
            truncate_dim=config.get("truncate_dim"),
            fingerprint=config["fingerprint"],
        )

    @staticmethod
    def validate_config(config: dict[str, Any]) -> None:
        """Raise `SettingsError` for a configuration that is not ours."""
        missing = sorted({"model", "fingerprint"} - set(config))
        if missing:
            raise SettingsError(f"The configuration {config!r:.120} lacks {missing}.")

    def validate_config_update(self, old_config: dict[str, Any], new_config: dict[str, Any]) -> None:
        """Raise `FingerprintError` for an update to another document space."""
        for name in ("fingerprint", "truncate_dim"):
            old, new = old_config.get(name), new_config.get(name)
            if old != new:
                raise FingerprintError(
                    f"The {name} of the collection is {old!r}; it cannot be changed to {new!r}.",
                    hint="Make another collection and embed the documents again.",
                )


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
