"""Who writes the thoughts: a local model, a chat endpoint, a file of recorded thoughts, or a function."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from o1_retriever.endpoint.chat import DEFAULT_PROMPT, ChatPrompt
from o1_retriever.endpoint.exchange import RequestPolicy
from o1_retriever.errors import ModelNotFoundError, SettingsError
from o1_retriever.query import Query
from o1_retriever.thinkers.endpoint import OpenAIThinker, first_model
from o1_retriever.thinkers.given import CallableThinker, NoThinker, RecordedThinker
from o1_retriever.thinkers.local import LocalThinker
from o1_retriever.thought import Thought, ThoughtSettings

__all__ = [
    "DEFAULT_PROMPT",
    "CallableThinker",
    "ChatPrompt",
    "LocalThinker",
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
        that could not be written is `Thought.failure`, never an empty one. Raises `ThinkerError` when no
        thought can be written at all.
        """
        ...


def is_address(name: str) -> bool:
    """Whether a text names a server."""
    return name.startswith(("http://", "https://"))


def is_record(name: str) -> bool:
    """Whether a text names a file of recorded thoughts."""
    return not is_address(name) and name.endswith((".jsonl", ".jsonl.gz"))


def as_thinker(
    value: Any, *, device: str | None = None, dtype: str = "fastest", load_in_4bit: bool = False
) -> Thinker:
    """A thinker from what users have: a thinker, a function, a mapping, a text, or None for nobody.

    A text is told by what it is: a `.jsonl` file of recorded thoughts, the `http(s)://` address of an
    OpenAI-compatible server (its first model thinks), else a causal language model: a folder or Hub id of
    transformers, or a `.gguf` file, loaded with the options. Raises `SettingsError` for anything else, and
    what loading raises.
    """
    if isinstance(value, str | os.PathLike):
        name = os.fspath(value)
        if is_address(name):
            return OpenAIThinker(first_model(name), base_url=name)
        if is_record(name):
            return RecordedThinker(name)
        return _local(name, device=device, dtype=dtype, load_in_4bit=load_in_4bit)
    if value is None:
        return NoThinker()
    if not isinstance(value, type):
        if _is_thinker(value):
            return value  # type: ignore[no-any-return]
        if isinstance(value, Mapping):
            return RecordedThinker(value)
        if callable(value):
            return CallableThinker(value)
    raise SettingsError(
        f"The thinker is {value!r:.80}; expected a thinker, a function(queries, n_thoughts), or a text: "
        f"{_TEXTS}."
    )


def _is_thinker(value: Any) -> bool:
    """Whether an object has what a thinker has, without computing it: an identity may load a model.

    Python 3.11 asks an object for the attributes of a protocol, and later versions look for them.
    """
    missing = object()
    found = (inspect.getattr_static(value, name, missing) for name in ("identity", "think"))
    return missing not in found or isinstance(value, Thinker)


_TEXTS = (
    "a folder or Hub id of a causal language model, a .gguf file, the http(s):// address of an "
    "OpenAI-compatible server, or a .jsonl file of recorded thoughts"
)


def _local(name: str, **options: Any) -> Thinker:
    try:
        return LocalThinker(name, **options)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(
            f"The thinker is {name!r:.120}. {error.message}",
            hint=" ".join(filter(None, (error.hint, f"A thinker is {_TEXTS}."))),
        ) from error
