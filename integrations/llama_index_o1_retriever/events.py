"""What LlamaIndex's event handlers learn about the thinking."""

from __future__ import annotations

from typing import Any

from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.events.base import BaseEvent  # type: ignore[attr-defined]

from o1_retriever.guard import Decision
from o1_retriever.search.result import thought_record
from o1_retriever.thought import QueryEmbedding

_dispatcher = get_dispatcher(__name__)


class O1ThoughtsEvent(BaseEvent):
    """A query has been thought about and embedded.

    `thoughts` are dicts with `text`, `finish`, `error`, `tokens` and `cached`; a thought that could not be
    had has `finish="failed"` and its reason. The list is empty where there was no thinking; `decision` says
    why or why not (`think`, `reason`, `worth`, `threshold`) where a search decided it.
    """

    query: str
    thoughts: list[dict[str, Any]]
    think_ms: float
    embed_ms: float
    decision: dict[str, Any] | None = None

    @classmethod
    def class_name(cls) -> str:
        """Class name."""
        return "O1ThoughtsEvent"


def announce(embedding: QueryEmbedding, decision: Decision | None = None) -> None:
    """Tell the handlers what was thought about one query."""
    _dispatcher.event(
        O1ThoughtsEvent(
            query=embedding.query,
            thoughts=[thought_record(thought) for thought in embedding.thoughts],
            think_ms=embedding.timings.think_ms,
            embed_ms=embedding.timings.embed_ms,
            decision=None if decision is None else decision.to_dict(),
        )
    )
