"""Filters: the same answer as plain Python, in every kind of search, and a clear word on wrong ones."""

from __future__ import annotations

import datetime
import decimal
import enum
import logging
import random

import numpy as np
import pytest
from hypothesis import example, given, settings

from o1_retriever.documents import Document
from o1_retriever.errors import FilterError, InputError
from o1_retriever.index.filters import DEEPEST, Every, Filter, as_filter, weaker
from o1_retriever.index.filters import passes as passes_one
from o1_retriever.index.index import Index
from tests.support.filters import filters, passes, random_filter, random_metadata
from tests.support.index_worker import TinyEmbedder, vectors

QUERY = vectors(TinyEmbedder(), "text 1")


def documents(metadata):
    return [
        Document(id=f"d{number:03d}", text=f"text {number}", metadata=each)
        for number, each in enumerate(metadata)
    ]


@pytest.fixture(scope="module")
def random_index(tmp_path_factory):
    """160 documents of random metadata, of which half were something else before, and some were deleted."""
    every = documents(random_metadata(0, 160))
    with Index(tmp_path_factory.mktemp("random"), TinyEmbedder()) as index:
        index.add(documents(random_metadata(1, 200)))
        index.delete([f"d{number:03d}" for number in range(130, 200)])
        index.add(every)
        yield index, every


# The numbers of all types that mean the same, and who wrote them.
MIXED = [
    {"n": value, "who": f"u{n}"} for n, value in enumerate([1, 2, 2.0, 2.5, 3, 3.0, True, "2", [2, "x"], []])
]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    with Index(tmp_path_factory.mktemp("mixed"), TinyEmbedder()) as index:
        index.add(documents(MIXED))
        index.add([Document(id="none", text="no metadata")])
        yield index


def numbers(index, where):
    return [int(name[1:]) if name != "none" else None for name in index.ids(where)]


def answers_as_plain_python(random_index, where):
    index, every = random_index
    expected = [each.id for each in every if passes(where, each.metadata)]
    assert index.ids(where) == expected, where
    return expected


@settings(max_examples=200)
@given(where=filters())
def test_a_filter_answers_as_plain_python_does(random_index, where):
    answers_as_plain_python(random_index, where)


@pytest.mark.long
def test_ten_thousand_filters_answer_as_plain_python_does(random_index):
    draw = random.Random(0)
    for _ in range(10_000):
        answers_as_plain_python(random_index, random_filter(draw))


@settings(max_examples=30)
@given(where=filters())
def test_every_kind_of_search_obeys_the_same_filter(random_index, where):
    index, _ = random_index
    expected = answers_as_plain_python(random_index, where)
    (dense,) = index.search(QUERY, k=200, where=where)
    assert sorted(hit.id for hit in dense) == expected
    (hybrid,) = index.search_groups([QUERY], texts=["text 1 2 3"], k=200, where=where)
    assert sorted(hit.id for hit in hybrid) == expected
    (words,) = index.search_groups([QUERY], texts=["text"], k=200, where=where)
    assert [each.lexical_rank for each in words].count(None) == 0, "all texts have the word"
    assert sorted(hit.id for hit in words) == expected
    assert [each.id for each in index.documents(where)] == expected
    assert index.ids(as_filter(where)) == expected, "a filter that has been read is one, too"


DOCUMENTS = random_metadata(3, 40)


@given(where=filters())
@example(where={"a": {"$any": []}})
def test_one_document_passes_as_plain_python_says(where):
    """What stores are asked for that know less than this grammar is looked at document by document."""
    part = as_filter(where).part if as_filter(where) else Every()
    expected = [passes(where, metadata) for metadata in DOCUMENTS]
    assert [passes_one(part, metadata) for metadata in DOCUMENTS] == expected
    for allowed in (("in",), ("gt", "gte", "lt", "lte", "in"), ("contains", "exists")):
        less = weaker(part, lambda condition, allowed=allowed: condition.test in allowed)
        for metadata, good in zip(DOCUMENTS, expected, strict=True):
            assert not good or less is None or passes_one(less, metadata)
    assert weaker(part, lambda condition: False) is None


class Year(enum.IntEnum):
    two = 2


class Name(enum.StrEnum):
    one = "u1"


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (None, [*range(10), None]),
        ({}, [*range(10), None]),
        ({"n": 2}, [1, 2]),
        ({"n": 2.0}, [1, 2]),
        ({"n": {"$in": [2, 2.5]}}, [1, 2, 3]),
        ({"n": {"$in": (2.5, 3)}}, [3, 4, 5]),
        ({"n": {"$in": {2.5}}}, [3]),
        ({"n": {"$in": np.array([3, 9])}}, [4, 5]),
        ({"n": {"$in": (each for each in "12")}}, [7]),
        ({"n": {"$in": []}}, []),
        ({"n": {"$nin": []}}, [*range(10), None]),
        ({"n": {"$nin": [1, 2, 3, "2"]}}, [3, 8, 9, None]),
        ({"n": {"$ne": 2}}, [0, 3, 4, 5, 6, 7, 8, 9, None]),
        ({"n": {"$ne": 2, "$exists": True}}, [0, 3, 4, 5, 6, 7, 8, 9]),
        ({"n": True}, [0, 6]),
        ({"n": {"$gte": 2, "$lt": 3}}, [1, 2, 3]),
        ({"n": {"$lt": 3}, "who": {"$gt": "u1"}}, [2, 3, 6]),
        ({"n": {"$gte": "2"}}, [7]),
        ({"n": {"$lt": float("inf")}}, [0, 1, 2, 3, 4, 5, 6]),
        ({"$and": [{"n": 1}]}, [0, 6]),
        ({"$or": [{"n": 1}]}, [0, 6]),
        ({"$or": [{"n": 2.5}, {"$not": {"n": {"$exists": True}}}]}, [3, None]),
        ({"n": {"$not": {"$gte": 2}}}, [0, 6, 7, 8, 9, None]),
        ({"$not": {}}, []),
        ({"who": {"$exists": False}}, [None]),
        ({"#n": {"$exists": False}}, [*range(10), None]),
        ({"n": {"$empty": True}}, [9, None]),
        ({"n": {"$contains": "x"}}, [8]),
        ({"n": {"$any": [2, 5]}}, [8]),
        ({"n": {"$all": [2, "x"]}}, [8]),
        ({"n": {"$all": ["y", "x"]}}, []),
        ({"who": {"$icontains": "U1"}}, [1]),
        ({"n": np.int64(2)}, [1, 2]),
        ({"n": np.float32(2.5)}, [3]),
        ({"n": decimal.Decimal("2.50")}, [3]),
        ({"n": {"$lt": decimal.Decimal("Infinity")}}, [0, 1, 2, 3, 4, 5, 6]),
        ({"n": Year.two}, [1, 2]),
        ({"n": np.bool_(True)}, [0, 6]),
        ({"who": Name.one}, [1]),
        ({"who": np.str_("u1")}, [1]),
        ({"who": {"$in": [f"u{n}" for n in range(1, 40_000)]}}, [*range(1, 10)]),
        ({"who": {"$nin": [f"u{n}" for n in range(1, 40_000)]}}, [0, None]),
        ({"$or": [{"who": f"u{n}"} for n in range(1, 3000)]}, [*range(1, 10)]),
    ],
)
def test_what_a_filter_means(mixed, where, expected):
    chosen = as_filter(where)
    assert numbers(mixed, chosen) == expected
    part = chosen.part if chosen else Every()
    found = [number for number, metadata in enumerate(MIXED) if passes_one(part, metadata)]
    assert found + [None] * passes_one(part, {}) == expected


def nested(depth, inside, wrap):
    for _ in range(depth):
        inside = wrap(inside)
    return inside


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: {"$not": x},
        lambda x: {"$and": [x]},
        lambda x: {"$or": [x]},
        lambda x: {"$not": {"$and": [x]}},
    ],
)
def test_a_filter_may_be_as_deep_as_said_and_no_deeper(wrap):
    each = 2 if wrap({}) == {"$not": {"$and": [{}]}} else 1
    assert as_filter(nested(DEEPEST // each, {"n": 1}, wrap))
    with pytest.raises(FilterError, match=f"nesting of more than {DEEPEST} levels"):
        as_filter(nested(DEEPEST // each, {"$not": {"n": 1}}, wrap))
    assert as_filter({"n": nested(DEEPEST, {"$gte": 1}, lambda x: {"$not": x})})
    with pytest.raises(FilterError, match=f"nesting of more than {DEEPEST} levels"):
        as_filter({"n": nested(DEEPEST + 1, {"$gte": 1}, lambda x: {"$not": x})})


def test_what_is_asked_of_a_store_has_no_needless_parts():
    one, two = as_filter({"a": 1}).part, as_filter({"b": {"$gt": 1}}).part
    both = as_filter({"a": 1, "b": {"$gt": 1}}).part
    assert both == Every((one, two))
    assert weaker(both, lambda condition: True) == both
    assert weaker(both, lambda condition: condition.test == "in") == one
    assert weaker(both, lambda condition: condition.test == "gt") == two


def test_dates_are_compared_as_their_iso_form(tmp_path):
    days = [datetime.date(2023, 12, 31), datetime.date(2024, 5, 1), "2024-05-02", "2025"]
    with Index(tmp_path, TinyEmbedder()) as index:
        index.add(documents([{"day": day} for day in days]))
        assert index.get(["d000"])[0].metadata == {"day": "2023-12-31"}
        for first in (datetime.date(2024, 1, 1), "2024-01-01", np.datetime64("2024-01-01"), "2024"):
            assert numbers(index, {"day": {"$gte": first, "$lt": "2025"}}) == [1, 2]
        moment = np.datetime64("2024-05-01T00:00:00.000000001")
        assert numbers(index, {"day": {"$gt": moment, "$lt": datetime.datetime(2024, 6, 1)}}) == [2]


DEEP: dict[str, object] = {"a": 1}
for _ in range(20_000):
    DEEP = {"$not": DEEP}


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("n=2", r"found 'n=2' \(str\); expected a dict"),
        ([("n", 2)], "expected a dict"),
        ({"n": None}, r"at n found None .* write {'\$exists': False}"),
        ({"n": [1, 2]}, r"at n found \[1, 2\] \(list\).* write {'\$in': \[\.\.\.\]}"),
        ({"n": {}}, "at n found an empty dict; expected a value"),
        ({"n": {"x": 1}}, r"at n found the operator 'x'; expected one of \$eq, \$ne"),
        ({"n": {"$nonsense": 1}}, r"found the operator '\$nonsense'"),
        ({"$nin": {}}, r"found the key '\$nin'; expected the name of a field"),
        ({"$nonsense": 1}, r"found the key '\$nonsense'; expected the name of a field, \$and"),
        ({1: 2}, r"found the key 1 \(int\); expected the name of a field"),
        ({"$and": []}, r"at \$and found an empty list; expected a list of filters"),
        ({"$or": {"a": 1}}, r"at \$or found .* expected a list of filters"),
        ({"$or": [{"a": 1}, {"b": {"$lt": None}}]}, r"at \$or\[1\].b.\$lt found None"),
        ({"n": {"$in": "abc"}}, r"at n.\$in found 'abc' \(str\); expected a list of values"),
        ({"n": {"$in": [1, None]}}, r"at n.\$in found None"),
        ({"n": {"$in": np.array(1)}}, "expected a list of values"),
        ({"n": {"$all": []}}, r"at n.\$all found an empty list"),
        ({"n": {"$gte": True}}, r"at n.\$gte found True \(bool\); expected a number"),
        ({"n": float("nan")}, r"at n found nan \(float\); expected a number that is not NaN"),
        ({"n": {"$lt": np.float32("nan")}}, "not NaN"),
        ({"n": {"$in": [1.0, decimal.Decimal("NaN")]}}, "not NaN"),
        ({"n": 2**63}, r"found 9223372036854775808 \(int\); expected .* a number of 64 bits"),
        ({"n": np.datetime64("NaT")}, "at n found"),
        ({"n": "\ud800"}, r"at n found '\\ud800' \(str\); expected a string without lone surrogates"),
        ({"\ud800": 1}, "lone surrogates"),
        ({"n": {"$in": ["a", "\ud800"]}}, "lone surrogates"),
        ({"n": b"x"}, r"\(bytes\)"),
        ({"n": {"$exists": 1}}, "expected True or False"),
        ({"n": {"$icontains": 1}}, "expected a string"),
        (DEEP, f"nesting of more than {DEEPEST} levels"),
    ],
    ids=lambda value: repr(value)[:40] if value is not DEEP else "deep",
)
def test_a_filter_that_is_wrong_says_where_and_what(mixed, where, message, caplog):
    with caplog.at_level(logging.WARNING):
        for call in (mixed.ids, mixed.documents, lambda where: mixed.search(QUERY, where=where)):
            with pytest.raises(FilterError, match=message) as caught:
                call(where)
            assert "Write where=" in str(caught.value)
            assert len(str(caught.value)) < 700
    assert not caplog.records, "nothing is built anew"


def test_a_field_that_no_document_has_is_named_once(mixed, caplog):
    asked = {"$or": [{"whom": "u1"}, {"$and": [{"n": 2}, {"m": {"$ne": 1}}, {"where": 1}]}]}
    with caplog.at_level(logging.WARNING):
        assert [mixed.ids(asked), mixed.ids(asked), mixed.ids({"who": "nobody"})] == [[], [], []]
    assert [each.getMessage() for each in caplog.records] == [
        "No document has a field 'm' or 'where' or 'whom', which the filter asks for. Fields are: n, who."
    ]


def test_a_filter_can_be_read_once_and_used_often(mixed):
    chosen = as_filter({"n": {"$gte": 2}})
    assert isinstance(chosen, Filter)
    assert as_filter(chosen) is chosen
    assert mixed.ids(chosen) == mixed.ids({"n": {"$gte": 2}})
    assert as_filter({"$and": [{}]}) is None


@pytest.mark.parametrize("where", [{}, {"$and": [{}]}])
def test_a_filter_that_everything_passes_deletes_nothing(mixed, where):
    with pytest.raises(InputError, match="expected one of them"):
        mixed.delete(where=where)
    assert len(mixed) == 11


def test_of_many_filters_the_last_are_remembered(mixed):
    for number in range(300):
        assert numbers(mixed, {"n": 2, "who": {"$ne": f"nobody{number}"}}) == [1, 2]
    assert len(mixed._matches._known) < 200


def test_what_matched_is_forgotten_when_a_document_changes(tmp_path):
    with Index(tmp_path, TinyEmbedder()) as index, Index(tmp_path, TinyEmbedder()) as other:
        index.add(documents([{"n": 1}, {"n": 2}]))
        assert numbers(index, {"n": 1}) == [0]
        other.add(documents([{"n": 2}, {"n": 1}, {"n": 1}]))
        assert numbers(index, {"n": 1}) == [1, 2]
        index.delete(where={"n": 1})
        assert numbers(other, {"n": {"$exists": True}}) == [0]
