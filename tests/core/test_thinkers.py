from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from o1_retriever.errors import InputError, SettingsError, ThinkerError
from o1_retriever.query import as_queries
from o1_retriever.thinkers import CallableThinker, OpenAIThinker, RecordedThinker, Thinker, as_thinker
from o1_retriever.thought import Thought, ThoughtSettings

SETTINGS = ThoughtSettings()


def texts(rows):
    return [[thought.text for thought in row] for row in rows]


@pytest.fixture
def record(tmp_path):
    """Writes lines (strings as they are, the rest as JSON) and returns the path of the file."""

    def write(*lines, name="thoughts.jsonl"):
        path = tmp_path / name
        written = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        path.write_text("".join(line + "\n" for line in written), encoding="utf-8")
        return path

    return write


# ---- recorded


def test_recorded_thoughts_are_read_in_every_known_form(record):
    path = record(
        {"_id": "1", "text": "why?", "thoughts": ["a", "b", "c"]},
        "",
        {"query": "how?", "all_thought": ["x", "y"], "thought": "y", "pos": ["p"]},
        {"query": "who?", "thought": "only"},
        {"query": "none?", "pos": ["p"]},
    )
    thinker = as_thinker(path)
    assert isinstance(thinker, Thinker)
    assert len(thinker) == 4
    rows = thinker.think(as_queries(["how?", "why?"]), settings=SETTINGS.with_changes(n_thoughts=2))
    assert texts(rows) == [["y", "x"], ["a", "b"]]
    assert {thought.finish for row in rows for thought in row} == {"recorded"}
    assert texts(
        thinker.think(as_queries(["why?"]), settings=SETTINGS.with_changes(n_thoughts=3), start=1)
    ) == [["b", "c"]]
    assert texts(thinker.think(as_queries([" who? \n"]), settings=SETTINGS.with_changes(n_thoughts=1))) == [
        ["only"]
    ]


def test_what_is_not_recorded_is_a_failure_with_its_reason(record):
    thinker = as_thinker(
        str(
            record(
                {"text": "why?", "thoughts": ["a", None, ""]},
                {"text": "bare?"},
                {"text": "odd?", "thoughts": ["\ud800"]},
            )
        )
    )
    (row,) = thinker.think(as_queries(["why?"]), settings=SETTINGS.with_changes(n_thoughts=5))
    assert [thought.failed for thought in row] == [False, True, True, True, True]
    assert "recorded that this thought could not be written" in row[1].error
    assert "empty" in row[2].error
    assert "Found 3 thoughts recorded for this query; expected 5 or more" in row[4].error
    assert thinker.think(as_queries(["why?"]), settings=SETTINGS.with_changes(n_thoughts=4))[0] == row[:4]
    unknown, bare, odd = (
        row[0]
        for row in thinker.think(
            as_queries(["what?", "bare?", "odd?"]), settings=SETTINGS.with_changes(n_thoughts=1)
        )
    )
    assert "not recorded in" in unknown.error
    assert "Found no thought recorded" in bare.error
    assert "lone surrogate" in odd.error


def test_a_query_on_several_lines_has_all_their_thoughts_once(record):
    path = record({"text": "q", "thoughts": ["a", "b"]}, {"text": "q", "thoughts": ["b", "c"]})
    assert texts(as_thinker(path).think(as_queries(["q"]), settings=SETTINGS.with_changes(n_thoughts=3))) == [
        ["a", "b", "c"]
    ]


def test_a_compressed_file_and_a_byte_order_mark_are_read(tmp_path):
    line = json.dumps({"text": "q", "thoughts": ["a"]})
    packed, marked = tmp_path / "t.jsonl.gz", tmp_path / "t.jsonl"
    packed.write_bytes(gzip.compress(line.encode()))
    marked.write_text(line, encoding="utf-8-sig")
    assert as_thinker(packed).identity == as_thinker(marked).identity


def test_identity_is_what_is_recorded_not_where(record):
    first = as_thinker(record({"text": "q", "thoughts": ["a"]}, name="one.jsonl"))
    again = RecordedThinker({"q": ["a"]})
    other = as_thinker(record({"text": "q", "thoughts": ["b"]}, name="two.jsonl"))
    assert first.identity == again.identity != other.identity


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'text': 'q'}", "line 2 is not JSON"),
        ('{"text": "q", "thoughts": ["a"', "line 2 is not JSON"),
        ('["q"]', "line 2 is a list"),
        ('{"thoughts": ["a"]}', "line 2: `text` or `query` is None"),
        ('{"text": " ", "thoughts": ["a"]}', "line 2: `text` or `query`"),
        ('{"text": "q", "thoughts": "a"}', "line 2: the thoughts are 'a'"),
        ('{"text": "q", "thoughts": [1]}', "line 2: the thoughts are"),
        ('{"text": "q", "thought": ["a"]}', "line 2: the thoughts are"),
    ],
)
def test_a_bad_line_is_named(record, line, message):
    path = record({"text": "fine", "thoughts": ["a"]}, line)
    with pytest.raises(ThinkerError, match=message) as caught:
        as_thinker(path)
    assert path.name in str(caught.value)


def test_a_file_that_cannot_be_used_is_an_error(record, tmp_path):
    with pytest.raises(ThinkerError, match="no file"):
        as_thinker(tmp_path / "missing.jsonl")
    with pytest.raises(ThinkerError, match="no thoughts"):
        as_thinker(record({"text": "q"}))
    with pytest.raises(ThinkerError, match="0 queries and no thoughts"):
        as_thinker(record(name="empty.jsonl"))
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes(b'{"text": "caf\xe9", "thoughts": ["a"]}')
    with pytest.raises(ThinkerError, match="not UTF-8"):
        as_thinker(latin)
    folder = tmp_path / "folder.jsonl"
    folder.mkdir()
    with pytest.raises(ThinkerError, match="cannot be read"):
        as_thinker(folder)
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(b'{"text": "q", "thoughts": ["a"]}')[:-9])
    with pytest.raises(ThinkerError, match="cannot be read"):
        as_thinker(cut)
    fake = tmp_path / "fake.jsonl.gz"
    fake.write_text("not packed")
    with pytest.raises(ThinkerError, match="cannot be read"):
        as_thinker(fake)


def test_a_mapping_is_checked():
    with pytest.raises(ThinkerError, match="'q' is 'a string'"):
        RecordedThinker({"q": "a string"})
    assert texts(
        as_thinker({"q": ("a", "b")}).think(as_queries(["q"]), settings=SETTINGS.with_changes(n_thoughts=2))
    ) == [["a", "b"]]


usable = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@given(
    st.dictionaries(
        usable.map(str.strip), st.lists(usable, min_size=1, max_size=4, unique=True), min_size=1, max_size=5
    )
)
def test_every_text_survives_the_file(tmp_path_factory, mapping):
    path = tmp_path_factory.mktemp("recorded") / "t.jsonl"
    lines = [
        json.dumps({"text": query, "thoughts": thoughts}, ensure_ascii=False)
        for query, thoughts in mapping.items()
    ]
    path.write_text("\n".join(lines), encoding="utf-8", newline="")
    thinker = RecordedThinker(path)
    for query, thoughts in mapping.items():
        assert texts(
            thinker.think(as_queries([query]), settings=SETTINGS.with_changes(n_thoughts=len(thoughts)))
        ) == [thoughts]


def test_the_recorded_thoughts_of_the_expert_are_read(root):
    folder = Path(root).parent / "shared" / "data" / "expert_thoughts"
    if not folder.is_dir():
        pytest.skip("The shared data is not here.")
    thinker = RecordedThinker(folder / "scifact.test.jsonl")
    (row,) = thinker.think(
        as_queries(["0-dimensional biomaterials show inductive properties."]),
        settings=SETTINGS.with_changes(n_thoughts=3),
    )
    assert len(thinker) == 300
    assert all(thought.finish == "recorded" and len(thought.text) > 100 for thought in row)


# ---- callables


def numbered(queries, k):
    return [[f"{query} {index}" for index in range(k)] for query in queries]


def test_a_function_thinks():
    thinker = as_thinker(numbered)
    assert isinstance(thinker, Thinker)
    assert texts(thinker.think(as_queries(["a", "b"]), settings=SETTINGS.with_changes(n_thoughts=2))) == [
        ["a 0", "a 1"],
        ["b 0", "b 1"],
    ]
    assert texts(thinker.think(as_queries(["b"]), settings=SETTINGS.with_changes(n_thoughts=3), start=1)) == [
        ["b 1", "b 2"]
    ]
    assert thinker.think(as_queries([]), settings=SETTINGS.with_changes(n_thoughts=3)) == []
    assert thinker.think(as_queries(["a"]), settings=SETTINGS.with_changes(n_thoughts=3), start=3) == [[]]
    assert thinker.identity is None
    assert "mine" in CallableThinker(numbered, name="mine").identity


def test_a_function_is_not_called_for_nothing():
    def explode(queries, k):
        raise AssertionError

    assert CallableThinker(explode).think(as_queries([]), settings=SETTINGS.with_changes(n_thoughts=3)) == []
    assert CallableThinker(explode).think(
        as_queries(["a"]), settings=SETTINGS.with_changes(n_thoughts=1), start=1
    ) == [[]]


def test_what_a_function_could_not_think_is_a_failure():
    mine = Thought(text="mine", completion_tokens=4)
    (row,) = as_thinker(lambda queries, k: [[None, "", "  ", "\ud800", mine, "good"]]).think(
        as_queries(["a"]), settings=SETTINGS.with_changes(n_thoughts=6)
    )
    assert [thought.failed for thought in row] == [True] * 4 + [False] * 2
    assert all(thought.error for thought in row[:4])
    assert row[4] is mine
    assert row[5].finish == "eos"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "NoneType; expected a list for 2 queries"),
        ("ab", "str; expected a list for 2 queries"),
        ({"a": ["1"], "b": ["2"]}, "dict; expected a list for 2 queries"),
        ([["x"]], "list of 1; expected 2, one for each query"),
        (["x", "y"], "for query 0 a str; expected a list for 1 thought"),
        ([["x"], []], "for query 1 a list of 0; expected 1"),
        ([["x"], ["y", "z"]], "for query 1 a list of 2; expected 1"),
        ([["x"], [3]], "a int as a thought about query 1"),
    ],
)
def test_a_function_that_returns_something_else_is_an_error(answer, message):
    with pytest.raises(ThinkerError, match=message):
        as_thinker(lambda queries, k: answer).think(
            as_queries(["a", "b"]), settings=SETTINGS.with_changes(n_thoughts=1)
        )


def test_an_exception_of_the_function_is_named_and_kept():
    def broken(queries, k):
        raise ZeroDivisionError("by zero")

    with pytest.raises(ThinkerError, match=r"broken.*ZeroDivisionError: by zero") as caught:
        as_thinker(broken).think(as_queries(["a"]), settings=SETTINGS.with_changes(n_thoughts=1))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_function_cannot_spoil_the_queries():
    def greedy(queries, k):
        rows = numbered(queries, k)
        queries.clear()
        return rows

    assert (
        len(as_thinker(greedy).think(as_queries(["a", "b"]), settings=SETTINGS.with_changes(n_thoughts=1)))
        == 2
    )


# ---- all of them


@pytest.mark.parametrize(
    "thinker",
    [
        RecordedThinker({"a": ["x"]}),
        CallableThinker(numbered),
        OpenAIThinker("m", base_url="http://127.0.0.1:9/v1"),
    ],
)
@pytest.mark.parametrize("bad", ["", " \n", None, 3, "\ud800"])
def test_a_bad_query_is_named_by_its_position(thinker, bad):
    with pytest.raises(InputError) as caught:
        thinker.think(as_queries(["fine", bad]), settings=SETTINGS.with_changes(n_thoughts=1))
    assert caught.value.position == 1


@pytest.mark.parametrize("value", [3, CallableThinker, ["a"]])
def test_anything_else_is_no_thinker(value):
    with pytest.raises(SettingsError, match="thinker is"):
        as_thinker(value)


def test_a_coroutine_function_is_no_thinker():
    async def think(queries, k):
        return numbered(queries, k)

    with pytest.raises(SettingsError, match="synchronous"):
        as_thinker(think)


def test_a_thinker_that_loads_a_model_for_its_identity_is_not_asked_for_it():
    class Late:
        @property
        def identity(self):
            raise AssertionError("asked before anything was thought about")

        def think(self, queries, *, settings, start=0):
            return [[Thought(text="so")] * (settings.n_thoughts - start) for _ in queries]

    late = Late()
    assert as_thinker(late) is late


def test_a_thinker_passes_through():
    thinker = RecordedThinker({"a": ["x"]})
    assert as_thinker(thinker) is thinker
