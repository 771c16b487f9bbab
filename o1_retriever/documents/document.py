"""A document of an index: a passage of a file, or a text of one's own."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from o1_retriever.documents.chunking import Chunking, passage_spans
from o1_retriever.documents.readers import read_sections
from o1_retriever.documents.structure import Scalar

# What a document says about itself under one name.
Value = Scalar | list[Scalar]


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A text with the id under which an index keeps it.

    `metadata` can be filtered on in a search: strings, numbers, True and False, or lists of them; an index
    keeps a date as its ISO form. Those read from a file hold `source` (the file), `root` (the
    folder that it was found in), `position` (from 0 within the file) and, where there is one, `title`,
    `page` or `line` (from 1) and the other fields of a JSON line.
    """

    id: str
    text: str
    metadata: dict[str, Value] = field(default_factory=dict)


def read_documents(
    path: str | os.PathLike[str],
    *,
    source: str | None = None,
    root: str = "",
    chunking: Chunking | None = None,
) -> Iterator[Document]:
    """Cut a file into documents, in order. `source` None takes the path as it was given.

    The id is made of root, source, position and text: reading the same file again gives the same ids.
    Raises `DocumentError` when the file cannot be read, possibly after some documents.
    """
    name = source if source is not None else Path(path).as_posix()
    position = 0
    for section in read_sections(path):
        for start, end in passage_spans(section.text, chunking or Chunking(), code=section.code):
            text = section.text[start:end]
            place: dict[str, Value] = {"source": name, "root": root, "position": position}
            # The root as well: two folders may hold a file of one name.
            digest = hashlib.blake2b(f"{root}\0{text}".encode(), digest_size=8).hexdigest()
            yield Document(
                id=f"{name}#{position}-{digest}", text=text, metadata={**section.metadata, **place}
            )
            position += 1
