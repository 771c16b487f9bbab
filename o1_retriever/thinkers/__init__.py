"""Who writes the thoughts: a chat endpoint, a file of recorded thoughts, or a function of yours."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from o1_retriever.endpoint.limits import RequestPolicy
from o1_retriever.endpoint.prompt import DEFAULT_PROMPT, ChatPrompt
from o1_retriever.errors import SettingsError
from o1_retriever.query import Query
from o1_retriever.thinkers.endpoint import OpenAIThinker
from o1_retriever.thinkers.function import CallableThinker
from o1_retriever.thinkers.recorded import RecordedThinker
from o1_retriever.thought import Thought, ThoughtSettings

__all__ = [
    "DEFAULT_PROMPT",
    "CallableThinker",
    "ChatPrompt",
    "OpenAIThinker",
    "RecordedThinker",
    "RequestPolicy",
    "Thinker",
    "as_thinker",
]


@runtime_checkable
class Thinker(Protocol):
    """Anything that writes thoughts about queries."""

    @property
    def identity(self) -> str | None:
        """Who writes, named the same in every process, for cache keys; None: thoughts are not to be kept."""
        ...

    def think(
        self, queries: Sequence[Query], *, settings: ThoughtSettings, start: int = 0
    ) -> list[list[Thought]]:
        """Thoughts `start` to `settings.n_thoughts - 1` about every query, in the order of the queries.

        A query has a `text` and the `history` before it, both checked. Thought i of a query depends on the
        settings, the query and i, neither on how many thoughts there are nor on the other queries. A thought
        that could not be had is `Thought.failure`, never an empty one. Raises `ThinkerError` when no thought
        can be had at all.
        """
        ...


def as_thinker(value: Any) -> Thinker:
    """A thinker from what users have: a thinker, a function, or the path of a file of recorded thoughts.

    Raises `SettingsError` for anything else.
    """
    if isinstance(value, str | os.PathLike):
        if os.fspath(value).endswith((".jsonl", ".jsonl.gz")):
            return RecordedThinker(value)
        raise SettingsError(
            f"The thinker is {os.fspath(value)!r:.80}; expected a .jsonl file of recorded thoughts.",
            hint="For a model behind an endpoint, pass OpenAIThinker(model, base_url=...).",
        )
    if not isinstance(value, type):
        if isinstance(value, Thinker):
            return value
        if isinstance(value, Mapping):
            return RecordedThinker(value)
        if callable(value):
            return CallableThinker(value)
    raise SettingsError(
        f"The thinker is {value!r:.80}; expected a thinker, a function(queries, n_thoughts) or a .jsonl file."
    )
