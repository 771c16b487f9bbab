"""Threads at one thought cache: a connection each, closed with the thread."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import numpy as np
import pytest

from o1_retriever.cache import ThoughtCache, cache_key
from tests.support.caches import FILE, filled, keys, thought, vector

DESCRIPTORS = Path("/proc/self/fd")


def in_threads(work, count):
    errors = []

    def guarded(n):
        try:
            work(n)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors


def test_threads_share_one_cache(tmp_path, caplog):
    with ThoughtCache(tmp_path) as cache:

        def work(n):
            for i in range(25):
                key = cache_key(n=n, i=i)
                cache.put_thoughts([(key, 0, thought(f"{n} {i}"))])
                assert cache.get_thoughts([key], 1)[0][0].text == f"{n} {i}"

        in_threads(work, 8)
        assert cache.info().thoughts == 200
    assert not caplog.records


def descriptors():
    return sum(FILE in str(link.resolve()) for link in DESCRIPTORS.iterdir())


def test_connections_of_ended_threads_are_closed(tmp_path):
    if not DESCRIPTORS.exists():
        pytest.skip("no /proc")
    with ThoughtCache(tmp_path) as cache:
        cache.put_vectors([(b"k", vector(1))])
        before = descriptors()
        for _ in range(5):
            in_threads(lambda n: cache.get_vectors([b"k"]), 10)
        assert descriptors() <= before + 10  # SQLite keeps some for the next connection
        assert len(cache._db._handles) == 1
    assert descriptors() == 0


def test_threads_that_find_damage_together_warn_once(tmp_path, caplog):
    file = filled(tmp_path, 1000)
    with caplog.at_level(logging.WARNING), ThoughtCache(tmp_path) as cache:
        gate = threading.Barrier(6, timeout=200)

        def work(n):
            cache.get_vectors(keys(1))
            if gate.wait() == 0:
                with file.open("r+b") as raw:
                    raw.seek(8192)
                    raw.write(np.random.default_rng(0).bytes(file.stat().st_size - 8192))
            gate.wait()
            cache.get_thoughts(keys(1000), 1)
            cache.put_thoughts([(cache_key(n=n), 0, thought())])

        in_threads(work, 6)
        assert cache.info().thoughts == 6
    assert len(caplog.records) == 1, caplog.text
