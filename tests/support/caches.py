"""What the tests of the thought cache share: entries, and the view of another program."""

from __future__ import annotations

import functools
import sqlite3
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import settings

from o1_retriever.cache import ThoughtCache, cache_key
from o1_retriever.thought import Thought

FILE = "thoughts.sqlite"
EXAMPLES = settings(max_examples=60)


def thought(text="because", **changes):
    return Thought(text=text, token_ids=(5, 6), completion_tokens=2, prompt_tokens=9, **changes)


def keys(count, start=0):
    return [cache_key(query=f"question {i}") for i in range(start, start + count)]


def vector(seed, dimension=384):
    return np.random.default_rng(seed).standard_normal(dimension).astype(np.float32)


def rows(folder, statement):
    """Ask the file as another program would."""
    connection = sqlite3.connect(folder / FILE)
    try:
        return connection.execute(statement).fetchall()
    finally:
        connection.close()


def execute(folder, *statements):
    """Change the file as another program would."""
    connection = sqlite3.connect(folder / FILE, isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


def is_sound(folder):
    """Whether SQLite finds nothing wrong with the file, and the running total is the sum."""
    check = rows(folder, "PRAGMA integrity_check")
    sums = "(SELECT TOTAL(size) FROM thoughts) + (SELECT TOTAL(size) FROM vectors)"
    return check == [("ok",)] and rows(folder, f"SELECT bytes = {sums} FROM total") == [(1,)]


def filled(folder, count=40):
    """Lay a cache in the folder, with `count` thoughts and vectors as `thought_of` and `vector` make them."""
    folder.mkdir(exist_ok=True)
    (folder / FILE).write_bytes(_filled(count))
    return folder / FILE


def thought_of(n):
    return thought(f"thought {n} " * 20)


@functools.cache
def _filled(count):
    with tempfile.TemporaryDirectory() as folder:
        with ThoughtCache(folder) as cache:
            cache.put_thoughts((key, 0, thought_of(n)) for n, key in enumerate(keys(count)))
            cache.put_vectors((key, vector(n)) for n, key in enumerate(keys(count)))
        return (Path(folder) / FILE).read_bytes()
