"""Who writes the thoughts: a chat endpoint, a file of recorded thoughts, or a function of yours."""

from __future__ import annotations

import gzip
import hashlib
import inspect
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from o1_retriever.endpoint import DEFAULT_PROMPT, ChatPrompt, OpenAIThinker, RequestPolicy
from o1_retriever.errors import InputError, SettingsError, ThinkerError
from o1_retriever.query import Conversation, check_text, check_texts, histories_of, several, takes_histories
from o1_retriever.thought import Finish, Thought, ThoughtSettings

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
        self, queries: Sequence[str], k: int, *, settings: ThoughtSettings, start: int = 0
    ) -> list[list[Thought]]:
        """Thoughts `start` to `k - 1` about every query, in the order of the queries.

        Thought i of a query depends on the settings, the query and i, neither on `k` nor on the other
        queries. A thought that could not be had is `Thought.failure`, never an empty one. Raises
        `ThinkerError` when no thought can be had at all.

        One that can read what was said before a query has a further keyword, `histories`: a `Conversation`
        for each query, or None. Others are refused queries with a history.
        """
        ...


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
                f"Found {len(self._thoughts)} queries and no thoughts in {self._source}.",
                hint='Write lines such as {"query": "...", "thoughts": ["...", "..."]}.',
            )
        content = json.dumps(self._thoughts, sort_keys=True)
        self._identity = f"recorded {hashlib.blake2b(content.encode(), digest_size=16).hexdigest()}"

    def __len__(self) -> int:
        return len(self._thoughts)

    def __repr__(self) -> str:
        return f"RecordedThinker({self._source!r}, {len(self)} queries)"

    @property
    def identity(self) -> str | None:
        """A hash of all that is recorded."""
        return self._identity

    def think(
        self,
        queries: Sequence[str],
        k: int,
        *,
        settings: ThoughtSettings,
        start: int = 0,
        histories: Sequence[Conversation] | None = None,
    ) -> list[list[Thought]]:
        """The recorded thoughts `start` to `k - 1` of every query; settings and histories change nothing.

        A query that is not recorded, or not with so many thoughts, has failures that say so.
        """
        texts = check_texts(queries, what="query")
        return [[self._thought(text, index) for index in range(start, k)] for text in texts]

    def _thought(self, query: str, index: int) -> Thought:
        thoughts = self._thoughts.get(query.strip())
        if thoughts is None:
            return Thought.failure(f"The query is not recorded in {self._source}.")
        if index >= len(thoughts):
            found = f"{len(thoughts)} thoughts are recorded" if thoughts else "No thought is recorded"
            return Thought.failure(f"{found} for this query; number {index + 1} was asked for.")
        text = thoughts[index]
        if text is None:
            return Thought.failure("It is recorded that this thought could not be had.")
        return _written(text, finish="recorded")


def _written(text: str, *, finish: Finish) -> Thought:
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
    except ValueError as error:
        raise ThinkerError(f"{where} is not JSON: {error}.") from None
    if not isinstance(row, dict):
        raise ThinkerError(f"{where} is a {type(row).__name__}; expected an object.")
    query = row.get("text", row.get("query"))
    if not isinstance(query, str) or not query.strip():
        raise ThinkerError(f"{where}: `text` or `query` is {query!r:.60}; expected the query.")
    first = row.get("thought")
    thoughts = row.get("thoughts", row.get("all_thought"))
    several = [] if thoughts is None else thoughts
    if not _are_texts(several) or not isinstance(first, str | None):
        raise ThinkerError(f"{where}: the thoughts are {thoughts!r:.60}, {first!r:.60}; expected strings.")
    return query, several if first is None else [first, *(each for each in several if each != first)]


def _are_texts(values: Any) -> bool:
    listed = isinstance(values, list | tuple)
    return listed and all(value is None or isinstance(value, str) for value in values)


class CallableThinker:
    """A function of yours: `function(queries, k)` returns `k` thoughts (strings) for every query, in order.

    None or an empty string stands for a thought that could not be had; a `Thought` is taken as it is.
    With a `name`, the thoughts may be kept in the cache under it: change the name when the function
    changes. Without one they are never kept. With a parameter `histories` it is passed a `Conversation` for
    each query, `function(queries, k, histories=...)`, when something was said before any of them.

    Raises `SettingsError` for something that is no synchronous function.
    """

    def __init__(
        self,
        function: Callable[..., Sequence[Sequence[str | Thought | None]]],
        *,
        name: str | None = None,
    ) -> None:
        if not callable(function) or inspect.iscoroutinefunction(function):
            raise SettingsError(f"Found {function!r:.80}; expected a synchronous function(queries, k).")
        self._function = function
        self._name = name

    def __repr__(self) -> str:
        return f"CallableThinker({self._name or getattr(self._function, '__qualname__', self._function)})"

    @property
    def identity(self) -> str | None:
        """The name that was given, or None."""
        return None if self._name is None else f"callable {self._name}"

    def think(
        self,
        queries: Sequence[str],
        k: int,
        *,
        settings: ThoughtSettings,
        start: int = 0,
        histories: Sequence[Conversation] | None = None,
    ) -> list[list[Thought]]:
        """What the function says about all queries at once, without the first `start` thoughts of each.

        Raises `ThinkerError` when it raises, or does not return `k` thoughts for every query, or is given a
        history and takes none.
        """
        texts = check_texts(queries, what="query")
        if not texts or start >= k:
            return [[] for _ in texts]
        said = several(histories_of(histories, texts))
        if said and not takes_histories(self._function):
            raise ThinkerError(
                f"{self!r} was given a conversation, and the function takes no histories.",
                hint="Add a parameter: function(queries, k, histories=None), a Conversation for each query.",
            )
        try:
            answer = self._function(list(texts), k, **said)
        except Exception as error:
            raise ThinkerError(f"{self!r} failed: {type(error).__name__}: {error}") from error
        found = _listed(answer, len(texts), f"{self!r} returned", "queries")
        rows = (
            _listed(row, k, f"{self!r} returned for query {place}", "thoughts")
            for place, row in enumerate(found)
        )
        return [[self._thought(value, place) for value in row[start:]] for place, row in enumerate(rows)]

    def _thought(self, value: Any, place: int) -> Thought:
        if isinstance(value, Thought):
            return value
        if value is None or isinstance(value, str):
            return _written(value or "", finish="eos")
        raise ThinkerError(
            f"{self!r} returned a {type(value).__name__} as a thought about query {place}; expected a string."
        )


def _listed(value: Any, length: int, said: str, of: str) -> list[Any]:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise ThinkerError(f"{said} a {type(value).__name__}; expected a list for {length} {of}.")
    found = list(value)
    if len(found) != length:
        raise ThinkerError(f"{said} a list of {len(found)}; expected {length}, one for each of the {of}.")
    return found


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
        f"The thinker is {value!r:.80}; expected a thinker, a function(queries, k), or a .jsonl file."
    )
