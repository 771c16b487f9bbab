"""The thought cache stays within its room and drops what was used least recently."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o1_retriever.cache import ThoughtCache, cache_key
from o1_retriever.errors import SettingsError
from tests.support.caches import EXAMPLES, FILE, execute, keys, rows, thought, vector


def alive(cache, names):
    """Which keys still have a vector, without counting as a use."""
    stored = {key for (key,) in rows(cache.path, "SELECT key FROM vectors")}
    return {name for name in names if name in stored}


def real_total(folder):
    return rows(folder, "SELECT (SELECT TOTAL(size) FROM thoughts) + (SELECT TOTAL(size) FROM vectors)")[0][0]


def test_the_least_recently_used_go_first(tmp_path):
    names = keys(60)
    with ThoughtCache(tmp_path, max_bytes=1 << 16) as cache:
        for n, name in enumerate(names[:20]):
            cache.put_vectors([(name, vector(n))])
        assert alive(cache, names) == set(names[:20])
        assert all(found is not None for found in cache.get_vectors(names[:5]))
        n = 20
        while len(alive(cache, names[:n])) == n:
            cache.put_vectors([(names[n], vector(n))])
            n += 1
        left = alive(cache, names)
        gone = n - len(left)
        assert 1 <= gone <= 5
        assert left == {*names[:5], *names[5 + gone : n]}
        assert (1 << 16) * 0.8 < cache.info().bytes <= (1 << 16) * 0.9
        assert cache.info().bytes == real_total(tmp_path)


def test_thoughts_and_vectors_share_the_room_and_the_order(tmp_path):
    with ThoughtCache(tmp_path, max_bytes=1 << 16) as cache:
        old, new = keys(2)
        cache.put_thoughts([(old, 0, thought("x" * 10_000))])
        cache.put_vectors([(new, vector(1, 2000))])
        cache.get_thoughts([old], 1)
        cache.put_vectors((key, vector(n)) for n, key in enumerate(keys(30, start=100)))
        assert cache.get_vectors([new]) == [None]
        cache.put_vectors((key, vector(n)) for n, key in enumerate(keys(30, start=200)))
        assert cache.get_thoughts([old], 1) == [{}]


def test_times_of_use_are_written_at_close(tmp_path):
    first, second = keys(2)
    with ThoughtCache(tmp_path) as cache:
        cache.put_vectors([(first, vector(1))])
        cache.put_vectors([(second, vector(2))])
        cache.get_vectors([first])
    order = [key for (key,) in rows(tmp_path, "SELECT key FROM vectors ORDER BY accessed")]
    assert order == [second, first]


def test_times_of_use_are_written_every_so_often(tmp_path):
    names = keys(1100)
    with ThoughtCache(tmp_path) as cache:
        cache.put_vectors((name, vector(1, 2)) for name in names)
        for name in names:
            cache.get_vectors([name])
        (spread,) = rows(tmp_path, "SELECT COUNT(DISTINCT accessed) FROM vectors")[0]
    assert spread > 1000


@settings(EXAMPLES, max_examples=30)
@given(st.lists(st.tuples(st.sampled_from("tvg"), st.integers(0, 40), st.integers(0, 9000)), max_size=80))
def test_the_total_is_the_sum_whatever_happens(tmp_path_factory, steps):
    folder = tmp_path_factory.mktemp("sum")
    with ThoughtCache(folder, max_bytes=1 << 16) as cache:
        for kind, name, size in steps:
            key = cache_key(n=name)
            if kind == "t":
                cache.put_thoughts([(key, name % 3, thought("x" * size))])
            elif kind == "v":
                cache.put_vectors([(key, vector(name, size))])
            else:
                cache.get_vectors([key])
            assert cache.info().bytes == real_total(folder) <= 1 << 16


@pytest.mark.parametrize("dimension", [8, 384, 1024, 4096])
def test_the_file_stays_within_the_bound_in_a_long_run(tmp_path, dimension):
    room = 1 << 19
    generator = np.random.default_rng(0)
    with ThoughtCache(tmp_path, max_bytes=room) as cache:
        names = keys(3 * room // (dimension * 4 + 300))
        for start in range(0, len(names), 40):
            part = names[start : start + 40]
            cache.put_vectors((name, vector(1, dimension)) for name in part)
            cache.put_thoughts((name, 0, thought("word " * int(generator.integers(1, 60)))) for name in part)
            cache.get_vectors([names[i] for i in generator.integers(0, start + 40, 30) if i < len(names)])
            assert (tmp_path / FILE).stat().st_size <= room * 1.05
        assert cache.info().bytes > room * 0.7
    assert (tmp_path / FILE).stat().st_size <= room * 1.05


def test_a_smaller_bound_gives_the_space_back(tmp_path):
    with ThoughtCache(tmp_path) as cache:
        cache.put_vectors((key, vector(1)) for key in keys(1000))
    assert (tmp_path / FILE).stat().st_size > 1 << 20
    with ThoughtCache(tmp_path, max_bytes=1 << 18) as cache:
        cache.put_vectors([(b"one more", vector(1))])
        assert cache.get_vectors([b"one more"])[0] is not None
    assert (tmp_path / FILE).stat().st_size <= 1 << 18


def test_what_is_larger_than_the_cache_evicts_nobody(tmp_path):
    with ThoughtCache(tmp_path, max_bytes=1 << 16) as cache:
        cache.put_vectors([(b"small", vector(1))])
        cache.put_vectors([(b"large", vector(1, 1 << 15))])
        assert cache.get_vectors([b"large"]) == [None]
        assert cache.get_vectors([b"small"])[0] is not None


def test_a_wrong_total_heals_instead_of_emptying_the_cache(tmp_path):
    with ThoughtCache(tmp_path) as cache:
        cache.put_vectors((key, vector(1)) for key in keys(20))
    execute(tmp_path, "UPDATE total SET bytes = 1 << 60")
    with ThoughtCache(tmp_path) as cache:
        cache.put_vectors([(b"one more", vector(1))])
        assert cache.info().vectors == 21
        assert cache.info().bytes == real_total(tmp_path)


@pytest.mark.parametrize("wrong", [0, -1, 1000, True, 1e9, "1 GB", None])
def test_a_bound_out_of_range_is_refused(tmp_path, wrong):
    with pytest.raises(SettingsError, match="max_bytes"):
        ThoughtCache(tmp_path, max_bytes=wrong)
