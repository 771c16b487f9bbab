"""A LlamaIndex retriever that thinks, over our index or over any `VectorStoreIndex`."""

from __future__ import annotations

from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.constants import DEFAULT_SIMILARITY_TOP_K
from llama_index.core.indices.base import BaseIndex
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index.core.settings import Settings
from llama_index.core.vector_stores.types import MetadataFilters

from llama_index_o1_retriever.embeddings import O1Embedding
from llama_index_o1_retriever.searches import IndexSearch, VectorStoreSearch, with_thoughts
from o1_retriever.concurrency.blocking import finished
from o1_retriever.embedder import ThinkingEmbedder
from o1_retriever.errors import SettingsError
from o1_retriever.explain.explanation import Explanation
from o1_retriever.index.hits import check_count
from o1_retriever.search.retriever import Retriever
from o1_retriever.thought import ThoughtSettings

_BASE_OPTIONS = ("callback_manager", "object_map", "objects", "verbose")


class O1Retriever(BaseRetriever):
    """Thinks about a query and finds the nearest nodes.

    `source` is our own `Retriever`, or a `VectorStoreIndex` over any vector store; for the latter
    `embed_model` (`O1Embedding` or a `ThinkingEmbedder`) thinks, None being the index's own, which must
    then be an `O1Embedding`. Scores are from 0 to 1 (see `o1_retriever.ranking.relevance`), but for a store's
    other query modes, which have their own. Nodes below `similarity_cutoff` are left out. `settings` None
    takes the embedder's own. `options` are those of every LlamaIndex retriever (`callback_manager`,
    `object_map`, `objects`, `verbose`), those of our search (`pooling`, `thinking`, and for our own index
    `hybrid`, see `SearchSettings`), and what else `index.as_retriever`, or `Retriever.search`, takes.

    A `QueryBundle` is honoured: its `embedding` is used as it is, without thinking; each of its
    `custom_embedding_strs` is thought about, and their mean is searched with; a `ConversationBundle` brings
    the conversation after which the thoughts are written.

    The thoughts, and the raw scores of our own index, are told to the event handlers as `O1ThoughtsEvent`.
    Nodes stay as they are, since their metadata goes into prompts; with `thoughts_in_metadata=True` it gains
    `thoughts`, a string that prompts and embeddings leave out.
    """

    def __init__(
        self,
        source: Retriever | BaseIndex[Any],
        *,
        embed_model: O1Embedding | ThinkingEmbedder | None = None,
        similarity_top_k: int = DEFAULT_SIMILARITY_TOP_K,
        similarity_cutoff: float | None = None,
        filters: MetadataFilters | None = None,
        settings: ThoughtSettings | None = None,
        thoughts_in_metadata: bool = False,
        **options: Any,
    ) -> None:
        check_count("similarity_top_k", similarity_top_k)
        own = {name: options.pop(name) for name in _BASE_OPTIONS if name in options}
        self._similarity_top_k = similarity_top_k
        self._cutoff = similarity_cutoff
        self._shows_thoughts = thoughts_in_metadata
        call: dict[str, Any] = {
            "k": similarity_top_k,
            "filters": filters,
            "settings": settings,
            "options": options,
        }
        self._search: IndexSearch | VectorStoreSearch
        if isinstance(source, Retriever):
            if embed_model is not None:
                raise SettingsError("Found a Retriever and an embed_model; the retriever brings its own.")
            self._search = IndexSearch(source, **call)
        elif isinstance(source, BaseIndex):
            own = {"object_map": source._object_map, "callback_manager": source._callback_manager, **own}
            model = _thinking_model(embed_model or source._embed_model)  # type: ignore[attr-defined]
            self._search = VectorStoreSearch(source, model, **call)
        else:
            raise SettingsError(
                f"source is a {type(source).__name__}; expected our Retriever or a VectorStoreIndex."
            )
        own.setdefault("callback_manager", Settings.callback_manager)
        super().__init__(**own)

    @property
    def similarity_top_k(self) -> int:
        """How many nodes are returned."""
        return self._similarity_top_k

    def explain(self, query: str | QueryBundle) -> Explanation:
        """What each thought finds in our own index, and what thinking moved.

        Of a bundle the query counts, and the history of a `ConversationBundle`; `similarity_cutoff` is not
        applied. Raises `SettingsError` over a `VectorStoreIndex`.
        """
        if isinstance(self._search, VectorStoreSearch):
            raise SettingsError(
                "This retriever searches a VectorStoreIndex; explain needs our own index.",
                hint="Type: O1Retriever(Retriever(embedder, index)).explain(query)",
            )
        bundle = QueryBundle(query) if isinstance(query, str) else query
        return self._search.explain(bundle)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return finished(self._nodes(query_bundle, blocking=True))

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await self._nodes(query_bundle, blocking=False)

    async def _nodes(self, bundle: QueryBundle, *, blocking: bool) -> list[NodeWithScore]:
        nodes, embeddings = await self._search.retrieve(bundle, blocking=blocking)
        if self._shows_thoughts:
            nodes = [with_thoughts(node, embeddings) for node in nodes]
        if self._cutoff is None:
            return nodes
        return [each for each in nodes if each.score is not None and each.score >= self._cutoff]


def _thinking_model(model: Any) -> O1Embedding:
    if isinstance(model, ThinkingEmbedder):
        return O1Embedding(model)
    if not isinstance(model, O1Embedding):
        raise SettingsError(
            f"The index's embed_model is a {type(model).__name__}; expected an O1Embedding.",
            hint="Pass embed_model=O1Embedding(...), of the model that embedded the nodes.",
        )
    return model
