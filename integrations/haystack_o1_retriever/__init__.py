"""Haystack: a text embedder that thinks, a document embedder, and a retriever over our own index.

```python
from haystack import Document
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack_o1_retriever import O1DocumentEmbedder, O1TextEmbedder

store = InMemoryDocumentStore(embedding_similarity_function="cosine")
documents = [Document(content="Water vapour condenses on cold glass.")]
store.write_documents(O1DocumentEmbedder("models/o1-embedder-22m").run(documents)["documents"])
asked = O1TextEmbedder("models/o1-embedder-22m").run("Why does my bathroom mirror go blank?")
found = store.embedding_retrieval(asked["embedding"], top_k=1)
```
"""

from o1_retriever.extras import require

require("haystack", extra="haystack", purpose="The Haystack adapter", distribution="haystack-ai")

from haystack.core import serialization  # noqa: E402 - after the check above

from haystack_o1_retriever.components import O1DocumentEmbedder, O1Retriever, O1TextEmbedder  # noqa: E402

# Haystack 3 reads components from a file only of modules that are trusted: whoever imports this one does.
if hasattr(serialization, "allow_deserialization_module"):
    serialization.allow_deserialization_module("haystack_o1_retriever.components")

__all__ = ["O1DocumentEmbedder", "O1Retriever", "O1TextEmbedder"]
