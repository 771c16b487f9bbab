"""Who writes the thoughts: a local model, a chat endpoint, a file of recorded thoughts, or a function.

The protocol, what makes a thinker of what users have, and the thinkers that need no model: a record, a
function of the caller's, and nobody.
"""

from __future__ import annotations

import gzip
import hashlib
import inspect
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from o1_retriever.concurrency.processes import Sent
from o1_retriever.endpoint.chat import DEFAULT_PROMPT, ChatPrompt
from o1_retriever.endpoint.exchange import RequestPolicy
from o1_retriever.errors import InputError, ModelNotFoundError, SettingsError, ThinkerError
from o1_retriever.query import Query, check_text
from o1_retriever.reporting import counted
from o1_retriever.thinkers.endpoint import OpenAIThinker, first_model
from o1_retriever.thinkers.local import LocalThinker
from o1_retriever.thought import Finish, Thought, ThoughtSettings

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


def is_elsewhere(name: str) -> bool:
    """Whether a text names no model of this machine: a server, or a file of recorded thoughts."""
    return is_address(name) or is_record(name)


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


class RecordedThinker:
    """Thoughts that were written before: a JSONL file (also `.gz`), or a mapping of query to thoughts.

    A line holds `text` or `query`, and `thoughts`, `all_thought` (lists) or `thought` (one, which comes
    first). A null or empty thought is a recorded failure; a query written on several lines has the
    thoughts of all of them, each once. Queries are compared without the white space around them.

    Raises `ThinkerError`, with the line's number, for a file that cannot be used.
    """

    def __init__(self, source: str | os.PathLike[str] | Mapping[str, Sequence[str | None]]) -> None:
        self._source = "a mapping" if isinstance(source, Mapping) else str(source)
        rows = _rows_of_mapping(source) if isinstance(source, Mapping) else _rows_of_file(Path(source))
        self._thoughts: dict[str, list[str | None]] = {}
        for query, thoughts in rows:
            known = self._thoughts.setdefault(query.strip(), [])
            known += [
                thought for thought in dict.fromkeys(thoughts) if thought is None or thought not in known
            ]
        if not any(self._thoughts.values()):
            raise ThinkerError(
                f"Found {counted(len(self), 'query', 'queries')} and no thoughts in {self._source}.",
                hint='Write lines such as {"query": "...", "thoughts": ["...", "..."]}.',
            )
        content = json.dumps(self._thoughts, sort_keys=True)
        self.identity = f"recorded {hashlib.blake2b(content.encode(), digest_size=16).hexdigest()}"

    def __len__(self) -> int:
        return len(self._thoughts)

    def __repr__(self) -> str:
        return f"RecordedThinker({self._source!r}, {counted(len(self), 'query', 'queries')})"

    def think(
        self, queries: Sequence[Query], *, settings: ThoughtSettings, start: int = 0
    ) -> list[list[Thought]]:
        """The recorded thoughts from `start` on of every query; how they are sampled changes nothing.

        A query that is not recorded, or not with so many thoughts, has failures that say so.
        """
        wanted = range(start, settings.n_thoughts)
        return [[self._thought(query.text, index) for index in wanted] for query in queries]

    def _thought(self, query: str, index: int) -> Thought:
        thoughts = self._thoughts.get(query.strip())
        if thoughts is None:
            return Thought.failure(f"The query is not recorded in {self._source}.")
        if index >= len(thoughts):
            found = counted(len(thoughts), "thought") if thoughts else "no thought"
            return Thought.failure(f"Found {found} recorded for this query; expected {index + 1} or more.")
        text = thoughts[index]
        if text is None:
            return Thought.failure("It is recorded that this thought could not be written.")
        return written(text, finish="recorded")


def written(text: str, *, finish: Finish) -> Thought:
    """A thought of this text, or a recorded failure for one that cannot be embedded."""
    try:
        return Thought(text=check_text(text, what="thought"), finish=finish)
    except InputError as error:
        return Thought.failure(error.message)


def _rows_of_mapping(
    source: Mapping[str, Sequence[str | None]],
) -> Iterator[tuple[str, Sequence[str | None]]]:
    for query, thoughts in source.items():
        if not isinstance(query, str) or not _are_texts(thoughts):
            raise ThinkerError(f"The entry {query!r:.60} is {thoughts!r:.60}; expected a list of strings.")
        yield query, thoughts


def _rows_of_file(path: Path) -> Iterator[tuple[str, Sequence[str | None]]]:
    opened = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opened(path, "rt", encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _row(line, f"{path}, line {number}")
    except FileNotFoundError:
        raise ThinkerError(f"There is no file {path}; expected recorded thoughts.") from None
    except UnicodeDecodeError as error:
        raise ThinkerError(f"{path} is not UTF-8 text after line {number} ({error}).") from None
    except (OSError, EOFError) as error:
        raise ThinkerError(f"{path} cannot be read after line {number}: {error}.") from error


def _row(line: str, where: str) -> tuple[str, Sequence[str | None]]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ThinkerError(f"{where} is not JSON: {error}.") from None
    if not isinstance(row, dict):
        raise ThinkerError(f"{where} is a {type(row).__name__}; expected an object.")
    query = row.get("text", row.get("query"))
    if not isinstance(query, str) or not query.strip():
        raise ThinkerError(f"{where}: `text` or `query` is {query!r:.60}; expected the query.")
    first = row.get("thought")
    thoughts = row.get("thoughts", row.get("all_thought"))
    more = [] if thoughts is None else thoughts
    if not _are_texts(more) or not isinstance(first, str | None):
        raise ThinkerError(f"{where}: the thoughts are {thoughts!r:.60}, {first!r:.60}; expected strings.")
    return query, more if first is None else [first, *(each for each in more if each != first)]


def _are_texts(values: Any) -> bool:
    listed = isinstance(values, list | tuple)
    return listed and all(value is None or isinstance(value, str) for value in values)


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
        self, function: Callable[..., Sequence[Sequence[str | Thought | None]]], *, name: str | None = None
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
