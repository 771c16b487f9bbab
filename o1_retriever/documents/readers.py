"""Reading files: bytes to text, and each format to its sections."""

from __future__ import annotations

import codecs
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from o1_retriever.documents.structure import (
    Scalar,
    Section,
    code_sections,
    html_blocks,
    markdown_blocks,
    sections,
)
from o1_retriever.errors import DocumentError, InputError
from o1_retriever.extras import require
from o1_retriever.query import check_text

# A UTF-32 mark begins with that of UTF-16, so that it is looked for first.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_HTML_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s{0,9}=\s{0,9}[\"']?([\w-]{1,40})", re.IGNORECASE)
# What this library writes into the metadata itself; a field of a JSON line of that name gets a `_` behind it.
RESERVED = ("source", "root", "position", "page", "line")
_LARGEST = 2**63


def read_sections(path: str | os.PathLike[str]) -> Iterator[Section]:
    """The sections of a file, read by its suffix (one of `SUFFIXES`); none for a file without text.

    Raises `DocumentError` when the file cannot be read, is binary, is not UTF-8 (or UTF-16 with a mark), is
    encrypted, broken or holds images alone.
    """
    file = Path(path)
    reader = _READERS.get(file.suffix.lower())
    if reader is None:
        raise DocumentError(
            str(file),
            f"the suffix {file.suffix!r} is unknown; expected one of {', '.join(SUFFIXES)}.",
            hint="Convert the file to one of these.",
        )
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DocumentError(
            str(file), f"it cannot be read ({error.strerror or error}); expected a readable file."
        ) from error
    yield from reader(data, str(file))


def decode(data: bytes, path: str, *, declared: str | None = None) -> str:
    """The text of a file, with line ends as newlines. `declared` is tried where the bytes are not UTF-8."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return _decode(data[len(mark) :], encoding, path)
    if b"\0" in data:
        raise DocumentError(
            path,
            f"it looks binary (a NUL byte at offset {data.index(0)}); expected text in UTF-8.",
            hint="Leave it out, or convert it to text.",
        )
    if declared is not None:
        try:
            return _lines(data.decode("utf-8"))
        except UnicodeDecodeError:
            return _decode(data, declared, path)
    return _decode(data, "utf-8", path)


def _decode(data: bytes, encoding: str, path: str) -> str:
    try:
        return _lines(data.decode(encoding))
    except (UnicodeDecodeError, LookupError) as error:
        place = (
            f" (byte {data[error.start]:#04x} at offset {error.start})"
            if isinstance(error, UnicodeDecodeError)
            else ""
        )
        raise DocumentError(
            path,
            f"it is not {encoding.upper()}{place}; expected UTF-8, or UTF-16 with a byte order mark.",
            hint="Type: iconv -f ISO-8859-1 -t UTF-8 OLD > NEW",
        ) from None


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _read_text(data: bytes, path: str) -> Iterator[Section]:
    yield Section(text=decode(data, path))


def _read_markdown(data: bytes, path: str) -> Iterator[Section]:
    yield from sections(markdown_blocks(decode(data, path)))


def _read_html(data: bytes, path: str) -> Iterator[Section]:
    charset = _HTML_CHARSET.search(data, 0, 4096)
    text = decode(data, path, declared=charset[1].decode("ascii") if charset else None)
    yield from sections(html_blocks(text), joint="\n\n")


def _read_code(data: bytes, path: str) -> Iterator[Section]:
    yield from code_sections(decode(data, path))


def _read_json_lines(data: bytes, path: str) -> Iterator[Section]:
    for number, line in enumerate(decode(data, path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DocumentError(
                path, f"line {number} is not JSON ({error}); expected one object with a 'text' a line."
            ) from None
        section = _row(row, number, path)
        if section is not None:
            yield section


def _row(row: Any, number: int, path: str) -> Section | None:
    """One line as a section; None where both its title and its text are empty."""
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        found = f"the fields {sorted(row)[:8]}" if isinstance(row, dict) else type(row).__name__
        if isinstance(row, dict) and "text" in row:
            found = f"a 'text' that is {type(row['text']).__name__}"
        raise DocumentError(path, f"line {number} has {found}; expected an object with a string 'text'.")
    title = row.get("title")
    metadata: dict[str, Scalar] = {"line": number}
    if isinstance(title, str) and title.strip():
        metadata["title"] = title.strip()
    inner = row.get("metadata")
    fields = {**(inner if isinstance(inner, dict) else {}), **row}
    for name, value in fields.items():
        key = _field_name(name)
        if key and name not in ("text", "title") and isinstance(value, str | int | float):
            metadata[key] = _scalar(value)
    text = "\n".join(part for part in (metadata.get("title"), row["text"]) if isinstance(part, str))
    if not text.strip():
        return None
    try:
        check_text(text, what="text")
        for value in (*metadata, *metadata.values()):
            if isinstance(value, str):
                value.encode()
    except (InputError, UnicodeEncodeError):
        raise DocumentError(path, f"line {number} holds a lone surrogate; expected valid Unicode.") from None
    return Section(text=text, metadata=metadata)


def _field_name(name: str) -> str:
    """The name under which a field can be kept beside this library's own, and filtered on."""
    key = name.lstrip("$#")
    return f"{key}_" if key in (*RESERVED, "title", "chroma:document") else key


def _scalar(value: Scalar) -> Scalar:
    """The value as the index can keep it: whole numbers of 64 bits, finite numbers, strings."""
    if isinstance(value, int) and not -_LARGEST <= value < _LARGEST:
        return str(value)
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _read_pdf(data: bytes, path: str) -> Iterator[Section]:
    pypdf = require("pypdf", extra="index", purpose="Reading PDF files")
    found = pages = 0
    # A PDF is a program written by strangers: the reader may fail in any way there is.
    try:
        from io import BytesIO

        document = pypdf.PdfReader(BytesIO(data))
        if document.is_encrypted and not document.decrypt(""):
            raise DocumentError(
                path,
                "it is encrypted; expected a PDF that opens without a password.",
                hint="Type: qpdf --decrypt --password=... OLD NEW",
            )
        for number, page in enumerate(document.pages, start=1):
            pages += 1
            text = _clean(page.extract_text())
            if text.strip():
                found += 1
                yield Section(text=text, metadata={"page": number})
    except (DocumentError, GeneratorExit):
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise DocumentError(
            path, f"it cannot be read as PDF ({what:.120}); expected an intact PDF."
        ) from error
    if not found:
        raise DocumentError(
            path,
            f"none of its {pages} pages has text (images only?); expected a PDF with a text layer.",
            hint="Type: ocrmypdf OLD NEW",
        )


def _clean(text: str) -> str:
    """What fonts without a proper table produce, made valid."""
    return _lines(text.replace("\0", " ").encode("utf-16", "surrogatepass").decode("utf-16", "replace"))


_READERS: dict[str, Callable[[bytes, str], Iterator[Section]]] = {
    ".txt": _read_text,
    ".text": _read_text,
    ".md": _read_markdown,
    ".markdown": _read_markdown,
    ".html": _read_html,
    ".htm": _read_html,
    ".pdf": _read_pdf,
    ".py": _read_code,
    ".jsonl": _read_json_lines,
}
SUFFIXES = tuple(_READERS)
