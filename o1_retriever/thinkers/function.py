"""Thoughts that a function of the caller's writes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from o1_retriever.concurrency.processes import Sent
from o1_retriever.errors import SettingsError, ThinkerError
from o1_retriever.query import Query
from o1_retriever.reporting import counted
from o1_retriever.thinkers.recorded import written
from o1_retriever.thought import Thought, ThoughtSettings


class CallableThinker(Sent):
    """A function of yours: `function(queries, n_thoughts)` returns so many thoughts of each query, in order.

    None or an empty string stands for a thought that could not be written; a `Thought` is taken as it is.
    With a `name`, the thoughts may be kept in the cache under it: change the name when the function
    changes. Without one they are never kept. With a parameter `histories` it is passed a `Conversation` for
    each query, `function(queries, n_thoughts, histories=...)`, when any of them has a history; likewise a
    parameter `passages` is passed the texts that were found for each query, when any of them has some.

    Raises `SettingsError` for something that is no synchronous function.
    """

    def __init__(
        self,
        function: Callable[..., Sequence[Sequence[str | Thought | None]]],
        *,
        name: str | None = None,
    ) -> None:
        if not callable(function) or inspect.iscoroutinefunction(function):
            raise SettingsError(
                f"Found {function!r:.80}; expected a synchronous function(queries, n_thoughts)."
            )
        self._function = function
        self._name = name
        self.identity = None if name is None else f"callable {name}"

    def __repr__(self) -> str:
        return f"CallableThinker({self._name or getattr(self._function, '__qualname__', self._function)})"

    def think(
        self, queries: Sequence[Query], *, settings: ThoughtSettings, start: int = 0
    ) -> list[list[Thought]]:
        """What the function thinks about all queries at once, without the first `start` thoughts of each.

        Raises `ThinkerError` when it raises, or does not return enough thoughts for every query, or is given
        a history and takes none.
        """
        if not queries or start >= settings.n_thoughts:
            return [[] for _ in queries]
        texts, others = [query.text for query in queries], self._others(queries)
        try:
            answer = self._function(texts, settings.n_thoughts, **others)
        except Exception as error:
            raise ThinkerError(f"{self!r} failed: {type(error).__name__}: {error}") from error
        answers = _listed(answer, len(queries), f"{self!r} returned", "query", "queries")
        thoughts = (
            _listed(each, settings.n_thoughts, f"{self!r} returned for query {place}", "thought")
            for place, each in enumerate(answers)
        )
        return [
            [self._thought(value, place) for value in each[start:]] for place, each in enumerate(thoughts)
        ]

    def _others(self, queries: Sequence[Query]) -> dict[str, Any]:
        """Histories and passages as keywords, each left out where all are empty: few functions know them."""
        found: dict[str, list[Any]] = {
            "histories": [query.history for query in queries],
            "passages": [query.passages for query in queries],
        }
        given = {name: values for name, values in found.items() if any(map(len, values))}
        for name in given:
            if not _takes(self._function, name):
                noun, each = _GIVEN[name]
                raise ThinkerError(
                    f"{self!r} was given {noun}, and the function takes no {name}.",
                    hint=f"Add a parameter: function(queries, n_thoughts, {name}=None), {each} a query.",
                )
        return given

    def _thought(self, value: Any, place: int) -> Thought:
        if isinstance(value, Thought):
            return value
        if value is None or isinstance(value, str):
            return written(value or "", finish="eos")
        raise ThinkerError(
            f"{self!r} returned a {type(value).__name__} as a thought about query {place}; expected a string."
        )


class NoThinker(Sent):
    """Nobody: thoughts come from the caller, and a query without any is embedded alone."""

    identity = None
    default_settings: Mapping[str, Any] = {"thinking": "never"}

    def think(
        self, queries: Sequence[Query], *, settings: ThoughtSettings, start: int = 0
    ) -> list[list[Thought]]:
        """Raises `ThinkerError`: nobody is there to write."""
        raise ThinkerError(
            f"Found thinking={settings.thinking!r} and no thinker; expected one to write thoughts.",
            hint="Name a thinker, or pass your own: embed_query(query, thoughts=['...']).",
        )


def _listed(value: Any, length: int, who: str, of: str, plural: str | None = None) -> list[Any]:
    """The items of what the function returned, as a list of this length."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        expected = counted(length, of, plural)
        raise ThinkerError(f"{who} a {type(value).__name__}; expected a list for {expected}.")
    items = list(value)
    if len(items) != length:
        raise ThinkerError(f"{who} a list of {len(items)}; expected {length}, one for each {of}.")
    return items


_GIVEN = {"histories": ("a conversation", "a Conversation"), "passages": ("passages", "a tuple of texts")}


def _takes(function: Callable[..., Any], name: str) -> bool:
    """Whether a function has a parameter of this name, or takes any keyword."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some built-in functions do not tell
        return False
    return any(each.name == name or each.kind is each.VAR_KEYWORD for each in parameters)
