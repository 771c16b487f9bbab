"""Finding the files of a folder that can be read."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from o1_retriever.documents.readers import is_known

# Folders that hold what was installed or generated, not written.
_NOISE = {"node_modules", "__pycache__", "site-packages", "venv"}


@dataclass(slots=True)
class FoundFiles:
    """Files to read by their path inside the folder, what cannot be read, and other kinds by suffix."""

    files: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)


def find_files(
    path: Path, *, include: Sequence[str] = ("*",), exclude: Sequence[str] = (), leave_out: Path | None = None
) -> FoundFiles:
    """The files below `path` to read, in the order of their paths, without those of the folder `leave_out`.

    Hidden files and folders, folders that hold what was installed, and linked folders are passed over.
    """
    found = FoundFiles()

    def unreadable(error: OSError) -> None:
        name = Path(error.filename).relative_to(path).as_posix()
        found.skipped.append((name, f"the folder cannot be read ({error.strerror})."))

    for place, folders, names in os.walk(path, onerror=unreadable):
        here = Path(place)
        passed_over = {
            name
            for name in (*folders, *names)
            if name.startswith(".") or _matches((here / name).relative_to(path).as_posix(), exclude)
        }
        folders[:] = sorted(
            name for name in set(folders) - passed_over - _NOISE if (here / name).resolve() != leave_out
        )
        for name in sorted(set(names) - passed_over):
            _take(found, here / name, path, include)
    found.files.sort()
    return found


def _take(found: FoundFiles, file: Path, path: Path, include: Sequence[str]) -> None:
    source = file.relative_to(path).as_posix()
    if not is_known(file):
        found.ignored[file.suffix.lower() or "none"] += 1
    elif _matches(source, include):
        try:
            source.encode()
        except UnicodeEncodeError:
            shown = source.encode("utf-8", "backslashreplace").decode()
            found.skipped.append((shown, "its name is not valid UTF-8; expected a name that can be printed."))
            return
        if file.is_file():
            found.files.append(source)
        else:
            kind = "a link to nothing" if file.is_symlink() else "no regular file"
            found.skipped.append((source, f"it is {kind}; expected a file."))


def _matches(source: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern fits a path inside the folder, or the name of the file or of a folder above it."""
    return any(fnmatch(part, pattern) for pattern in patterns for part in (source, *source.split("/")))
