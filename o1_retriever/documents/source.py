"""One file while it is read: its bytes within bounds, its text, and what there is to say about it."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from o1_retriever.documents.encoding import Decoded, decode, looks_binary
from o1_retriever.errors import DocumentError, SettingsError

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
