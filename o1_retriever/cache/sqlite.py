"""The file of a cache: where it lies, kept from other users, and shared by threads and processes.

It is one SQLite file that begins anew when it is damaged. Three rules of SQLite are kept here, so that
nobody else needs to know them. A connection never crosses a fork: idle ones are closed before it, and the
child begins with none. A file is opened, created and moved aside under one lock between processes, because
SQLite finds the `-wal` file by name: a process that opens the old file while another begins the new one
would mix the two. And no file that SQLite has open is opened in any other way: closing it would drop all
locks that this process holds on it (POSIX).
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from o1_retriever.concurrency.processes import Renewed
from o1_retriever.errors import CacheError
from o1_retriever.storage import locked

logger = logging.getLogger(__name__)

T = TypeVar("T")
Identity = tuple[int, int] | None

_SIDE_FILES = ("-wal", "-shm")
_ATTEMPTS = 4
_NOT_A_DATABASE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT}
# Our statements break no constraint and fit the schema, so that such an error is damage as well.
_DAMAGE = _NOT_A_DATABASE | {sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH}
# While opening, SQLITE_ERROR is a header or a schema that SQLite cannot read.
_DAMAGE_AT_OPENING = _NOT_A_DATABASE | {sqlite3.SQLITE_ERROR}


class Damaged(sqlite3.DatabaseError):
    """The file can be read, but does not hold what this library wrote."""


@dataclass(frozen=True, slots=True)
class Schema:
    """What a file must hold to be ours. A changed schema takes a new file name, so that versions coexist."""

    application_id: int
    create: tuple[str, ...]
    fill: tuple[str, ...] = ()


class _Handle:
    """One thread's connection, closed with its thread. `lock` is held while it is in use."""

    def __init__(self, connection: sqlite3.Connection, identity: Identity) -> None:
        self.connection = connection
        self.identity = identity
        self.lock = threading.Lock()
        self.closed = False
        self._pid = os.getpid()

    def close(self) -> None:
        self.closed = True
        if self._pid == os.getpid():
            self.connection.close()
        else:
            _INHERITED.append(self.connection)

    def __del__(self) -> None:
        if not self.closed:
            self.close()


# Connections of a parent process: even closing one here could damage the file.
_INHERITED: list[sqlite3.Connection] = []
_DATABASES: weakref.WeakSet[Database] = weakref.WeakSet()  # to be released before a fork


class Database(Renewed):
    """A file with `schema`, opened when needed with one connection per thread.

    `patience` is how many seconds to wait for others. Only damage is dealt with here: anything else raises
    `sqlite3.Error` or `OSError`. `lock` is for short work of the owner's; a forked child gets a fresh one.
    """

    def __init__(self, file: Path, schema: Schema, *, patience: float) -> None:
        self.file = file
        self.patience = patience
        self._schema = schema
        super().__init__()
        _DATABASES.add(self)

    def run(self, work: Callable[[sqlite3.Connection], T], *, patience: float | None = None) -> T:
        """Call `work` with this thread's connection, again with a new file if the old one proves damaged.

        `work` may raise `Damaged`. It can be called several times, so that it must not consume anything.
        """
        for _ in range(_ATTEMPTS):
            handle = self._handle()
            with handle.lock:
                if handle.closed:
                    continue
                try:
                    wait = self.patience if patience is None else patience
                    handle.connection.execute(f"PRAGMA busy_timeout = {int(wait * 1000)}")
                    return work(handle.connection)
                except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
                    damage = _is_among(error, _DAMAGE)
                    if not damage and not _is_among(error, {sqlite3.SQLITE_ERROR}):
                        raise
                    handle.close()
                    reason = str(error)
            if damage:
                self._replace(handle.identity, reason)
            # Otherwise another program may have changed the schema: opening again looks at it.
        raise Damaged(f"{self.file} could not be used after {_ATTEMPTS} attempts")

    def write(self, work: Callable[[sqlite3.Connection], T], *, patience: float | None = None) -> T:
        """`run` inside one transaction that begins as a writer: all of `work` is kept, or nothing."""

        def transaction(connection: sqlite3.Connection) -> T:
            with _transaction(connection):
                return work(connection)

        return self.run(transaction, patience=patience)

    def release(self, *, wait: float = 0.0) -> None:
        """Close idle connections, waiting `wait` seconds for each busy one. They reopen when needed."""
        with self.lock:
            handles = list(self._handles)
        for handle in handles:
            if handle.lock.acquire(timeout=wait):  # 0 does not wait
                try:
                    handle.close()
                finally:
                    handle.lock.release()

    def clear(self) -> None:
        """Begin with an empty schema, give the space back, and delete the files that were moved aside."""

        def empty(connection: sqlite3.Connection) -> None:
            tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
            for (table,) in tables:
                connection.execute(f'DROP TABLE "{table}"')
            self._create(connection)

        def shorten(connection: sqlite3.Connection) -> None:
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

        self.write(empty)
        with contextlib.suppress(sqlite3.Error):  # others are reading: the space is reused later
            self.run(shorten)
        for file in self.file.parent.glob(f"{self.file.name}.corrupt-*"):
            file.unlink(missing_ok=True)

    def disk_bytes(self) -> int:
        """Bytes on disk of the file and what SQLite keeps beside it."""
        files = (Path(f"{self.file}{suffix}") for suffix in ("", *_SIDE_FILES))
        return sum(file.stat().st_size for file in files if file.exists())

    def renew(self) -> None:
        """Begin without connections: those of a parent process must not even be closed here."""
        self._pid = os.getpid()
        self.lock = threading.Lock()
        self._local = threading.local()
        self._handles: weakref.WeakSet[_Handle] = weakref.WeakSet()

    def _handle(self) -> _Handle:
        if self._pid != os.getpid():
            self.renew()
        handle: _Handle | None = getattr(self._local, "handle", None)
        if handle is not None and not handle.closed and handle.identity == _identity(self.file):
            return handle
        # Closed, moved aside by another process, or deleted by somebody: a connection would not notice.
        self._local.handle = None
        handle = self._open()
        self._local.handle = handle
        with self.lock:
            self._handles.add(handle)
        return handle

    def _open(self) -> _Handle:
        make_private_folder(self.file.parent)
        with self._only_process():
            try:
                return self._connect()
            except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
                if not _is_among(error, _DAMAGE_AT_OPENING):
                    raise
                self._move_aside(str(error))
            return self._connect()

    def _connect(self) -> _Handle:
        create_private_file(self.file)
        connection = sqlite3.connect(
            self.file, timeout=self.patience, isolation_level=None, check_same_thread=False
        )
        try:
            # Damaged text is for the checks above this layer to find, not for the decoder.
            connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
            connection.execute("PRAGMA synchronous = NORMAL")
            self._check(connection)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA journal_size_limit = {16 << 20}")
            # REPLACE fires the triggers of deletion only with this.
            connection.execute("PRAGMA recursive_triggers = ON")
            return _Handle(connection, _identity(self.file))
        except BaseException:
            connection.close()
            raise

    def _check(self, connection: sqlite3.Connection) -> None:
        (application_id,) = connection.execute("PRAGMA application_id").fetchone()
        found = {sql for (sql,) in connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")}
        if not found and application_id == 0:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("PRAGMA journal_mode = WAL")
            with _transaction(connection):
                self._create(connection)
        elif application_id != self._schema.application_id or found != set(self._schema.create):
            raise Damaged("it is a SQLite database with other tables")

    def _create(self, connection: sqlite3.Connection) -> None:
        """Create the empty schema, inside a transaction."""
        for statement in (*self._schema.create, *self._schema.fill):
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {self._schema.application_id}")

    def _replace(self, identity: Identity, reason: str) -> None:
        with self._only_process():
            if _identity(self.file) == identity:
                self._move_aside(reason)

    def _move_aside(self, reason: str) -> None:
        self.release()
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
        target = f"{self.file}.corrupt-{stamp}"
        for suffix in (*_SIDE_FILES, ""):
            with contextlib.suppress(FileNotFoundError):
                Path(f"{self.file}{suffix}").replace(f"{target}{suffix}")
        message = "The cache %s is damaged (%s). It was moved to %s, and a new one begins."
        logger.warning(message, self.file, reason, target)

    @contextlib.contextmanager
    def _only_process(self) -> Iterator[None]:
        """Hold the lock under which the file is opened, created or moved."""
        file = Path(f"{self.file}.lock")
        create_private_file(file)
        with locked(file, patience=self.patience):
            yield


def _identity(file: Path) -> Identity:
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _is_among(error: Exception, codes: set[int]) -> bool:
    # Undecodable: a damaged name that SQLite quotes in its message.
    if isinstance(error, Damaged | UnicodeDecodeError):
        return codes >= _NOT_A_DATABASE
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in codes


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def _before_fork() -> None:
    for database in list(_DATABASES):
        database.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork)


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
