"""Locks between threads and processes, and files that appear whole."""

from __future__ import annotations

import errno
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from o1_retriever.storage import acquire, is_busy, locked, locked_fairly, written_whole

HOLD = """
import sys, time
from o1_retriever.storage import acquire
from pathlib import Path
lock = acquire(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_a_lock_is_held_by_one_connection_at_a_time_and_given_back_by_closing_it(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with closing(acquire(file)), pytest.raises(sqlite3.OperationalError) as caught, locked(file, patience=0):
        pass
    assert is_busy(caught.value)
    with locked(file, patience=0):
        pass


@contextmanager
def acquire_two(file: Path) -> Iterator[None]:
    with closing(acquire(file, shared=True)), closing(acquire(file, shared=True)):
        yield


def test_readers_share_a_lock_that_a_writer_has_alone(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with acquire_two(file), pytest.raises(sqlite3.OperationalError):
        acquire(file)
    with closing(acquire(file)), pytest.raises(sqlite3.OperationalError):
        acquire(file, shared=True)


def test_waiting_ends_when_the_lock_is_given_back(tmp_path: Path) -> None:
    file, lock = tmp_path / "lock", acquire(tmp_path / "lock")
    started = time.monotonic()
    threading.Timer(0.1, lock.close).start()
    with locked(file, patience=200):
        assert 0.1 <= time.monotonic() - started < 100


def test_a_lock_ends_with_the_process_that_held_it(tmp_path: Path, root: Path) -> None:
    file = tmp_path / "lock"
    command = [sys.executable, "-c", HOLD, str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(sqlite3.OperationalError):
            acquire(file)
        process.kill()
        process.wait()
    with locked(file, patience=60):
        pass


def test_a_file_system_without_locks_is_named_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite calls it busy, so that whoever waits would wait for nobody."""

    def no_locks(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with closing(acquire(tmp_path / "lock")):
        monkeypatch.setattr("fcntl.lockf", no_locks)
        with pytest.raises(sqlite3.OperationalError, match="gives no locks") as caught:
            acquire(tmp_path / "lock", patience=1000)
    assert not is_busy(caught.value)


def test_a_file_of_something_else_is_emptied_and_no_file_at_all_is_named(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("not a database, whatever SQLite thinks of it")
    with locked(tmp_path / "lock", patience=0):
        assert (tmp_path / "lock").stat().st_size == 0
    with pytest.raises(sqlite3.OperationalError) as caught:
        acquire(tmp_path / "nowhere" / "lock")
    assert not is_busy(caught.value)


def test_a_reader_that_waits_comes_before_the_writer_that_wants_to_write_again(tmp_path: Path) -> None:
    file, turn = tmp_path / "lock", tmp_path / "turn"
    order: list[str] = []

    def read() -> None:
        with locked_fairly(file, turn, alone=False, patience=200):
            order.append("read")

    reader = threading.Thread(target=read)
    with locked_fairly(file, turn, alone=True, patience=0):
        reader.start()
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:  # until the reader holds the turn
            try:
                acquire(turn).close()
            except sqlite3.OperationalError:
                break
            time.sleep(0.005)
        order.append("write")
    with locked_fairly(file, turn, alone=True, patience=200):
        order.append("write again")
    reader.join()
    assert order == ["write", "read", "write again"]


def test_a_file_is_replaced_when_it_is_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with written_whole(path) as file:
        file.write("old\n")
        assert not path.exists()
    with pytest.raises(ZeroDivisionError), written_whole(path) as file:
        file.write(f"half, {1 / 0}")
    assert path.read_bytes() == b"old\n"
    assert list(tmp_path.iterdir()) == [path]
