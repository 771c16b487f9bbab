"""What the thought cache keeps, what it drops, and what it says about itself."""

from __future__ import annotations

import json
import sqlite3
import struct
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from o1_retriever.cache import ThoughtCache, cache_key
from o1_retriever.cache.store import _checksum, row_id
from o1_retriever.errors import CacheError
from o1_retriever.query import Query, as_queries
from o1_retriever.thinking import QueryCache, _thought_key
from o1_retriever.thought import Thought, ThoughtSettings
from tests.support.caches import EXAMPLES, FILE, execute, keys, rows, thought, vector


@pytest.fixture
def cache(tmp_path):
    with ThoughtCache(tmp_path / "cache") as cache:
        yield cache


# Keys ------------------------------------------------------------------------------------------------


def test_a_key_is_the_same_in_every_process_and_version():
    # Golden value: a change of it forgets every user's cache, so it must be meant.
    key = cache_key(
        kind="thought", sampling=ThoughtSettings().sampling(), query="Pourquoi \x00 é 😀?", n=None
    )
    assert key.hex() == "978695c34e836623f153864b575f8ea42b229aa6"
    again = cache_key(
        n=None, query="Pourquoi \x00 é 😀?", sampling=ThoughtSettings().sampling(), kind="thought"
    )
    assert key == again


def test_so_are_the_keys_of_a_thought_and_of_a_vector():
    query, (turned,) = (
        Query("why?"),
        as_queries(["why?"], histories=[[("user", "Is ice cold?"), ("assistant", "Yes.")]]),
    )
    settings = ThoughtSettings()
    asked = [query, turned, Query("why?", passages=("Ice is cold.",))]
    found = [_thought_key("tiny", settings, each).hex() for each in asked]
    assert found == [
        "04b0c3aa923d84b3b6c3f90dbf83746bf812b513",
        "f7c59b4f4ed48f5ceb27a6338b9ca447cfc8042e",
        "0f9ad4b225e3c3f884243971de2b7d9d12e9a91f",
    ]
    cache = QueryCache(SimpleNamespace(encoder_identity="tiny"), cache=False)
    keys = [cache.vector_key("why?", each) for each in (None, thought())]
    keys.append(QueryCache(SimpleNamespace(encoder_identity=None), cache=False).vector_key("why?", None))
    assert [key.hex() for key in keys] == [
        "1e08cb721c13956c942dc274062f99752656fe2a",
        "c1ef8b90ef23b7e8edbada53485be755d7b0bc96",
        "b7b2b0196efa20465bca1fc9934f3d5228733887",
    ]


@pytest.mark.parametrize(
    ("penalty", "kept"),
    [
        (1, {}),
        (1.0, {}),
        (1.2, {"repetition_penalty": 1.2}),
        (2.0, {"repetition_penalty": 2.0}),
        (0.9, {"repetition_penalty": 0.9}),
    ],
)
def test_a_penalty_that_does_nothing_is_in_no_key(penalty, kept):
    always = {"temperature": 0.5, "top_p": 0.9, "max_new_tokens": 7, "seed": 3}
    settings = ThoughtSettings(**always, repetition_penalty=penalty)
    assert settings.sampling() == {**always, **kept}


def test_so_are_the_place_of_a_row_and_its_checksum():
    # What an earlier version has stored is found there, and not taken for damaged.
    assert (row_id(b"key"), row_id(b"key", 3)) == (3719748078902334269, 3719748078902334272)
    found = [_checksum(values) for values in ([], [b""], [b"ab", "é", 7], [b"a", "bé", 7])]
    assert found == [0, 0, 2844633926, 4280068630]


def test_a_key_depends_on_every_part():
    base = {"who": "a", "sampling": {"seed": 0, "top_p": 0.9}, "query": "q", "ids": [1, 23]}
    changes = [
        {"who": "b"}, {"who": None}, {"sampling": {"seed": 1, "top_p": 0.9}}, {"query": "q "}, {"query": "Q"},
        {"ids": [12, 3]}, {"ids": []}, {"ids": "[1,23]"}, {"extra": None},
    ]  # fmt: skip
    assert len({cache_key(**base), *(cache_key(**{**base, **change}) for change in changes)}) == 10
    assert cache_key(a="b", c="") != cache_key(a="", c="b")
    assert cache_key(x="\ud800") != cache_key(x="\\ud800")


@pytest.mark.parametrize("part", [float("nan"), float("inf"), {1, 2}, b"bytes", np.float32(1)])
def test_what_json_does_not_have_makes_no_key(part):
    with pytest.raises((TypeError, ValueError)):
        cache_key(part=part)


# What comes back -------------------------------------------------------------------------------------

texts = st.text(st.characters(codec=None), max_size=200) | st.sampled_from(
    ["", "\x00a\x00", "\ud800", "\ufeff"]
)
int32s = st.integers(-(2**31), 2**31 - 1)
thoughts = st.builds(
    Thought,
    text=texts,
    token_ids=st.lists(int32s, max_size=40).map(tuple),
    finish=st.sampled_from(["eos", "length", "recorded"]),
    prompt_tokens=st.integers(0, 2**40),
    completion_tokens=st.integers(0, 2**40),
)


@EXAMPLES
@given(st.dictionaries(st.tuples(st.binary(max_size=30), st.integers(0, 5)), thoughts, max_size=8))
def test_thoughts_come_back_as_they_were(cache, stored):
    cache.put_thoughts((key, index, item) for (key, index), item in stored.items())
    asked = [key for key, _ in stored] + [b"never stored \xff"]
    for key, found in zip(asked, cache.get_thoughts(asked, 6), strict=True):
        expected = {index: item for (other, index), item in stored.items() if other == key}
        assert {index: found[index] for index in expected} == expected
        assert all(item.cached for item in found.values())
        assert all(type(i) is int for item in found.values() for i in item.token_ids)
    assert found == {}


@EXAMPLES
@given(st.dictionaries(st.binary(max_size=30), st.binary(max_size=400), max_size=6))
def test_vectors_come_back_bit_for_bit(cache, stored):
    given_ = {key: np.frombuffer(raw[: len(raw) // 4 * 4], dtype="<f4") for key, raw in stored.items()}
    cache.put_vectors(given_.items())
    for key, found in zip(given_, cache.get_vectors(list(given_)), strict=True):
        assert found.dtype == np.float32
        assert found.tobytes() == given_[key].tobytes()
    assert cache.get_vectors([b"never stored \xff"]) == [None]


def test_huge_entries_come_back(cache):
    long = thought("ß😀" * 2_000_000)
    wide = vector(1, 3_000_000)
    cache.put_thoughts([(b"k", 0, long)])
    cache.put_vectors([(b"k", wide)])
    assert cache.get_thoughts([b"k"], 1) == [{0: long}]
    np.testing.assert_array_equal(cache.get_vectors([b"k"])[0], wide)


def test_vectors_are_float32_whatever_their_layout_was_and_the_callers_own(cache):
    source = np.arange(20, dtype=np.float64)[::2]
    cache.put_vectors([(b"k", source), (b"big-endian", source.astype(">f4"))])
    first, second, other = cache.get_vectors([b"k", b"k", b"big-endian"])
    np.testing.assert_array_equal(first, source)
    np.testing.assert_array_equal(other, source)
    first[0] = 77
    assert second[0] == 0
    assert cache.get_vectors([b"k"])[0][0] == 0


@pytest.mark.parametrize("wrong", [np.zeros((2, 3), np.float32), np.float32(1)])
def test_a_vector_of_another_shape_is_refused(cache, wrong):
    with pytest.raises(CacheError, match=r"expected \(dimension,\)"):
        cache.put_vectors([(b"k", wrong)])


def test_token_ids_beyond_32_bits_are_refused(cache):
    with pytest.raises(CacheError, match="32 bits"):
        cache.put_thoughts([(b"k", 0, Thought(text="x", token_ids=(2**31,)))])


def test_more_thoughts_reuse_the_fewer(cache):
    cache.put_thoughts([(b"q", 0, thought("first"))])
    assert cache.get_thoughts([b"q"], 3) == [{0: thought("first")}]
    cache.put_thoughts([(b"q", 1, thought("second")), (b"q", 2, thought("third"))])
    assert list(cache.get_thoughts([b"q"], 3)[0]) == [0, 1, 2]
    assert cache.get_thoughts([b"q"], 2)[0].keys() == {0, 1}
    assert cache.get_thoughts([b"q"], 0) == [{}]


def test_a_batch_may_repeat_keys_and_be_larger_than_a_statement(cache):
    many = keys(2500)
    cache.put_thoughts((key, i, thought(f"{n}.{i}")) for n, key in enumerate(many) for i in range(2))
    cache.put_vectors((key, vector(n, 4)) for n, key in enumerate(many))
    asked = [*many, many[7], b"unknown", many[7]]
    found, vectors = cache.get_thoughts(asked, 2), cache.get_vectors(asked)
    assert [item[1].text for item in found[:2500]] == [f"{n}.1" for n in range(2500)]
    assert found[2500] == found[7] == found[2502]
    assert found[2501] == {}
    assert vectors[2501] is None
    np.testing.assert_array_equal(np.stack(vectors[:2500]), np.stack([vector(n, 4) for n in range(2500)]))
    found[2500].clear()
    assert found[7]
    assert found[2502]


def test_empty_batches_are_fine(cache):
    cache.put_thoughts([])
    cache.put_vectors(iter(()))
    assert cache.get_thoughts([], 3) == []
    assert cache.get_vectors([]) == []


def test_putting_again_replaces(cache):
    for text in ("old", "new and longer"):
        cache.put_thoughts([(b"q", 0, thought(text))])
        cache.put_vectors([(b"q", vector(len(text)))])
    assert cache.get_thoughts([b"q"], 1)[0][0].text == "new and longer"
    np.testing.assert_array_equal(cache.get_vectors([b"q"])[0], vector(14))
    info = cache.info()
    assert (info.thoughts, info.vectors) == (1, 1)


def test_failed_and_cut_thoughts_are_not_kept(cache):
    cut = thought("half a tho")
    object.__setattr__(cut, "finish", "budget")
    cache.put_thoughts([(b"q", 0, Thought.failure("timeout")), (b"q", 1, thought("good")), (b"q", 2, cut)])
    assert cache.get_thoughts([b"q"], 3) == [{1: thought("good")}]
    assert cache.info().thoughts == 1


def test_keys_that_share_a_place_never_answer_for_each_other(cache):
    cache.put_thoughts([(b"stored", 0, thought())])
    cache.put_vectors([(b"stored", vector(1))])
    cache.close()
    for table in ("thoughts", "vectors"):
        execute(cache.path, f"UPDATE {table} SET id = {row_id(b'asked')}")
    with ThoughtCache(cache.path) as again:
        assert again.get_thoughts([b"asked", b"stored"], 1) == [{}, {}]
        assert again.get_vectors([b"asked", b"stored"]) == [None, None]
    assert not list(cache.path.glob("*corrupt*"))


def test_what_is_kept_outlives_the_cache_and_is_raw(tmp_path):
    with ThoughtCache(tmp_path) as cache:
        cache.put_thoughts([(b"q", 1, Thought(text="né\x00", token_ids=(1, -2), finish="length"))])
        cache.put_vectors([(b"q", np.array([1.5, -0.0], np.float32))])
    assert not list(tmp_path.glob("*-wal"))
    columns = "key, idx, finish, text, token_ids"
    assert rows(tmp_path, f"SELECT {columns} FROM thoughts") == [
        (b"q", 1, "length", "né\x00".encode(), struct.pack("<2i", 1, -2))
    ]
    assert rows(tmp_path, "SELECT key, data FROM vectors") == [(b"q", struct.pack("<2f", 1.5, -0.0))]
    with ThoughtCache(tmp_path) as cache:
        assert cache.get_thoughts([b"q"], 2)[0][1].text == "né\x00"
        assert cache.get_vectors([b"q"])[0].tolist() == [1.5, 0.0]


def test_a_hit_writes_nothing(cache):
    cache.put_thoughts([(b"q", 0, thought())])
    watcher = sqlite3.connect(cache.path / FILE)
    (before,) = watcher.execute("PRAGMA data_version").fetchone()
    for _ in range(50):
        assert cache.get_thoughts([b"q"], 1)[0]
    assert watcher.execute("PRAGMA data_version").fetchone() == (before,)
    cache.flush()
    assert watcher.execute("PRAGMA data_version").fetchone() != (before,)
    watcher.close()


# Looking and clearing --------------------------------------------------------------------------------


def test_info_says_what_is_there(cache):
    empty = cache.info()
    assert (empty.thoughts, empty.vectors, empty.bytes, empty.path) == (0, 0, 0, cache.path)
    cache.put_thoughts([(b"q", i, thought()) for i in range(3)])
    cache.put_vectors([(b"q", vector(1))])
    info = cache.info()
    assert (info.thoughts, info.vectors, info.max_bytes) == (3, 1, 1 << 30)
    assert 384 * 4 < info.bytes < 6000
    assert info.file_bytes > info.bytes
    assert json.loads(json.dumps(info.to_dict()))["path"] == str(cache.path)


def test_clear_forgets_and_gives_the_space_back(cache):
    cache.put_thoughts((key, 0, thought("secret words")) for key in keys(2000))
    cache.get_thoughts(keys(5), 1)
    (cache.path / f"{FILE}.corrupt-20200101T000000.000000").write_bytes(b"secret words")
    (cache.path / "notes.txt").write_text("mine")
    other = ThoughtCache(cache.path)
    assert other.get_thoughts(keys(1), 1)[0]
    cache.clear()
    assert (cache.info().thoughts, cache.info().bytes) == (0, 0)
    assert cache.info().file_bytes < 200_000
    assert other.get_thoughts(keys(1), 1) == [{}]
    other.put_thoughts([(b"q", 0, thought())])
    assert cache.get_thoughts([b"q"], 1)[0]
    other.close()
    cache.close()
    assert b"secret words" not in b"".join(file.read_bytes() for file in cache.path.iterdir())
    assert (cache.path / "notes.txt").exists()


def test_a_closed_cache_says_so(cache):
    cache.close()
    cache.close()
    calls = [
        lambda: cache.get_thoughts([b"q"], 1), lambda: cache.get_vectors([b"q"]), cache.info, cache.clear,
        lambda: cache.put_thoughts([(b"q", 0, thought())]), lambda: cache.put_vectors([(b"q", vector(1))]),
        cache.flush,
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(CacheError, match="closed"):
            call()
