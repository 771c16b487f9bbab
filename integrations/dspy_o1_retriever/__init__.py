"""DSPy: `Retrieve` over our own index, and the retriever over a list of passages, both of which think.

```python
import dspy
from dspy_o1_retriever import O1Embeddings

passages = ["Water vapour condenses on cold glass.", "Yeast makes dough rise."]
search = O1Embeddings(passages, "models/o1-embedder-22m", k=1)
print(search("Why does my bathroom mirror go blank?").passages)
```

`models/o1-embedder-22m` is a folder of the repository; any other `ThinkingEmbedder` does as well.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

from o1_retriever.errors import require

require("dspy", extra="dspy", purpose="The DSPy adapter")

import dspy
import numpy as np
from dspy.retrievers import EmbeddingsWithScores

from o1_retriever.embedder import ThinkingEmbedder, as_embedder
from o1_retriever.query import as_query
from o1_retriever.search.result import SearchResult
from o1_retriever.search.retriever import Retriever
from o1_retriever.thought import ThoughtSettings, Vector, texts_of

__all__ = ["O1Embedder", "O1Embeddings", "O1Retrieve"]


class O1Retrieve(dspy.Retrieve):  # type: ignore[misc] # dspy has no types
    """Thinks about a query and finds the nearest passages of our own index, in a module or as `rm`.

    The prediction has `passages`, their `ids`, `metadata` and `scores` from 0 to 1, and the `thoughts`.
    `search_options` are those of `Retriever.search`, such as `hybrid=True` or a `where`. With
    `dspy.configure(rm=O1Retrieve(...).rm)` a plain `dspy.Retrieve` searches with it.
    """

    def __init__(
        self, retriever: Retriever, k: int = 3, callbacks: Any = None, **search_options: Any
    ) -> None:
        super().__init__(k=k, callbacks=callbacks)
        self._retriever = retriever
        self._options = search_options

    def forward(
        self, query: str, k: int | None = None, history: Any = None, **options: Any
    ) -> dspy.Prediction:
        """The passages, best first; `history` is a `dspy.History`, or any that `Conversation.of` reads."""
        found = self._search(query, k, history, options)
        return dspy.Prediction(
            passages=[hit.text for hit in found],
            ids=[hit.id for hit in found],
            metadata=[dict(hit.metadata) for hit in found],
            scores=[hit.relevance for hit in found],
            thoughts=texts_of(found.thoughts),
        )

    def rm(self, query: str, k: int | None = None, **options: Any) -> list[dspy.Example]:
        """What `dspy.configure(rm=...)` is given: passages as objects with `long_text`, `pid` and `score`."""
        found = self._search(query, k, options.pop("history", None), options)
        return [dspy.Example(long_text=hit.text, pid=hit.id, score=hit.relevance) for hit in found]

    def _search(self, query: str, k: int | None, history: Any, options: dict[str, Any]) -> SearchResult:
        asked = as_query(query, list(_turns(history)) if isinstance(history, dspy.History) else history)
        return self._retriever.search(asked, k=k or self.k, **{**self._options, **options})


def _turns(history: dspy.History) -> Iterator[tuple[str, str]]:
    """The messages of DSPy, which are fields: the last one of each is the answer, the others were asked."""
    for message in history.messages:
        fields = list(message.values())
        roles = ["user"] * (len(fields) - 1) + ["assistant"] if len(fields) > 1 else ["user"]
        yield from ((role, str(value)) for role, value in zip(roles, fields, strict=True))


class O1Embedder(dspy.Embedder):  # type: ignore[misc] # dspy has no types
    """Embeds texts as documents, without thinking; `embed_queries` thinks.

    `embedder` is a `ThinkingEmbedder`, or the folder or Hub id of a checkpoint. DSPy's own cache is off, as
    the embedder keeps thoughts and query vectors itself.
    """

    def __init__(
        self,
        embedder: ThinkingEmbedder | str | os.PathLike[str],
        *,
        settings: ThoughtSettings | None = None,
        batch_size: int = 200,
    ) -> None:
        self.embedder = as_embedder(embedder)
        self.settings = settings
        super().__init__(self._embed_documents, batch_size=batch_size, caching=False)

    def _embed_documents(self, texts: list[str]) -> Vector:
        return np.asarray(self.embedder.encode_documents(texts, show_progress_bar=False))

    def embed_queries(self, queries: Sequence[str]) -> Vector:
        """Vectors of queries with thoughts about them, float32 (queries, dimension)."""
        vectors = self.embedder.encode_queries(queries, settings=self.settings, show_progress_bar=False)
        return np.asarray(vectors)


class O1Embeddings(EmbeddingsWithScores):  # type: ignore[misc] # dspy has no types
    """DSPy's retriever over a list of passages, which thinks about queries; several at once share a batch.

    The prediction has `passages`, `indices` and `scores`, which are cosines. `options` are those of
    `dspy.retrievers.Embeddings`.
    """

    def __init__(
        self,
        corpus: list[str],
        embedder: O1Embedder | ThinkingEmbedder | str | os.PathLike[str],
        k: int = 5,
        **options: Any,
    ) -> None:
        own = embedder if isinstance(embedder, O1Embedder) else O1Embedder(embedder)
        super().__init__(corpus, own, k=k, **options)
        # The passages have been embedded: from here on DSPy asks for queries alone.
        self.embedder = own.embed_queries
