"""Thoughts that were written before."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from o1_retriever.errors import InputError, ThinkerError
from o1_retriever.query import Query, check_text
from o1_retriever.reporting import counted
from o1_retriever.thought import Finish, Thought, ThoughtSettings


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
