"""A query of LlamaIndex that carries the conversation before it."""

from __future__ import annotations

from dataclasses import dataclass

from llama_index.core.schema import QueryBundle

from o1_retriever.query import Conversation, History


@dataclass
class ConversationBundle(QueryBundle):
    """A query with its history, for retrievers and query engines: `ConversationBundle("Why?", history=chat)`.

    `history` are the messages of LlamaIndex before the query (`memory.get()`, `chat_engine.chat_history`), or
    any that `Conversation.of` reads. `O1Retriever` writes its thoughts after them; others see the query.
    """

    history: History = None


def history_of(bundle: QueryBundle) -> Conversation:
    """What was said before the query; an ordinary bundle has no history."""
    return Conversation.of(bundle.history if isinstance(bundle, ConversationBundle) else None)
