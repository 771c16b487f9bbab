"""Where the cache lies, and how its folder and files are kept from other users."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from o1_retriever.errors import CacheError

_VARIABLE = "O1_RETRIEVER_CACHE"


def default_cache_path() -> Path:
    """The cache folder when none is named: `$O1_RETRIEVER_CACHE`, else one in the user's cache folder."""
    return absolute(default_for(sys.platform, os.environ))


def default_for(platform: str, environ: Mapping[str, str]) -> Path:
    """The default on a platform (as `sys.platform` says it), where `~` still stands for the home folder."""
    if chosen := environ.get(_VARIABLE):
        return Path(chosen)
    if platform == "win32":
        base = Path(environ.get("LOCALAPPDATA") or Path("~", "AppData", "Local"))
    elif platform == "darwin":
        base = Path("~", "Library", "Caches")
    else:
        base = Path(environ.get("XDG_CACHE_HOME", ""))
        if not base.is_absolute():  # its standard calls a relative one invalid
            base = Path("~", ".cache")
    return base / "o1-retriever"


def absolute(path: str | os.PathLike[str]) -> Path:
    """The folder's absolute path, so that a later change of the working folder changes nothing."""
    if not os.fspath(path):
        raise CacheError(
            "The cache folder is an empty string; expected a path.",
            hint="Name a folder, or pass cache=False for none.",
        )
    try:
        return Path.cwd() / Path(path).expanduser()
    except RuntimeError as error:
        raise CacheError(
            f"The cache folder {str(path)!r} has no place ({error}).",
            hint="Set O1_RETRIEVER_CACHE to a folder.",
        ) from None


def make_private_folder(folder: Path) -> None:
    """Create `folder` and its missing parents with mode 0700, whatever the umask.

    An existing folder keeps its mode, because it may hold other things, unless it is the platform's default:
    that one is ours by its name. Raises `OSError` when there is no writable folder in the end, `ValueError`
    for a name that cannot be one.
    """
    missing = []
    for part in (folder, *folder.parents):
        if part.exists():
            break
        missing.append(part)
    for part in reversed(missing):
        try:
            part.mkdir(mode=0o700)
            part.chmod(0o700)
        except FileExistsError:  # another process was faster, or a dangling link is in the way
            if not part.is_dir():
                raise
    if not folder.is_dir():
        raise NotADirectoryError("it is a file")
    if _is_platform_default(folder):
        with contextlib.suppress(PermissionError):  # another user's
            folder.chmod(0o700)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError("it is not writable")


def _is_platform_default(folder: Path) -> bool:
    environ = {name: value for name, value in os.environ.items() if name != _VARIABLE}
    try:
        return folder == default_for(sys.platform, environ).expanduser()
    except RuntimeError:  # no home folder
        return False


def create_private_file(file: Path) -> None:
    """Create an empty file with mode 0600 unless it exists; an existing one is not even opened."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
