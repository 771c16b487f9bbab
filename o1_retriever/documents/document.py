"""A document of an index: a passage of a file, or a text of one's own."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from o1_retriever.documents.chunking import Chunking, passages
from o1_retriever.documents.readers import sections_of
from o1_retriever.documents.source import ReadOptions, Source
from o1_retriever.documents.structure import Value
from o1_retriever.errors import InputError
from o1_retriever.query import check_text


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
