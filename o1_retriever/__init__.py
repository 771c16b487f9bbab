"""Retrieval that thinks: thoughts about a query are embedded with it; documents are embedded once.

```python
from o1_retriever import ThinkingEmbedder

embedder = ThinkingEmbedder.from_parts(
    "HuggingFaceTB/SmolLM2-135M-Instruct",  # writes the thoughts
    "sentence-transformers/all-MiniLM-L6-v2",  # makes the vectors
)
embedding = embedder.embed_query("Why does my bathroom mirror go blank after a hot shower?")
print(embedding.thoughts[0].text)
```
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from o1_retriever.documents import Document
    from o1_retriever.embedder import ThinkingEmbedder
    from o1_retriever.errors import O1RetrieverError
    from o1_retriever.index.index import Index
    from o1_retriever.search.explanation import Explanation
    from o1_retriever.search.retriever import Retriever
    from o1_retriever.thought import QueryEmbedding, Thought, ThoughtSettings

# Loaded when first used (PEP 562), so that importing the package costs next to nothing.
_HOME = {
    "Document": "o1_retriever.documents",
    "Explanation": "o1_retriever.search.explanation",
    "Index": "o1_retriever.index.index",
    "O1RetrieverError": "o1_retriever.errors",
    "QueryEmbedding": "o1_retriever.thought",
    "Retriever": "o1_retriever.search.retriever",
    "ThinkingEmbedder": "o1_retriever.embedder",
    "Thought": "o1_retriever.thought",
    "ThoughtSettings": "o1_retriever.thought",
}

__all__ = [
    "Document",
    "Explanation",
    "Index",
    "O1RetrieverError",
    "QueryEmbedding",
    "Retriever",
    "ThinkingEmbedder",
    "Thought",
    "ThoughtSettings",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
