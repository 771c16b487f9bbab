"""The interface of fastembed's `TextEmbedding`, for programs that were written for it; needs no package.

```python
from fastembed_o1_retriever import O1TextEmbedding

model = O1TextEmbedding("models/o1-embedder-22m")
[query] = model.query_embed("Why does my bathroom mirror go blank?")
passages = list(model.passage_embed(["Water vapour condenses on cold glass."]))
```

`models/o1-embedder-22m` is a folder of the repository; any other `ThinkingEmbedder` does as well.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from o1_retriever.embedder import ThinkingEmbedder, as_embedder
from o1_retriever.query import History
from o1_retriever.thought import ThoughtSettings, Vector

__all__ = ["O1TextEmbedding"]


class O1TextEmbedding:
    """Embeds queries with thoughts about them and passages as they are, one float32 vector at a time.

    `model_name` is a `ThinkingEmbedder`, or the folder or Hub id of a checkpoint.
    """

    def __init__(
        self,
        model_name: ThinkingEmbedder | str | os.PathLike[str],
        *,
        settings: ThoughtSettings | None = None,
    ) -> None:
        self.embedder = as_embedder(model_name)
        named = not isinstance(model_name, ThinkingEmbedder)
        self.model_name = os.fspath(model_name) if named else self.embedder.space.fingerprint  # type: ignore[arg-type]
        self.settings = settings

    @property
    def embedding_size(self) -> int:
        """Length of the vectors."""
        return self.embedder.dimension

    def embed(
        self, documents: str | Iterable[str], batch_size: int = 256, parallel: int | None = None, **_: Any
    ) -> Iterator[Vector]:
        """Embed documents, without thinking; `parallel` is not needed and does nothing."""
        texts = [documents] if isinstance(documents, str) else documents
        for block in self.embedder.stream_documents(texts, batch_size=batch_size, show_progress_bar=False):
            yield from block

    def passage_embed(self, texts: Iterable[str], **options: Any) -> Iterator[Vector]:
        """Embed passages, without thinking."""
        yield from self.embed(texts, **options)

    def query_embed(
        self, query: str | Iterable[str], histories: Sequence[History] | None = None, **_: Any
    ) -> Iterator[Vector]:
        """Think about queries and embed them; `histories` are the conversations before each."""
        queries = [query] if isinstance(query, str) else list(query)
        embedded = self.embedder.embed_queries(
            queries, settings=self.settings, show_progress_bar=False, histories=histories
        )
        yield from (each.vector for each in embedded)
