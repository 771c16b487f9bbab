"""Explanations: what each thought finds, what thinking moves, and how that is shown."""

from __future__ import annotations

import html
import io
import json
import logging
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

from o1_retriever import Explanation, Index, Retriever, ThinkingEmbedder, ThoughtSettings
from o1_retriever.documents import Document
from o1_retriever.encoders import CallableEncoder
from o1_retriever.errors import InputError, SettingsError
from o1_retriever.guard import Gate
from o1_retriever.index.hits import Hit
from o1_retriever.search.explanation import Move, moves
from o1_retriever.thought import Thought

QUERY = "why?"
# By hand: without thinking the query points at a, then b, c, d; "steam" at c, "cold" at d, together c, d.
PLACES = {
    "a": (1.0, 0.0, 0.0),
    "b": (0.9, 0.3, 0.3),
    "c": (0.2, 1.0, 0.4),
    "d": (0.1, 0.4, 1.0),
    QUERY: (1.0, 0.1, 0.05),
    "steam": (0.1, 1.0, 0.1),
    "cold": (0.1, 0.3, 0.9),
}
NASTY = "<script>alert('x')</script> & \"<b>\" \x1b[2J"


def by_hand(texts: list[str]) -> np.ndarray:
    """The place of the last known word of each text."""
    known = [next((word for word in reversed(text.split()) if word in PLACES), "b") for text in texts]
    return np.array([PLACES[word] for word in known], np.float32)


class Thinker:
    """Says what it was told to, and remembers what it was asked."""

    identity = None

    def __init__(self, *thoughts: Thought) -> None:
        self.thoughts = thoughts
        self.asked: list[str] = []

    def think(self, queries, *, settings, start=0):
        self.asked += [query.text for query in queries]
        return [list(self.thoughts[start : settings.n_thoughts]) for _ in queries]


def retriever_of(tmp_path, *thoughts: Thought, texts=None, **options) -> Retriever:
    encoder = CallableEncoder(by_hand, name="by-hand")
    settings = ThoughtSettings(n_thoughts=len(thoughts))
    embedder = ThinkingEmbedder.from_parts(Thinker(*thoughts), encoder, cache=False, settings=settings)
    index = Index(tmp_path / "index", embedder)
    named = texts or {name: f"the passage {name}" for name in "abcd"}
    index.add(
        Document(id=name, text=text, metadata={"title": f"Title {name}"}) for name, text in named.items()
    )
    return Retriever(embedder, index, **options)


def told(text: str, **more) -> Thought:
    return Thought(text=text, completion_tokens=3, **more)


@pytest.fixture
def retriever(tmp_path):
    return retriever_of(tmp_path, told("steam"), told("cold"))


def ids(hits) -> list[str]:
    return [hit.id for hit in hits]


def alike(hits, others) -> bool:
    """The same but for the last digits of the scores, which depend on what else is searched for."""
    return [replace(hit, score=round(hit.score, 5)) for hit in hits] == [
        replace(hit, score=round(hit.score, 5)) for hit in others
    ]


def shown(explanation: Explanation, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(explanation)
    return console.file.getvalue()


def test_what_thinking_moved_by_hand(retriever):
    found = retriever.explain(QUERY, k=2)
    assert [(thought.text, ids(hits)) for thought, hits in found.per_thought] == [
        ("steam", ["c", "d"]),
        ("cold", ["d", "c"]),
    ]
    assert ids(found.without) == ["a", "b"]
    assert ids(found.result) == ["c", "d"]
    assert [(move.hit.id, move.before, move.after, move.change, move.thoughts) for move in found.moves] == [
        ("c", 3, 1, "new", (1, 2)),
        ("d", 4, 2, "new", (1, 2)),
        ("a", 1, 4, "gone", ()),
        ("b", 2, 3, "gone", ()),
    ]
    assert found.verdict == "2 new, 2 gone."
    every = retriever.explain(QUERY, k=4)
    assert {move.hit.id: move.change for move in every.moves} == {
        "c": "up",
        "d": "up",
        "b": "down",
        "a": "down",
    }


def test_ranks_that_are_not_known_and_those_that_stay():
    def hit(name: str, rank: int) -> Hit:
        return Hit(id=name, text=name, score=0.5, rank=rank)

    after = [hit("x", 1), hit("y", 2), hit("z", 3)]
    before = [hit("x", 1), hit("w", 2), hit("y", 3)]
    found = moves(after, before, 2, [[hit("y", 1), hit("x", 2), hit("w", 3)]])
    assert [(move.hit.id, move.before, move.after, move.change, move.thoughts) for move in found] == [
        ("x", 1, 1, "same", (1,)),
        ("y", 3, 2, "new", (1,)),
        ("w", 2, None, "gone", ()),
    ]
    assert moves([], [], 3) == ()


@pytest.mark.parametrize("hybrid", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "best"])
@pytest.mark.parametrize("where", [None, {"title": {"$ne": "Title c"}}])
@pytest.mark.parametrize("depth", [2, 1000])
def test_it_is_the_result_of_the_search(retriever, hybrid, pooling, where, depth):
    options = {"hybrid": hybrid, "pooling": pooling, "depth": depth, "where": where, "k": 3}
    found = retriever.explain(QUERY, **options)
    plain = retriever.search(QUERY, **options)
    assert alike(found.result.hits, plain.hits)
    assert found.result.decision == plain.decision
    assert found.result.how == plain.how
    assert alike(found.without, retriever.search(QUERY, thinking="never", **options).hits)
    vectors = retriever.embedder.embed_query(QUERY).vectors
    for vector, (_, hits) in zip(vectors, found.per_thought, strict=True):
        if not hybrid:
            assert alike(hits, retriever.index.search(vector[None], k=3, where=where)[0])
        assert (hits[0].fused_score is not None) == hybrid
        assert where is None or "c" not in ids(hits)


def test_a_thought_by_itself_has_its_own_words_in_the_hybrid(tmp_path):
    texts = {"a": "the kettle a", "b": "steam b", "c": "tulips c", "d": "cold d"}
    retriever = retriever_of(tmp_path, told("steam"), told("cold"), texts=texts, hybrid=True)
    steam, cold = (
        dict(zip(ids(hits), hits, strict=True)) for _, hits in retriever.explain(QUERY).per_thought
    )
    assert (steam["b"].lexical_rank, steam["d"].lexical_rank) == (1, None)
    assert (cold["d"].lexical_rank, cold["b"].lexical_rank) == (1, None)


def test_nothing_is_thought_twice(retriever):
    retriever.explain(QUERY)
    assert retriever.embedder.backend.thinker.asked == [QUERY]


def test_never_moves_nothing_and_says_so(retriever):
    for found in (
        retriever.explain(QUERY, thinking="never"),
        retriever.explain(QUERY, settings=ThoughtSettings(thinking="never")),
    ):
        assert found.per_thought == ()
        assert found.moved == ()
        assert ids(found.result) == ids(found.without)
        assert found.verdict == "Nothing moved: the question was not thought about."
        assert found.timings.think_ms == 0
        for text in (str(found), found._repr_html_()):
            assert "Not thought about" in text
            assert found.verdict in html.unescape(text)
            assert "finds by itself" not in text
    assert retriever.embedder.backend.thinker.asked == []


def test_a_notebook_shows_an_explanation_once(retriever, monkeypatch, capsys):
    """In a notebook a console of rich shows what it prints, wherever that was to go."""
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    found = retriever.explain(QUERY)
    assert "What thinking moved" in found._repr_html_()
    assert "What thinking moved" in str(found)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("think", [True, False])
def test_auto_says_what_was_decided(tmp_path, think):
    texts = {f"d{n}": f"{'abcd'[n % 4]}" for n in range(12)}
    gate = Gate(threshold=-100.0 if think else 100.0)
    retriever = retriever_of(tmp_path, told("steam"), texts=texts, thinking="auto", gate=gate)
    found = retriever.explain(QUERY, k=3)
    assert alike(found.result.hits, retriever.search(QUERY, k=3).hits)
    assert found.result.decision.think == think == bool(found.per_thought)
    line = str(found).splitlines()[1]
    assert line.startswith("Thought about: " if think else "Not thought about: ")
    assert f"threshold {gate.threshold:.3f}" in line
    assert found.to_dict()["result"]["search"]["think"] == think


def test_a_failed_thought_is_shown_with_its_reason(tmp_path):
    retriever = retriever_of(tmp_path, Thought.failure("it was <busy>"), told("cold cold", finish="length"))
    found = retriever.explain(QUERY, k=2)
    assert [ids(hits) for _, hits in found.per_thought] == [[], ["d", "c"]]
    assert found.moves[0].thoughts == (2,)
    assert "1 failed: it was <busy>" in str(found)
    assert "cold … (cut after 3 tokens)" in str(found)
    assert "failed: it was &lt;busy&gt;" in found._repr_html_()


def test_no_thought_could_be_had(tmp_path, caplog):
    retriever = retriever_of(tmp_path, Thought.failure("busy"), Thought.failure("asleep"), hybrid=True)
    with caplog.at_level(logging.ERROR):
        found = retriever.explain(QUERY, k=2)
    assert found.moved == ()
    assert found.verdict == "Nothing moved: no thought could be written."
    assert "failed: asleep" in str(found)


def test_a_thought_whose_time_was_up_says_so(tmp_path):
    found = retriever_of(tmp_path, told("cold cold", finish="budget")).explain(QUERY)
    for text in (str(found), found._repr_html_()):
        assert "its time was up after 3 tokens" in text


def test_an_empty_index_and_a_filter_without_matches(retriever):
    found = retriever.explain(QUERY, where={"title": "nobody"})
    assert (found.moves, found.verdict) == ((), "Nothing moved: no passage matches.")
    assert "none: no passage matches" in str(found)
    assert "none: no passage matches" in found._repr_html_()


def test_what_cannot_be_is_refused_before_anybody_thinks(retriever):
    for options, error in (
        ({"k": 0}, SettingsError),
        ({"pooling": "max"}, SettingsError),
        ({"where": 1}, InputError),
    ):
        with pytest.raises(error):
            retriever.explain(QUERY, **options)
    with pytest.raises(InputError):
        retriever.explain(" ")
    assert retriever.embedder.backend.thinker.asked == []


def test_the_record_and_the_timings(retriever):
    found = retriever.explain(QUERY, k=2)
    record = found.to_dict()
    assert json.loads(json.dumps(record)) == record
    assert record["result"]["hits"] == found.result.to_dict()["hits"]
    assert record["moves"][0] == {"id": "c", "before": 3, "after": 1, "change": "new", "thoughts": [1, 2]}
    times = record["timings"]
    assert all(times[name] > 0 for name in ("think_ms", "embed_ms", "search_ms", "without_ms"))
    assert times["total_ms"] == pytest.approx(sum(times.values()) - times["total_ms"], abs=0.01)
    assert 0 < found.result.search_ms < found.timings.search_ms
    assert repr(found) == "Explanation(query='why?', thoughts=2, hits=2, moved=4)"


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_terminal_shows_all_of_it_within_its_width(retriever, width):
    found = retriever.explain(QUERY, k=2)
    text = shown(found, width)
    assert all(cell_len(line) <= width for line in text.splitlines())
    heads = [
        "why?",
        "Thought about",
        "Thoughts, and what",
        "steam",
        "cold",
        "Hits",
        "What thinking moved",
        "3",
    ]
    places = [text.index(part) for part in heads]
    assert places[:-1] == sorted(places[:-1])
    assert "without thinking: embed" in " ".join(text.split())
    assert "the passage c" in shown_full(found)


def shown_full(found: Explanation) -> str:
    console = Console(file=io.StringIO(), width=80)
    console.print(found.view(full=True))
    return console.file.getvalue()


class Reader(HTMLParser):
    """The tags, their attributes and the text; closes what it opens."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.names: set[str] = set()
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.names |= {name for name, _ in attrs}
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_html_escapes_everything_and_needs_nothing(tmp_path):
    texts = {"a": f"a {NASTY}\nsecond line", "b": "b", "c": "c"}
    retriever = retriever_of(tmp_path, told(f"{NASTY} steam"), Thought.failure(NASTY), texts=texts)
    retriever.index.add([Document(id="d", text="d", metadata={"title": NASTY, "source": NASTY})])
    found = retriever.explain(f"{NASTY} {QUERY}", k=4)
    page = Reader()
    page.feed(found._repr_html_())
    page.close()
    assert page.open == []
    assert page.tags == {"pre", "span"}
    assert page.names == {"style"}
    assert "\x1b" not in page.text
    # question, thought, its hit, reason, passage, heading, source, move
    assert page.text.count("<script>alert('x')</script> & \"<b>\"") >= 7
    assert "\x1b" not in str(found)


def test_a_move_as_json():
    move = Move(hit=Hit(id="a", text="b", score=1.0, rank=1), before=None, after=1, change="new")
    assert move.to_dict() == {"id": "a", "before": None, "after": 1, "change": "new", "thoughts": []}
