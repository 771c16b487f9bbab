"""Open a file of lines: plain, gzip or Zstandard, in UTF-8 or UTF-16, and say so when it is damaged."""

from __future__ import annotations

import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from o1_retriever.extras import require
from o1_retriever_training.errors import DataError

SUFFIXES = (".jsonl", ".json", ".ndjson")
HINT = "Pass .jsonl, .jsonl.gz, .jsonl.zst, .parquet, or hub:OWNER/NAME[:SPLIT]."
# What reading a damaged file raises, by its compression and its encoding.
DAMAGE: tuple[type[Exception], ...] = (OSError, EOFError, zlib.error, UnicodeDecodeError)
_WIDE = (b"\xff\xfe", b"\xfe\xff")  # byte order marks of UTF-16: line ends are no single bytes there
_BLOCK = 1 << 20


@contextlib.contextmanager
def opened(path: str) -> Iterator[IO[bytes]]:
    """The uncompressed bytes of a file, read as a stream. Raises `DataError` for another kind of file."""
    if not Path(path).is_file():
        raise DataError(f"There is no file {path}; expected rows.", hint=HINT)
    if path.endswith(".gz"):
        with gzip.open(path, "rb") as zipped:
            yield cast(IO[bytes], zipped)
    elif path.endswith(".zst"):
        with Path(path).open("rb") as raw, io.BufferedReader(_Zstandard(raw), _BLOCK) as stream:
            yield cast(IO[bytes], stream)
    elif path.endswith(SUFFIXES):
        with Path(path).open("rb") as plain:
            yield plain
    else:
        raise DataError(f"The suffix of {path} is unknown.", hint=HINT)


def lines_of(stream: IO[bytes]) -> Iterator[bytes]:
    """Lines as they are; those of UTF-16, told by its mark, as UTF-8."""
    start = cast(Any, stream).peek(2)[:2]
    if start not in _WIDE:
        yield from stream
        return
    for line in io.TextIOWrapper(stream, encoding="utf-16", newline="\n"):
        yield line.encode("utf-8", "surrogatepass")


def count_lines(path: str) -> int:
    """How many lines a file has. Raises `DataError` for one that is damaged."""
    found, last = 0, b"\n"
    try:
        with opened(path) as stream:
            while block := stream.read(_BLOCK):
                found, last = found + block.count(b"\n"), block[-1:]
    except DAMAGE as error:
        raise unreadable(path, error, f"after line {found}") from error
    return found + (last != b"\n")


def unreadable(path: str, error: Exception, where: str) -> DataError:
    """The error that says what is the matter with a file, and where."""
    reason = getattr(error, "strerror", None) or str(error)
    return DataError(f"{path} cannot be read {where}: {reason}.", hint=HINT)


class _Zstandard(io.RawIOBase):
    """Decompresses one frame after the other; a last one that is cut short is an error, not an end."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._package = require("zstandard", extra="train", purpose="Reading .zst files")
        self._raw = raw
        self._frame: Any = None
        self._left = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        while not self._ready:
            block = self._left or self._raw.read(_BLOCK)
            self._left = b""
            if not block:
                if self._frame is not None:
                    raise EOFError("the last Zstandard frame is not finished")
                return 0
            self._ready = memoryview(self._decompressed(block))
        count = min(len(target), len(self._ready))
        target[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _decompressed(self, block: bytes) -> bytes:
        self._frame = self._frame or self._package.ZstdDecompressor().decompressobj()
        try:
            found: bytes = self._frame.decompress(block)
        except self._package.ZstdError as error:
            raise OSError(f"it is no Zstandard file ({error})") from error
        if self._frame.eof:
            self._left, self._frame = self._frame.unused_data, None
        return found
