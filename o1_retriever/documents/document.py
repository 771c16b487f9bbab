"""A document of an index, a passage of a file or a text of one's own; and how files are cut into passages."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from o1_retriever.documents.readers import sections_of
from o1_retriever.documents.source import ReadOptions, Source
from o1_retriever.documents.structure import BELOW, Value
from o1_retriever.errors import InputError, SettingsError
from o1_retriever.query import check_text
from o1_retriever.vectors import TokenLimit


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A text with the id under which an index keeps it.

    `metadata` can be filtered on in a search: strings, numbers, True and False, or lists of them; an index
    keeps a date as its ISO form. Those read from a file hold `source` (the file), `root` (the
    folder that it was found in), `position` (from 0 within the file) and, where there is one, `title`,
    `page` or `line` (from 1) and the other fields of the file or the row. `also_in` are the other files
    with the same content.
    """

    id: str
    text: str
    metadata: dict[str, Value] = field(default_factory=dict)

    @classmethod
    def of(cls, given: Any, *, place: int = 0) -> Document:
        """Make one of what callers have: a string, a dict with a `text`, or a document of a framework.

        The id of a dict is its `id` or `_id`, and its other fields, those of a `metadata` among them, are
        metadata. Of LangChain, LlamaIndex and Haystack the text, the metadata and the id are taken. Values
        of None are left out. Where there is no id, the document is called by `name_of` its text.

        Raises `InputError` with the `place` for anything else; the values themselves are checked by `Index`.
        """
        if isinstance(given, cls):
            return given
        if isinstance(given, str):
            return cls(id=name_of(check_text(given, what="document", position=place)), text=given)
        identity, text, metadata = _parts(given, place)
        if identity is None:
            identity = name_of(check_text(text, what="document", position=place))
        if isinstance(metadata, Mapping):
            metadata = {key: value for key, value in metadata.items() if value is not None}
        return cls(id=str(identity), text=text, metadata=metadata)


# What frameworks call the text, the metadata and the id: LangChain, Haystack, LlamaIndex.
_ATTRIBUTES = (("page_content", "metadata", "id"), ("content", "meta", "id"), ("text", "metadata", "id_"))
_OWN_KEYS = ("id", "_id", "text", "metadata")


def _parts(given: Any, place: int) -> tuple[Any, Any, Any]:
    """The id (None where there is none), text and metadata of a dict or of a framework's document."""
    if isinstance(given, Mapping) and "text" in given:
        metadata = given.get("metadata")
        if metadata is None or isinstance(metadata, Mapping):
            others = {key: value for key, value in given.items() if key not in _OWN_KEYS}
            metadata = {**(metadata or {}), **others}
        return given.get("id", given.get("_id")), given["text"], metadata
    for text, metadata, identity in _ATTRIBUTES:
        if hasattr(given, text) and hasattr(given, metadata):
            return getattr(given, identity, None), getattr(given, text), getattr(given, metadata) or {}
    keys = f" with {sorted(map(str, given))!s:.60}" if isinstance(given, Mapping) else ""
    raise InputError(
        f"document {place} is {type(given).__name__}{keys}; expected a Document, a string or a dict with "
        "a 'text'.",
        hint="Write: {'id': '1', 'text': '...', 'source': 'a.txt'}",
        position=place,
    )


def name_of(text: str) -> str:
    """The id of a text without one: the same for the same text, so that adding it again changes nothing."""
    return "text-" + hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def read_documents(
    path: str | os.PathLike[str],
    *,
    source: str | None = None,
    root: str = "",
    chunking: Chunking | None = None,
    options: ReadOptions | None = None,
    notes: list[str] | None = None,
) -> Iterator[Document]:
    """Cut a file into documents, in order. `source` None takes the path as it was given.

    The id is made of root, source, position and text: reading the same file again gives the same ids.
    `notes` gets what there is to say about the file. Raises `DocumentError` when it cannot be read, possibly
    after some documents.
    """
    opened = Source(Path(path), options or ReadOptions(), notes)
    name = source if source is not None else Path(path).as_posix()
    yield from documents_of(opened, name, root, chunking or Chunking())


def documents_of(
    file: Source, source: str, root: str, chunking: Chunking, more: Mapping[str, Value] | None = None
) -> Iterator[Document]:
    """The documents of an opened file; `more` metadata is given to each."""
    position = 0
    for section in sections_of(file):
        title = str(section.metadata.get("title", ""))
        for text in passages(section.text, title, chunking, code=section.code):
            own: dict[str, Value] = {"source": source, "root": root, "position": position}
            # The root as well: two folders may hold a file of one name.
            digest = hashlib.blake2b(f"{root}\0{text}".encode(), digest_size=8).hexdigest()
            metadata: dict[str, Value] = {**section.metadata, **(more or {}), **own}
            yield Document(id=f"{source}#{position}-{digest}", text=text, metadata=metadata)
            position += 1


Span = tuple[int, int]
_FEWEST = 20  # characters of a passage
_MARGIN = 0.9  # tokens are not spread evenly over a text

# Places where a long piece of prose or code may be broken, best first. Each pattern matches the white space
# between two parts and starts at a fixed kind of character, so that it is linear on any input.
_SENTENCE = re.compile(
    r"(?:(?<=[.!?…])|(?<=[.!?…][\"'”’»)\]]))\s+(?!\s|[a-z])|(?<=[。！？])\s*(?=[^\s。！？])"
)
_LINE = re.compile(r"\n+")
_PROSE_LINE = re.compile(r"\n\s*")
_WORD = re.compile(r"\s+")
_PROSE = (_SENTENCE, _PROSE_LINE, _WORD)
_CODE = (_LINE, _WORD)
# Lines that are not blank; the group is the white space before the first of them.
_PARAGRAPH = re.compile(r"^([^\S\n]*+)\S.*(?:\n[^\S\n]*+\S.*)*+", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunking:
    """How long passages may be, and how much of a passage's end the next one repeats, in characters.

    The default of 800 characters is about 130 English words: what small encoders read whole. With `tokens`,
    a passage that an encoder would not read to its end is cut further. With `context`, a passage begins with
    those headings above it that it does not say itself (what that gains: docs/documents.md). Raises
    `SettingsError` unless `max_characters` is at least 20 and `overlap` at most half of it.
    """

    max_characters: int = 800
    overlap: int = 120
    tokens: TokenLimit | None = None
    context: bool = False

    def __post_init__(self) -> None:
        for name in ("max_characters", "overlap"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise SettingsError(f"{name} is {value!r}; expected a whole number of characters.")
        if self.max_characters < _FEWEST:
            raise SettingsError(f"max_characters is {self.max_characters}; expected at least {_FEWEST}.")
        if not 0 <= self.overlap <= self.max_characters // 2:
            raise SettingsError(
                f"overlap is {self.overlap}; expected at most half of max_characters, so 0 to "
                f"{self.max_characters // 2}."
            )


def split_passages(
    text: str, *, max_characters: int = 800, overlap: int = 120, code: bool = False
) -> list[str]:
    """Cut `text` into passages of at most `max_characters`; each may begin with the end of the one before.

    Nothing is lost or reordered except white space at the edges. `code=True` breaks at lines instead of
    sentences and keeps the indentation. A text of white space alone gives no passage.
    """
    chunking = Chunking(max_characters=max_characters, overlap=overlap)
    return [text[start:end] for start, end in passage_spans(text, chunking, code=code)]


def passage_spans(text: str, chunking: Chunking, *, code: bool = False) -> list[Span]:
    """Where the passages of `text` begin and end."""
    spans: list[Span] = []
    for start, end in _pieces(text, chunking.max_characters, code=code):
        if spans and end - spans[-1][0] <= chunking.max_characters:
            spans[-1] = spans[-1][0], end
            continue
        if spans:
            room = min(chunking.overlap, chunking.max_characters - (end - start))
            start = _repeat_from(text, spans[-1], start, max(start - room, spans[-1][0] + 1), code)
        spans.append((start, end))
    spans = [_trim(text, span, code) for span in spans]
    if chunking.tokens is None:
        return spans
    return list(_within(text, spans, chunking.tokens, code))


def passages(text: str, title: str, chunking: Chunking, *, code: bool = False) -> list[str]:
    """The passages of a section, under the path of its headings if asked for, within the same limits."""
    path = _fitting(title.split(BELOW), chunking.max_characters // 4) if chunking.context and title else []
    if not path:
        return [text[start:end] for start, end in passage_spans(text, chunking, code=code)]
    head = _headed(path, "")
    tokens = chunking.tokens
    if tokens is not None:
        tokens = replace(tokens, tokens=max(_FEWEST, tokens.tokens - tokens.count([head])[0]))
    room = max(_FEWEST, chunking.max_characters - len(head))
    less = replace(chunking, max_characters=room, overlap=min(chunking.overlap, room // 2), tokens=tokens)
    return [_headed(path, text[start:end]) for start, end in passage_spans(text, less, code=code)]


def _fitting(path: Sequence[str], most: int) -> list[str]:
    """As many headings as fit, the innermost ones."""
    fitting = [*path]
    while fitting and len(_headed(fitting, "")) > most:
        fitting.pop(0)
    return fitting


def _headed(path: Sequence[str], passage: str) -> str:
    """The passage under those headings of the path that it does not begin with itself."""
    begins = "\n".join(passage.split("\n", 2 * len(path))[: 2 * len(path)])
    left = [*path]
    while left and re.search(rf"(?<!\w){re.escape(left[-1])}(?!\w)", begins):
        left.pop()
    return f"{BELOW.join(left)}\n\n{passage}" if left else passage


def _within(text: str, spans: list[Span], limit: TokenLimit, code: bool) -> Iterator[Span]:
    """The spans, those cut further that have too many tokens. A token stands for one byte at least."""
    doubtful = [span for span in spans if len(text[slice(*span)].encode()) > limit.tokens]
    counts = dict(zip(doubtful, limit.count([text[slice(*span)] for span in doubtful]), strict=True))
    for span in spans:
        start, end = span
        count = counts.get(span, 0)
        fewer = max(_FEWEST, int((end - start) * limit.tokens / max(1, count) * _MARGIN))
        if count <= limit.tokens or fewer >= end - start:
            yield span
        else:
            inner = passage_spans(text[start:end], Chunking(max_characters=fewer, overlap=0), code=code)
            yield from _within(text, [(start + first, start + last) for first, last in inner], limit, code)


def _trim(text: str, span: Span, code: bool) -> Span:
    """The span without white space at its edges; indentation is a part of code."""
    start, end = span
    while text[end - 1].isspace():
        end -= 1
    while text[start].isspace() and not (code and text[start] in " \t"):
        start += 1
    return start, end


def _repeat_from(text: str, previous: Span, following: int, earliest: int, code: bool) -> int:
    """Where the passage of the piece at `following` begins when it repeats the end of the previous one."""
    end = previous[1]
    if earliest >= end:
        return following
    window = max(earliest - 1, previous[0])
    for pattern in (_LINE,) if code else (_SENTENCE, _PROSE_LINE, _WORD):
        for match in pattern.finditer(text, window, end):
            if earliest <= match.end() < end:
                return match.end()
    return following


def _pieces(text: str, limit: int, *, code: bool) -> Iterator[Span]:
    """Whole paragraphs where they fit, parts of paragraphs where they do not; code keeps its indentation."""
    for paragraph in _PARAGRAPH.finditer(text):
        start = paragraph.start() if code else paragraph.end(1)
        end = paragraph.start() + len(paragraph[0].rstrip())
        yield from _break(text, start, end, limit, _CODE if code else _PROSE)


def _break(
    text: str, start: int, end: int, limit: int, patterns: tuple[re.Pattern[str], ...]
) -> Iterator[Span]:
    """Parts of `text[start:end]` of at most `limit`, broken at the best kind of place that will do."""
    if end - start <= limit:
        yield start, end
    elif not patterns:
        for position in range(start, end, limit):
            yield position, min(position + limit, end)
    else:
        for match in patterns[0].finditer(text, start, end):
            if match.start() > start:
                yield from _break(text, start, match.start(), limit, patterns[1:])
            start = match.end()
        if start < end:
            yield from _break(text, start, end, limit, patterns[1:])
