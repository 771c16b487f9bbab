"""Chroma: an embedding function that thinks about queries, so that `query(query_texts=...)` does.

```python
import chromadb
from chroma_o1_retriever import O1EmbeddingFunction, open_collection

client = chromadb.PersistentClient("chroma")
collection = open_collection(client, "facts", O1EmbeddingFunction("models/o1-embedder-22m"))
collection.add(ids=["1"], documents=["Water vapour condenses on cold glass."])
collection.query(query_texts=["Why does my bathroom mirror go blank?"], n_results=1)
```
"""

from o1_retriever.extras import require

require("chromadb", extra="index", purpose="The Chroma embedding function")

from chroma_o1_retriever.function import (  # noqa: E402 - after the check above
    O1EmbeddingFunction,
    open_collection,
)

__all__ = ["O1EmbeddingFunction", "open_collection"]
