"""Forks, several processes and sudden deaths at one thought cache."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from o1_retriever.cache import ThoughtCache, cache_key
from tests.support.caches import FILE, is_sound, rows, thought, vector

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")

# Forks -----------------------------------------------------------------------------------------------


def run(root, script, *arguments):
    """Run a script in a fresh interpreter, with `cache` open on the folder and one entry used."""
    prelude = """
import os, sys, threading
from o1_retriever.cache import ThoughtCache
from tests.support.caches import *
cache = ThoughtCache(sys.argv[1])
cache.put_thoughts([(b"q", 0, thought("before"))])
assert cache.get_thoughts([b"q"], 1)[0]
"""
    quiet = "-Wignore::DeprecationWarning"  # later Pythons warn of any fork beside threads
    command = [sys.executable, quiet, "-c", prelude + script, *map(str, arguments)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=250)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@needs_fork
def test_both_sides_of_a_fork_go_on(root, tmp_path):
    out = run(
        root,
        """
parent = cache._db._local.handle
child = os.fork()
if not child:
    assert getattr(cache._db._local, "handle", None) is None
for i in range(1, 50):
    cache.put_thoughts([(b"q", 2 * i + bool(child), thought(f"{bool(child)} {i}"))])
    assert cache.get_thoughts([b"q"], 1)[0][0].text == "before"
assert parent.closed or not child
if not child:
    sys.exit(0)  # an ordinary end, with all that an interpreter clears away
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
cache.put_thoughts([(b"q", 1, thought("after"))])
print(len(cache.get_thoughts([b"q"], 200)[0]))
""",
        tmp_path,
    )
    assert out == "100\n"
    assert is_sound(tmp_path)


@needs_fork
def test_a_fork_in_the_middle_of_another_threads_work(root, tmp_path):
    out = run(
        root,
        """
started, forked = threading.Event(), threading.Event()
def slow(db):
    db.execute("UPDATE thoughts SET prompt_tokens = prompt_tokens")
    started.set()
    forked.wait(200)
    return "wrote"
result = []
thread = threading.Thread(target=lambda: result.append(cache._db.write(slow)))
thread.start()
started.wait(200)
child = os.fork()
if not child:
    assert cache.get_thoughts([b"q"], 1)[0][0].text == "before"
    assert not cache._db.lock.locked()
    sys.exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
forked.set()
thread.join()
print(result, cache.get_thoughts([b"q"], 1)[0][0].text)
""",
        tmp_path,
    )
    assert out == "['wrote'] before\n"
    assert is_sound(tmp_path)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="calls the C library's fork")
def test_a_fork_that_python_does_not_know_of(root, tmp_path):
    out = run(
        root,
        """
import ctypes
from o1_retriever.cache import sqlite
inherited = cache._db._local.handle.connection
child = ctypes.PyDLL(None).fork()
assert cache.get_thoughts([b"q"], 1)[0][0].text == "before"
if not child:
    # Kept, never closed: closing it would run SQLite's clean-up on the parent's files.
    os._exit(0 if sqlite._INHERITED == [inherited] and inherited.total_changes else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), cache._db._local.handle.connection is inherited)
""",
        tmp_path,
    )
    assert out == "0 True\n"


def test_times_of_use_are_written_at_exit(root, tmp_path):
    run(root, 'cache.put_vectors([(b"q", vector(1))])\ncache.get_thoughts([b"q"], 1)', tmp_path)
    ((thought_time, vector_time),) = rows(
        tmp_path, "SELECT t.accessed, v.accessed FROM thoughts t, vectors v"
    )
    assert thought_time > vector_time
    assert not list(tmp_path.glob("*-wal"))


# Processes -------------------------------------------------------------------------------------------


def work_hard(folder, number, gate, errors):
    try:
        with ThoughtCache(folder, patience=200) as cache:
            gate.wait(200)
            for i in range(40):
                shared, own = cache_key(i=i), cache_key(i=i, number=number)
                cache.put_thoughts([(shared, 0, thought(f"shared {i}")), (own, 0, thought(f"{number} {i}"))])
                cache.put_vectors([(own, vector(i, 64))])
                found = cache.get_thoughts([shared, own], 1)
                assert [item[0].text for item in found] == [f"shared {i}", f"{number} {i}"]
                np.testing.assert_array_equal(cache.get_vectors([own])[0], vector(i, 64))
    except BaseException as error:
        errors.put(f"{number}: {error!r}")


def start_together(way, folder, count):
    context = multiprocessing.get_context(way)
    gate, errors = context.Barrier(count), context.SimpleQueue()
    processes = [context.Process(target=work_hard, args=(folder, n, gate, errors)) for n in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(250)
    assert [process.exitcode for process in processes] == [0] * count
    assert errors.empty(), errors.get()


@pytest.mark.parametrize(
    ("way", "state"),
    [
        ("spawn", "damaged"),
        pytest.param("fork", "absent", marks=needs_fork),
        pytest.param("fork", "used", marks=needs_fork),
        pytest.param("fork", "damaged", marks=needs_fork),
    ],
)
def test_processes_share_one_cache(tmp_path, way, state):
    folder = tmp_path / "cache"
    mine = None
    if state == "used":
        mine = ThoughtCache(folder)
        mine.put_vectors([(b"mine", vector(7))])
    elif state == "damaged":
        folder.mkdir()
        (folder / FILE).write_bytes(b"nonsense" * 5000)
    start_together(way, folder, 3)
    with mine or ThoughtCache(folder) as cache:
        assert (cache.info().thoughts, cache.info().vectors) == (4 * 40, 3 * 40 + (state == "used"))
        for number in range(3):
            found = cache.get_thoughts([cache_key(i=i, number=number) for i in range(40)], 1)
            assert [item[0].text for item in found] == [f"{number} {i}" for i in range(40)]
    assert is_sound(folder)
    assert len(list(folder.glob("*.corrupt-*"))) == (state == "damaged")


WRITER = """
import sys
from o1_retriever.cache import ThoughtCache, cache_key
from tests.support.caches import thought, vector
cache, run, i = ThoughtCache(sys.argv[1], max_bytes=1 << 20), sys.argv[2], 0
while True:
    key = cache_key(run=run, i=i)
    cache.put_thoughts((key, j, thought(f"{run} {i} {j}")) for j in range(3))
    cache.put_vectors([(key, vector(i, 2000))])
    print(i, flush=True)
    i += 1
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 on this system")
def test_what_was_put_survives_kill_9(root, tmp_path, caplog):
    for run_number, least in enumerate([0, 3, 40, 170]):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(run_number)]
        writer = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)
        for line in writer.stdout:
            if int(line) >= least:
                break
        time.sleep(0.003 * run_number)
        writer.send_signal(signal.SIGKILL)
        lines = writer.stdout.read().split()  # what came between the two
        writer.stdout.close()
        assert writer.wait() == -signal.SIGKILL
        with ThoughtCache(tmp_path, max_bytes=1 << 20) as cache:
            last = int(lines[-1]) if lines else least
            recent = range(max(0, last - 20), last + 1)  # older ones may have been evicted
            names = [cache_key(run=str(run_number), i=i) for i in recent]
            for i, found in zip(recent, cache.get_thoughts(names, 3), strict=True):
                assert [found[j].text for j in range(3)] == [f"{run_number} {i} {j}" for j in range(3)]
            assert all(found is not None for found in cache.get_vectors(names))
        assert is_sound(tmp_path)
    assert not list(tmp_path.glob("*.corrupt-*"))
    assert not caplog.records


USER = """
import sys
from o1_retriever.cache import ThoughtCache
from tests.support.caches import thought
cache = ThoughtCache(sys.argv[1])
for line in sys.stdin:
    verb, name = line.split()
    if verb == "put":
        cache.put_thoughts([(name.encode(), 0, thought(name))])
    print(cache.get_thoughts([name.encode()], 1)[0].get(0, thought("nothing")).text, flush=True)
"""


def test_a_process_that_still_holds_a_file_moved_aside_changes_to_the_new_one(root, tmp_path):
    """Closing the old file must not delete the new one's log either, which SQLite finds by its name."""
    command = [sys.executable, "-c", USER, str(tmp_path)]
    pipe = subprocess.PIPE
    other = subprocess.Popen(command, cwd=root, stdin=pipe, stdout=pipe, text=True)

    def ask(verb, name):
        other.stdin.write(f"{verb} {name}\n")
        other.stdin.flush()
        return other.stdout.readline().strip()

    with other, ThoughtCache(tmp_path) as cache:
        assert ask("put", "old") == "old"
        assert cache.get_thoughts([b"old"], 1)[0]
        cache._db._replace(cache._db._local.handle.identity, "for the test")
        cache.put_thoughts([(b"new", 0, thought("new"))])
        assert (tmp_path / f"{FILE}-wal").stat().st_size > 0
        assert ask("get", "new") == "new"
        assert ask("get", "old") == "nothing"
        assert ask("put", "newer") == "newer"
        assert cache.get_thoughts([b"newer"], 1)[0]
        other.stdin.close()
        assert other.wait(200) == 0
        assert cache.get_thoughts([b"newer", b"new"], 1)[1]
    assert rows(tmp_path, "SELECT COUNT(*) FROM thoughts") == [(2,)]
    assert is_sound(tmp_path)
