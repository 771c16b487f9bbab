"""A file to read: its bytes within limits, and their text.

Bytes become text by their mark, by what they declare (as browsers read it), as UTF-8, or by a guess.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from o1_retriever.documents.structure import valid
from o1_retriever.errors import DocumentError, SettingsError, require
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


# A line of JSON or of a table that is longer is no row that anybody searches.
LONGEST_LINE = 16_000_000
# What an archive may hold: deflate packs at most 1,032 to 1, text some 10 to 1.
_MEMBERS = 20_000
_UNPACKED = 4  # times the limit of a file
_RATIO = 200
_SMALL = 100_000_000
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """How files are read.

    `text_field` names the field of JSON that holds the text (None: text, contents, page_content, content or
    body). `boilerplate` keeps navigation, footers and cookie banners of web pages. `max_bytes` is how large a
    file may be; files of rows (jsonl, ndjson, csv, tsv) are read row by row and may be larger.
    """

    text_field: str | None = None
    boilerplate: bool = False
    max_bytes: int = 64_000_000

    def __post_init__(self) -> None:
        if isinstance(self.max_bytes, bool) or not isinstance(self.max_bytes, int) or self.max_bytes < 1:
            raise SettingsError(f"max_bytes is {self.max_bytes!r}; expected a positive number of bytes.")


class Source:
    """A file, how it is to be read, and `notes`: what a reader of the report has to know about it."""

    def __init__(self, path: Path, options: ReadOptions, notes: list[str] | None = None) -> None:
        self.path = path
        self.options = options
        self.notes = [] if notes is None else notes
        self._hash = hashlib.blake2b(digest_size=16)

    @property
    def digest(self) -> str:
        """Stands for the bytes that have been read."""
        return self._hash.hexdigest()

    def note(self, text: str) -> None:
        """Say something about the file; the same thing once."""
        if text not in self.notes:
            self.notes.append(text)

    def error(self, reason: str, *, hint: str | None = None) -> DocumentError:
        """That the file cannot be read, and why."""
        return DocumentError(str(self.path), reason, hint=hint)

    def data(self) -> bytes:
        """The whole file, unpacked if its name ends in .gz. Raises `DocumentError` for one over the limit."""
        with self._open() as file:
            data = file.read(self.options.max_bytes + 1)
        self._check_size(len(data))
        return data

    def text(self, declared: Callable[[bytes], str | None] | None = None) -> str:
        """The whole file as text with newlines at the ends of lines. `declared` finds the encoding it names.

        Raises `DocumentError` for binary data, never for an encoding.
        """
        data = self.data()
        return self.decoded(data, declared(data) if declared else None)

    def decoded(self, data: bytes, declared: str | None = None) -> str:
        """Bytes of the file as text; notes where that was a guess or lost something."""
        if looks_binary(data):
            raise self.error("it looks binary; expected text.", hint="Leave it out, or convert it to text.")
        found: Decoded = decode(data, declared)
        if found.note:
            self.note(found.note)
        return found.text

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """The lines with their numbers, from 1, without their ends. One that is too long is noted alone."""
        with self._open() as file:
            number = 0
            while line := file.readline(LONGEST_LINE):
                number += 1
                if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
                    self.note(f"line {number} is longer than {LONGEST_LINE:,} bytes and was left out.")
                    while line and not line.endswith(b"\n"):
                        line = file.readline(_PIECE)
                    continue
                yield number, line.rstrip(b"\r\n")

    @property
    def kind(self) -> str:
        """The suffix in small letters, without .gz."""
        return Path(self.path.name.lower().removesuffix(".gz")).suffix

    def archive(self, data: bytes) -> zipfile.ZipFile:
        """The file as a zip archive whose members fit into memory. Raises `DocumentError`."""
        try:
            archive = zipfile.ZipFile(io.BytesIO(data))
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise self.error(f"it is no intact archive ({error!s:.80}); expected a zip file.") from None
        members = archive.infolist()
        unpacked = sum(member.file_size for member in members)
        if len(members) > _MEMBERS or unpacked > _UNPACKED * self.options.max_bytes:
            raise self.error(
                f"it unpacks to {len(members):,} files of {unpacked:,} bytes; expected at most {_MEMBERS:,} "
                f"files of {_UNPACKED * self.options.max_bytes:,} bytes."
            )
        return archive

    def member(self, archive: zipfile.ZipFile, name: str) -> bytes | None:
        """A file of an archive, None where there is none. Raises `DocumentError` for a broken one."""
        try:
            return archive.read(name)
        except KeyError:
            return None
        except RuntimeError as error:  # zipfile's way to say that it wants a password
            raise self.error("it is encrypted; expected a file that opens without a password.") from error
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError) as error:
            raise self.error(
                f"{name!r} in it is damaged ({error!s:.80}); expected an intact file."
            ) from error

    def _open(self) -> IO[bytes]:
        try:
            # A pipe would be waited for, and a device never ends.
            descriptor = os.open(
                self.path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
            )
            file = os.fdopen(descriptor, "rb")
            status = os.fstat(descriptor)
        except OSError as error:
            raise self.error(
                f"it cannot be read ({error.strerror or error}); expected a readable file."
            ) from error
        if not stat.S_ISREG(status.st_mode):
            file.close()
            raise self.error("it is no regular file; expected a file.")
        counted = io.BufferedReader(_Hashing(file, self._hash), _PIECE)
        if self.path.suffix.lower() != ".gz":
            return counted
        return io.BufferedReader(_Unpacking(counted, self), _PIECE)

    def _check_size(self, size: int) -> None:
        if size > self.options.max_bytes:
            raise self.error(
                f"it has more than {self.options.max_bytes:,} bytes; expected fewer.",
                hint="A larger limit: --max-megabytes, or ReadOptions(max_bytes=...)",
            )


class _Hashing(io.RawIOBase):
    """A file that keeps the hash of what has been read of it."""

    def __init__(self, file: IO[bytes], digest: Any) -> None:
        self._file = file
        self._digest = digest
        self.count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        self._digest.update(data)
        self.count += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


class _Unpacking(io.RawIOBase):
    """What a .gz file holds, as long as it is not made to fill memory and time."""

    def __init__(self, file: io.BufferedReader[Any], source: Source) -> None:
        self._file = file
        self._packed = file.raw
        self._gzip = gzip.GzipFile(fileobj=file)
        self._source = source
        self._count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._gzip.read(len(buffer))
        except (OSError, EOFError, zlib.error) as error:
            raise self._source.error(
                f"it cannot be unpacked ({error!s:.80}); expected intact gzip data."
            ) from error
        buffer[: len(data)] = data
        self._count += len(data)
        if self._count > _SMALL and self._count > _RATIO * max(1, getattr(self._packed, "count", 1)):
            raise self._source.error(
                f"it unpacks to more than {_RATIO} times its size and {_SMALL:,} bytes; expected text."
            )
        return len(data)

    def close(self) -> None:
        self._gzip.close()
        self._file.close()
        super().close()
