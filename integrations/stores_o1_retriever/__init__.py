"""Vector stores of others, searched by a `Retriever` as our own index is: Chroma, Qdrant, pgvector, LanceDB.

```python
from o1_retriever import Retriever, ThinkingEmbedder
from stores_o1_retriever import open_index

embedder = ThinkingEmbedder.from_pretrained("models/o1-embedder-22m")
index = open_index("qdrant:http://127.0.0.1:6333", collection="docs")
retriever = Retriever(embedder, index, hybrid=True)
retriever.search("Why does my bathroom mirror go blank?", where={"year": {"$gte": 2000}})
```

`models/o1-embedder-22m` is a folder of the repository; any other `ThinkingEmbedder` does as well.

Documents are kept as the stores of LangChain keep theirs, so that those find them too; what is only known to
us (the id, the document space) stands beside it.
"""

from __future__ import annotations

import importlib

from o1_retriever.errors import SettingsError, require

require("psycopg", extra="stores", purpose="The adapters of vector stores")

from o1_retriever.index.foreign import ForeignIndex, VectorStore
from o1_retriever.vectors import VectorSpace

__all__ = ["open_index", "open_store"]

_MODULES = {
    "chroma": "chroma.ChromaStore",
    "qdrant": "qdrant.QdrantStore",
    "lancedb": "lance.LanceStore",
    "postgresql": "postgres.PostgresStore",
    "postgres": "postgres.PostgresStore",
}
_EXPECTED = "chroma:URL, qdrant:URL, qdrant:FOLDER, lancedb:FOLDER or postgresql://USER@HOST/DATABASE"


def open_store(address: str, collection: str = "documents") -> VectorStore:
    """The adapter of the store at an address. Raises `SettingsError` for what is no such address."""
    kind, _, place = address.partition(":")
    if kind not in _MODULES or not place:
        raise SettingsError(f"The address {address!r:.80} is none of a store; expected {_EXPECTED}.")
    module, name = _MODULES[kind].split(".")
    adapter = getattr(importlib.import_module(f"stores_o1_retriever.{module}"), name)
    store: VectorStore = adapter(address if kind.startswith("postgres") else place, collection)
    return store


def open_index(
    address: str, collection: str = "documents", *, space: VectorSpace | None = None
) -> ForeignIndex:
    """A collection for a `Retriever`. `space` None takes what `o1-retriever load` has noted with it.

    Pass `space=embedder.space` for a collection that others have filled with this embedder's vectors. Raises
    `StoreError` where nothing is noted and nothing is passed.
    """
    return ForeignIndex(open_store(address, collection), space=space)
