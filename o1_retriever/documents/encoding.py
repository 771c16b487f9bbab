"""Bytes to text: by their mark, by what they declare (as browsers read it), as UTF-8, or by a guess."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass

from o1_retriever.documents.structure import valid
from o1_retriever.errors import require
from o1_retriever.reporting import counted

# A UTF-32 mark begins with that of UTF-16, so that it is looked for first.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Control characters that no text has.
_CONTROL = bytes(set(range(32)) - {8, 9, 10, 11, 12, 13, 27})
_HEAD = 8192
_GUESSED_FROM = 65_536
# Where so much of a text is not ASCII, and most of that in a row, it is no Western European one with accents.
_FOREIGN = 0.25
_RUN = re.compile(rb"[\x80-\xff]{3,}")
_XML = re.compile(rb"^\s{0,20}<\?xml[^>]{0,200}?encoding\s*=\s*[\"']([\w.:-]{1,40})", re.ASCII)
_META = re.compile(rb"<meta[^>]{0,400}?charset\s{0,9}=\s{0,9}[\"']?\s{0,9}([\w.:-]{1,40})", re.IGNORECASE)
# PEP 263, and what editors read: "coding: x", "fileencoding=x".
_COOKIE = re.compile(rb"coding[:=][ \t]*([-\w.]{1,40})")


@dataclass(frozen=True, slots=True)
class Decoded:
    """A text, and what there is to say about its encoding."""

    text: str
    note: str = ""


def looks_binary(data: bytes) -> bool:
    """Whether bytes are no text in any encoding: many control characters that are not those of UTF-16."""
    head = data[:_HEAD]
    if not head or data.startswith(tuple(mark for mark, _ in _MARKS)) or _wide(head):
        return False
    return len(head) - len(head.translate(None, _CONTROL)) > len(head) / 20


def decode(data: bytes, declared: str | None = None) -> Decoded:
    """The text of a file with plain line ends. `declared` is a label of an encoding that the file names.

    Never fails: what cannot be decoded becomes U+FFFD, and the note says so.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return _lossy(data[len(mark) :], encoding)
    codec = _codec(declared) if declared else None
    if codec is not None and codec.startswith("iso2022"):  # seven bits, and so valid UTF-8 as well
        return _lossy(data, codec)
    if wide := _wide(data[:_HEAD]):
        return Decoded(_lossy(data, wide).text, f"its encoding is a guess: {wide.upper()}.")
    try:
        return Decoded(valid(data.decode("utf-8")))
    except UnicodeDecodeError as error:
        if codec is not None and codec != "utf-8":
            return _lossy(data, codec)
        # A few damaged bytes in a text of many that are right.
        broken = data.decode("utf-8", "replace")
        right = sum(char > "\x7f" and char != "\ufffd" for char in broken)
        if right > 3 * broken.count("\ufffd"):
            return _lossy(data, "utf-8")
        return _guess(data, error.start)


def _codec(label: str) -> str | None:
    """Python's codec for a label, as the web's standard maps it: gb2312 is GBK, latin1 is windows-1252."""
    webencodings = require(
        "webencodings", extra="documents", purpose="Reading a file that names its encoding"
    )
    if found := webencodings.lookup(label):
        name = str(found.codec_info.name)
        # In a file that ASCII could name it, UTF-16 cannot be true.
        return None if name.startswith("utf-16") or found.name in ("replacement", "x-user-defined") else name
    try:
        return codecs.lookup(label).name
    except LookupError:
        return None


def _lossy(data: bytes, codec: str) -> Decoded:
    try:
        return Decoded(valid(data.decode(codec)))
    except UnicodeDecodeError:
        if codec == "cp1252":  # five bytes have no character there; browsers take them as Latin-1
            return Decoded(valid("".join(_WESTERN[byte] for byte in data)))
        text = data.decode(codec, "replace")
        count = text.count("\ufffd")
        return Decoded(
            valid(text),
            f"{counted(count, 'character')} could not be read as {codec.upper()} and had to be replaced.",
        )


_WESTERN = [bytes([byte]).decode("cp1252", "replace").replace("\ufffd", chr(byte)) for byte in range(256)]


def _guess(data: bytes, first: int) -> Decoded:
    """By statistics where much of the text is not ASCII, else as Western European."""
    start = max(0, first - _GUESSED_FROM // 2)
    sample = data[start : start + _GUESSED_FROM]
    high = sum(byte > 127 for byte in sample)
    in_row = sum(map(len, _RUN.findall(sample)))
    codec = "cp1252"
    if high > _FOREIGN * sum(byte > 32 for byte in sample) and in_row > high / 2:
        normalizer = require("charset_normalizer", extra="documents", purpose="Guessing an encoding")
        best = normalizer.from_bytes(sample).best()
        codec = (_codec(best.encoding) or best.encoding) if best is not None else codec
    decoded = _lossy(data, codec)
    return Decoded(decoded.text, f"its encoding is a guess: {codec.upper()}. {decoded.note}".strip())


def _wide(head: bytes) -> str | None:
    """UTF-16 without a mark: every second byte of Western text is zero."""
    even, odd = head[::2], head[1::2]
    if len(head) >= 4 and odd.count(0) > 0.4 * len(odd) and not even.count(0):
        return "utf-16-le"
    if len(head) >= 4 and even.count(0) > 0.4 * len(even) and not odd.count(0):
        return "utf-16-be"
    return None


def declared_by_html(data: bytes) -> str | None:
    """The encoding that a page names, wherever: browsers look at the beginning only, people do not."""
    return declared_by_xml(data) or _first(_META, data)


def declared_by_xml(data: bytes) -> str | None:
    """The encoding of the XML declaration."""
    return _first(_XML, data[:512])


def declared_by_code(data: bytes) -> str | None:
    """The encoding that a comment in the first lines of a program names."""
    return _first(_COOKIE, b"\n".join(data[:1024].split(b"\n")[:5]))


def _first(pattern: re.Pattern[bytes], data: bytes) -> str | None:
    found = pattern.search(data)
    return found[1].decode("ascii", "ignore") if found else None
