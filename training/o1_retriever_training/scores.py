"""A member's scores of all rows on disk, in the order of the rows: what was scored is not scored again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

from o1_retriever_training.cases import Verdict
from o1_retriever_training.errors import LedgerError

Entry = tuple[str, Verdict | None]


class ScoreFile:
    """Lines of (row key, scores, score of the bare query) beside an output; `with file as done: ...`.

    Entering it cuts off a last line that was not finished, and gives the number of rows that are done.
    """

    def __init__(self, out: Path, name: str) -> None:
        self.name = name
        digest = hashlib.blake2b(name.encode(), digest_size=6).hexdigest()
        self.path = out.with_name(f"{out.name}.scores-{digest}")
        self._file: IO[bytes] | None = None

    def __enter__(self) -> int:
        done = end = 0
        self._file = self.path.open("a+b", buffering=0)
        with self.path.open("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                done, end = done + 1, end + len(line)
        os.truncate(self.path, end)
        return done

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def append(self, entries: Sequence[Entry]) -> None:
        """Write some rows' verdicts, None for a row that there was nothing to score of."""
        assert self._file is not None, "the file is not open"
        lines = [
            json.dumps([key, verdict and verdict.scores, verdict and verdict.bare]) + "\n"
            for key, verdict in entries
        ]
        try:
            data = "".join(lines).encode()
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            raise LedgerError(
                f"{self.path} cannot be written ({error.strerror or error}).",
                hint="Free some space, then type the same command: it goes on where it was.",
            ) from error

    def read(self) -> Iterator[Entry]:
        """All rows' verdicts in order."""
        with self.path.open("rb") as lines:
            for line in lines:
                key, scores, bare = json.loads(line)
                yield key, None if scores is None else Verdict(scores=tuple(scores), bare=bare)

    def remove(self) -> None:
        """Delete the file: the rows hold its scores now."""
        self.path.unlink(missing_ok=True)
