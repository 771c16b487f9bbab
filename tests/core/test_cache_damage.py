"""A thought cache whose file is damaged, deleted, locked or read-only never fails a query."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o1_retriever.cache import ThoughtCache
from o1_retriever.errors import CacheError
from tests.support.caches import (
    EXAMPLES,
    FILE,
    execute,
    filled,
    is_sound,
    keys,
    rows,
    thought,
    thought_of,
    vector,
)

# Damage ----------------------------------------------------------------------------------------------


def noise(length):
    return np.random.default_rng(0).bytes(length)


def foreign(file):
    file.unlink()
    execute(file.parent, "CREATE TABLE bookmarks (url TEXT)", "INSERT INTO bookmarks VALUES ('https://x')")


def old_schema(file):
    execute(file.parent, "ALTER TABLE thoughts ADD COLUMN mood TEXT")


def no_table(file):
    execute(file.parent, "DROP TABLE vectors")


def other_application(file):
    execute(file.parent, "PRAGMA application_id = 7")


def undecodable(file):
    """Damage that SQLite quotes in its message."""
    file.write_bytes(file.read_bytes().replace(b"BEGIN UPDATE total", b"BEGIN \x80PDATE total"))


DAMAGE = {
    "garbage": lambda file: file.write_bytes(noise(50_000)),
    "text": lambda file: file.write_text("Dear diary, " * 1000),
    "short": lambda file: file.write_bytes(b"SQLite"),
    "header": lambda file: file.write_bytes(file.read_bytes()[:60]),
    "truncated": lambda file: os.truncate(file, file.stat().st_size // 2),
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "zeros after the header": lambda file: file.write_bytes(file.read_bytes()[:100].ljust(60_000, b"\0")),
    "foreign": foreign,
    "old schema": old_schema,
    "no table": no_table,
    "undecodable": undecodable,
    "other application": other_application,
}


def use(folder):
    """Use a cache in every way; whatever is found must be what was once put."""
    names = keys(40)
    with ThoughtCache(folder) as cache:
        found, vectors = cache.get_thoughts(names, 1), cache.get_vectors(names)
        for n, item in enumerate(found):
            assert item in ({}, {0: thought_of(n)})
        for n, item in enumerate(vectors):
            assert item is None or item.tobytes() == vector(n).tobytes()
        for _ in range(2):  # damage found by the second write takes the first one with it
            cache.put_thoughts([(b"new", 0, thought("new"))])
            cache.put_vectors([(b"new", vector(99))])
        assert cache.get_thoughts([b"new"], 1) == [{0: thought("new")}]
        assert cache.get_vectors([b"new"])[0].tobytes() == vector(99).tobytes()
        cache.info()
    return sum(map(len, found)) + sum(item is not None for item in vectors)


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_moved_aside_with_one_warning(tmp_path, caplog, kind):
    file = filled(tmp_path)
    DAMAGE[kind](file)
    before = file.read_bytes()
    with caplog.at_level(logging.WARNING):
        use(tmp_path)
        use(tmp_path)
    assert len(caplog.records) == 1, caplog.text
    (aside,) = tmp_path.glob(f"{FILE}.corrupt-*")
    assert str(aside) in caplog.text
    if kind != "truncated":  # found damaged only after it was opened
        assert aside.read_bytes() == before
    assert is_sound(tmp_path)


def test_damage_while_in_use_is_found_by_a_later_query(tmp_path, caplog):
    file = filled(tmp_path, 2000)
    cache = ThoughtCache(tmp_path)
    assert cache.get_vectors(keys(1))[0] is not None
    with file.open("r+b") as raw:
        raw.seek(8192)
        raw.write(noise(file.stat().st_size - 8192))
    with caplog.at_level(logging.WARNING):
        found = cache.get_thoughts(keys(2000), 1)
        cache.put_thoughts([(b"q", 0, thought())])
    assert found.count({}) == 2000
    assert cache.get_thoughts([b"q"], 1) == [{0: thought()}]
    assert len(caplog.records) == 1, caplog.text
    cache.close()


def test_who_finds_the_same_damage_later_leaves_the_new_file_alone(tmp_path):
    filled(tmp_path)
    with ThoughtCache(tmp_path) as cache:
        seen = cache._db._local.handle.identity
        for _ in range(2):
            cache._db._replace(seen, "for the test")
            cache.put_vectors([(b"k", vector(1))])
        assert cache.info().vectors == 1
    assert len(list(tmp_path.glob("*.corrupt-*"))) == 1


def test_a_table_dropped_while_in_use(tmp_path, caplog):
    filled(tmp_path)
    cache = ThoughtCache(tmp_path)
    assert cache.get_vectors(keys(1))[0] is not None
    no_table(tmp_path / FILE)
    with caplog.at_level(logging.WARNING):
        cache.put_vectors([(b"q", vector(1))])
    assert cache.get_vectors([b"q"])[0] is not None
    assert len(caplog.records) == 1, caplog.text
    cache.close()


@settings(EXAMPLES, max_examples=40)
@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=60)), max_size=3))
def test_no_damage_ever_gives_a_wrong_answer_or_an_error(tmp_path_factory, changes):
    folder = tmp_path_factory.mktemp("flip")
    file = filled(folder)
    raw = bytearray(file.read_bytes())
    for place, new in changes:
        start = int(place * (len(raw) - len(new)))
        raw[start : start + len(new)] = new
    file.write_bytes(raw)
    use(folder)


def test_no_byte_of_the_header_matters_so_much(tmp_path):
    for offset in (*range(0, 100, 5), 18, 19, 36, 37, 38, 39, 44, 47, 52, 56, 59):
        folder = tmp_path / str(offset)
        file = filled(folder)
        raw = bytearray(file.read_bytes())
        raw[offset] ^= 0xFF
        file.write_bytes(raw)
        if offset != 18:
            use(folder)
            continue
        with ThoughtCache(folder) as cache:  # this one makes the file read-only
            cache.put_vectors([(b"new", vector(99))])
            assert cache.get_vectors([*keys(1), b"new"])[0] is not None


@pytest.mark.parametrize("leftover", ["-wal", "-shm", ".lock"])
def test_garbage_beside_the_file(tmp_path, leftover):
    file = filled(tmp_path)
    Path(f"{file}{leftover}").write_bytes(noise(40_000))
    assert use(tmp_path) == 80


def test_an_empty_file_is_a_new_cache(tmp_path, caplog):
    (tmp_path / FILE).touch()
    assert use(tmp_path) == 0
    assert not caplog.records


@pytest.mark.parametrize("what", ["file", "folder"])
def test_deleted_while_in_use(tmp_path, what, caplog):
    folder = tmp_path / "cache"
    with ThoughtCache(folder) as cache:
        cache.put_vectors([(b"k", vector(1))])
        if what == "file":
            (folder / FILE).unlink()  # its -wal stays behind
        else:
            shutil.rmtree(folder)
        assert cache.get_vectors([b"k"]) == [None]
        cache.put_vectors([(b"k", vector(2))])
        with ThoughtCache(folder) as other:
            np.testing.assert_array_equal(other.get_vectors([b"k"])[0], vector(2))
    assert not caplog.records


# Others in the way -----------------------------------------------------------------------------------


def test_a_writer_elsewhere_does_not_disturb_readers_and_costs_no_result(tmp_path, caplog):
    with ThoughtCache(tmp_path, patience=1.0) as cache:
        cache.put_vectors([(b"k", vector(1))])
        blocker = sqlite3.connect(tmp_path / FILE, isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        with caplog.at_level(logging.WARNING):
            started = time.perf_counter()
            for _ in range(30):
                assert cache.get_vectors([b"k"])[0] is not None
                cache.put_vectors([(b"lost", vector(2))])
        assert time.perf_counter() - started < 15  # patient once only, where each time were 30 seconds
        assert len(caplog.records) == 1, caplog.text
        assert "cannot be written" in caplog.text
        blocker.execute("ROLLBACK")
        blocker.close()
        cache.put_vectors([(b"k2", vector(2))])
        found = cache.get_vectors([b"k2", b"lost"])
        assert found[0] is not None
        assert found[1] is None


def test_times_of_use_wait_for_a_writer_elsewhere(tmp_path, caplog):
    with ThoughtCache(tmp_path, patience=100) as cache:
        cache.put_vectors((name, vector(1, 2)) for name in keys(1500))
        blocker = sqlite3.connect(tmp_path / FILE, isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        started = time.perf_counter()
        for name in keys(1500):
            cache.get_vectors([name])
        assert time.perf_counter() - started < 90  # one patient wait is 100
        blocker.close()
    assert rows(tmp_path, "SELECT COUNT(DISTINCT accessed) FROM vectors") == [(1500,)]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_locked_file_is_a_miss(tmp_path, caplog):
    filled(tmp_path)
    blocker = sqlite3.connect(tmp_path / FILE, isolation_level=None)
    blocker.execute("PRAGMA locking_mode = EXCLUSIVE")
    blocker.execute("BEGIN EXCLUSIVE")
    with caplog.at_level(logging.WARNING), ThoughtCache(tmp_path, patience=0.1) as cache:
        assert cache.get_vectors(keys(1)) == [None]
        assert cache.get_thoughts(keys(1), 1) == [{}]
        assert not caplog.records
        with pytest.raises(CacheError, match="locked"):
            cache.info()
        blocker.close()
        assert cache.get_vectors(keys(1))[0] is not None


@pytest.mark.parametrize("trouble", ["query_only = ON", "max_page_count = 1"])
def test_a_file_that_turns_read_only_or_full_still_answers(tmp_path, caplog, trouble):
    with ThoughtCache(tmp_path) as cache:
        cache.put_vectors([(b"k", vector(1))])
        cache._db.run(lambda db: db.execute(f"PRAGMA {trouble}"))
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                assert cache.get_vectors([b"k"])[0] is not None
                cache.put_vectors([(b"l", vector(2, 10_000))])
        assert cache.get_vectors([b"l"]) == [None]
        assert len(caplog.records) == 1, caplog.text
        assert not list(tmp_path.glob("*corrupt*"))
