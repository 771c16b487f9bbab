"""Finding the files of a folder that can be read, without what was installed, generated or is ignored."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from o1_retriever.documents.encoding import looks_binary
from o1_retriever.documents.readers import is_known, suffix_of
from o1_retriever.errors import require

IGNORE_FILES = (".gitignore", ".o1ignore")
# Folders that hold what was installed or generated, not written.
_NOISE = {
    *("node_modules", "bower_components", "__pycache__", "site-packages", "venv", "env", "build", "dist"),
    *("htmlcov", "__pypackages__"),
}
_NOISE_ENDS = (".egg-info", ".dist-info")
_HEAD = 8192
Ignoring = list[tuple[str, Any]]  # folders with the patterns of their own ignore files, outermost first


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file by its path inside the folder, with what tells whether it has changed."""

    source: str
    size: int
    mtime_ns: int


@dataclass(slots=True)
class FoundFiles:
    """Files to read, what cannot be read, other kinds by suffix, and what was passed over by the reason."""

    files: list[FoundFile] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    passed_over: Counter[str] = field(default_factory=Counter)


def find_files(
    path: Path,
    *,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    ignore: bool = True,
    leave_out: Path | None = None,
) -> FoundFiles:
    """The files below `path` to read, in the order of their paths, without those of the folder `leave_out`.

    Hidden files and folders and linked folders are passed over; with `ignore`, so are folders of what was
    installed or built, and what a `.gitignore` or `.o1ignore` names.
    """
    found = FoundFiles()
    search = _Search(path, found, tuple(include), tuple(exclude), ignore, leave_out)

    def unreadable(error: OSError) -> None:
        name = Path(error.filename).relative_to(path).as_posix()
        found.skipped.append((_shown(name), f"the folder cannot be read ({error.strerror})."))

    for place, folders, names in os.walk(path, onerror=unreadable):
        here = Path(place).relative_to(path)
        search.enter(here, names)
        folders[:] = sorted(name for name in folders if search.goes_into(here, name))
        for name in sorted(names):
            search.take(here, name)
    found.files.sort(key=lambda file: file.source)
    return found


@dataclass(slots=True)
class _Search:
    path: Path
    found: FoundFiles
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    ignore: bool
    leave_out: Path | None
    _ignoring: dict[str, Ignoring] = field(default_factory=dict)

    def enter(self, here: Path, names: Sequence[str]) -> None:
        """Read the ignore files of a folder."""
        if not self.ignore:
            return
        lines = [line for name in IGNORE_FILES if name in names for line in self._lines(here / name)]
        outer = self._ignoring.get(here.parent.as_posix(), []) if here.parts else []
        own: Ignoring = []
        if lines:
            pathspec = require("pathspec", extra="documents", purpose="Reading .gitignore and .o1ignore")
            own = [(here.as_posix(), pathspec.GitIgnoreSpec.from_lines(lines))]
        self._ignoring[here.as_posix()] = [*outer, *own]

    def _lines(self, source: Path) -> Iterator[str]:
        file = self.path / source
        try:
            if file.is_file():
                yield from file.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError as error:
            self.found.skipped.append((source.as_posix(), f"it cannot be read ({error.strerror})."))

    def goes_into(self, here: Path, name: str) -> bool:
        """Whether a folder is looked into; counts why not."""
        source = (here / name).as_posix()
        if (self.path / source).is_symlink():
            return self._pass_over("linked folders")
        if name.startswith("."):
            return self._pass_over("hidden files and folders")
        if self.leave_out is not None and (self.path / source).resolve() == self.leave_out:
            return False
        if _matches(source, self.exclude):
            return self._pass_over("excluded")
        if self.ignore and (name in _NOISE or name.endswith(_NOISE_ENDS)):
            return self._pass_over(
                f"folders called {name}" if name in _NOISE else "folders of installed packages"
            )
        if self._is_ignored(here, f"{source}/"):
            return self._pass_over("named in .gitignore or .o1ignore")
        return True

    def _pass_over(self, why: str) -> bool:
        self.found.passed_over[why] += 1
        return False

    def _is_ignored(self, here: Path, source: str) -> bool:
        """By the last pattern that fits, of the innermost folder that has one."""
        ignored = False
        for folder, patterns in self._ignoring.get(here.as_posix(), ()):
            inside = source if folder == "." else source[len(folder) + 1 :]
            verdict = patterns.check_file(inside).include
            ignored = ignored if verdict is None else verdict
        return ignored

    def take(self, here: Path, name: str) -> None:
        """Keep a file, or note why not."""
        source = (here / name).as_posix()
        if name in IGNORE_FILES:
            return
        if name.startswith("."):
            self._pass_over("hidden files and folders")
        elif name.startswith("~$"):
            self._pass_over("locks of open Office files")
        elif _matches(source, self.exclude):
            self._pass_over("excluded")
        elif self._is_ignored(here, source):
            self._pass_over("named in .gitignore or .o1ignore")
        elif not is_known(Path(name)):
            self.found.ignored[suffix_of(Path(name))] += 1
        elif _matches(source, self.include):
            self._keep(source)

    def _keep(self, source: str) -> None:
        file = self.path / source
        try:
            source.encode()
            status = file.stat()
        except UnicodeEncodeError:
            reason = "its name is not valid UTF-8; expected a name that can be printed."
            self.found.skipped.append((_shown(source), reason))
            return
        except OSError as error:
            kind = "a link to nothing" if file.is_symlink() else f"not to be read ({error.strerror})"
            self.found.skipped.append((source, f"it is {kind}; expected a file."))
            return
        if not stat.S_ISREG(status.st_mode):
            self.found.skipped.append((source, "it is no regular file; expected a file."))
        elif not file.suffix and _is_program(file):
            self.found.ignored["programs and other binary files"] += 1
        else:
            self.found.files.append(FoundFile(source, status.st_size, status.st_mtime_ns))


def _is_program(file: Path) -> bool:
    """Whether a file without a suffix holds no text."""
    try:
        with file.open("rb") as opened:
            return looks_binary(opened.read(_HEAD))
    except OSError:
        return False  # reading it says why


def _shown(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def _matches(source: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern fits a path inside the folder, or the name of the file or of a folder above it."""
    return any(fnmatch(part, pattern) for pattern in patterns for part in (source, *source.split("/")))
