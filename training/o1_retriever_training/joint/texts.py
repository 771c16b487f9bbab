"""The tokenised texts of a training set: every different text once, in files that processes share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np
from numpy.typing import NDArray

_IDS, _TABLE = "ids.bin", "texts.npz"


def text_key(text: str) -> int:
    """63 bits that stand for a text, never 0: two documents with the same key are the same document."""
    digest = hashlib.blake2b(" ".join(text.split()).encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 1) or 1


class Texts:
    """Token ids by a text's number, mapped from disk; `keys` (texts,) has the `text_key` of each."""

    def __init__(self, folder: Path) -> None:
        with np.load(folder / _TABLE) as table:
            self._starts: NDArray[np.int64] = table["starts"]
            self.keys: NDArray[np.int64] = table["keys"]
        size = int(self._starts[-1])
        # An empty file cannot be mapped.
        self._ids: NDArray[np.uint32] = (
            np.memmap(folder / _IDS, dtype=np.uint32, mode="r", shape=(size,))
            if size
            else np.zeros(0, dtype=np.uint32)
        )

    def __len__(self) -> int:
        return len(self.keys)

    def ids(self, number: int) -> list[int]:
        """Token ids of a text, without markers."""
        start, end = self._starts[number], self._starts[number + 1]
        return [int(i) for i in self._ids[start:end]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of every text, (texts,)."""
        return np.diff(self._starts)


class TextWriter:
    """Collects texts into a folder: `number(text)` gives each different one its place.

    `tokenise` takes a list of texts and gives their ids; a text is cut at `most` tokens, and `cut` counts
    those that were. Texts wait until there are enough of them to tokenise together.
    """

    def __init__(self, folder: Path, tokenise: Callable[[Sequence[str]], list[list[int]]]) -> None:
        self._folder = folder
        self._tokenise = tokenise
        self._numbers: dict[tuple[int, int], int] = {}
        self._keys: list[int] = []
        self._lengths: list[int] = []
        self._waiting: list[tuple[str, int]] = []
        self._file: IO[bytes] | None = None
        self.cut: set[int] = set()

    def __enter__(self) -> TextWriter:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file = (self._folder / _IDS).open("wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is None:
            return
        if error is None:
            self._write()
            starts = np.concatenate([[0], np.cumsum(np.asarray(self._lengths, dtype=np.int64))])
            np.savez(
                self._folder / _TABLE, starts=starts.astype(np.int64), keys=np.asarray(self._keys, np.int64)
            )
        self._file.close()

    def number(self, text: str, *, most: int) -> int:
        """The place of a text that is cut at `most` tokens."""
        key = text_key(text)
        known = self._numbers.setdefault((key, most), len(self._keys))
        if known == len(self._keys):
            self._keys.append(key)
            self._waiting.append((text, most))
            if len(self._waiting) >= 2000:
                self._write()
        return known

    def flush(self) -> None:
        """Tokenise what waits, so that `cut` knows of it."""
        self._write()

    def _write(self) -> None:
        if not self._waiting or self._file is None:
            return
        first = len(self._lengths)
        rows = self._tokenise([text for text, _ in self._waiting])
        for place, (row, (_, most)) in enumerate(zip(rows, self._waiting, strict=True)):
            if len(row) > most:
                self.cut.add(first + place)
            kept = row[:most]
            self._lengths.append(len(kept))
            self._file.write(np.asarray(kept, dtype=np.uint32).tobytes())
        self._waiting = []
