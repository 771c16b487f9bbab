"""What the tests of the LlamaIndex adapter share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from llama_index.core import VectorStoreIndex
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.schema import NodeWithScore, TextNode

from llama_index_o1_retriever import O1Embedding, O1Retriever
from o1_retriever import Retriever
from tests.support.adapters import METADATA, TEXTS, Mind, small_embedder


def nodes() -> list[TextNode]:
    # The metadata is not to be embedded with the text, so that both indexes hold the same vectors.
    return [
        TextNode(
            id_=name,
            text=text,
            metadata=METADATA[name],
            excluded_embed_metadata_keys=["topic", "page"],
        )
        for name, text in TEXTS.items()
    ]


def vector_index(mind: Mind | None = None, **options: Any) -> VectorStoreIndex:
    return VectorStoreIndex(nodes(), embed_model=O1Embedding(small_embedder(mind)), **options)


def over(ours: Retriever | None) -> Callable[..., O1Retriever]:
    """Makes retrievers over our index, or over LlamaIndex's own with the same nodes."""
    source = ours or vector_index()
    return lambda **options: O1Retriever(source, **options)


class Events(BaseEventHandler):
    def __init__(self) -> None:
        super().__init__()
        self._seen: list[Any] = []

    def handle(self, event: Any, **_: Any) -> None:
        self._seen.append(event)

    def named(self, name: str) -> list[Any]:
        return [event for event in self._seen if event.class_name() == name]


def ids(found: list[NodeWithScore]) -> list[str]:
    return [each.node.node_id for each in found]


def hearing() -> Iterator[Events]:
    """What event handlers are told, for the time of one test."""
    dispatcher, handler = get_dispatcher(), Events()
    dispatcher.add_event_handler(handler)
    yield handler
    dispatcher.event_handlers.remove(handler)
