"""What a terminal shows of thoughts, hits and costs."""

from __future__ import annotations

import io
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from o1_retriever.index.hits import Hit
from o1_retriever.search.render import (
    costs_view,
    hits_view,
    milliseconds,
    printable,
    result_view,
    thoughts_view,
)
from o1_retriever.search.result import SearchResult
from o1_retriever.thought import QueryEmbedding, Thought, Timings

LONG = " ".join(f"word{number}" for number in range(200))


def shown(view, *, width: int = 80, **options) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False, **options)
    console.print(view)
    return console.file.getvalue()


def hit(**changes) -> Hit:
    return Hit(**{"id": "a", "text": "A passage.", "score": 0.5, "rank": 1, "source": "a.md", **changes})


def result(thoughts=(), hits=(), query="Why?", **timings) -> SearchResult:
    vector = np.ones(2, np.float32)
    embedding = QueryEmbedding(
        query=query, thoughts=thoughts, vectors=vector[None], vector=vector, timings=Timings(**timings)
    )
    return SearchResult(embedding=embedding, hits=tuple(hits), search_ms=3.2)


def test_a_whole_result():
    thought = Thought(text="Because.", completion_tokens=4)
    found = hit(metadata={"title": "T", "page": 3})
    text = shown(result_view(result((thought,), [found], think_ms=1800.0, embed_ms=12.4)))
    assert [line.strip() for line in text.splitlines() if line.strip()] == [
        "Why?",
        "Thoughts",
        "1 Because.",
        "Hits",
        "1 0.500 T  a.md, page 3",
        "A passage.",
        "1 thought, 4 tokens · think 1.8 s · embed 12 ms · search 3.2 ms",
    ]


def test_a_fast_result_has_no_thoughts():
    text = shown(result_view(result(embed_ms=1.0)))
    assert "Thoughts" not in text
    assert "none: no passage matches" in text
    assert "no thoughts · embed 1.0 ms · search 3.2 ms" in text


def test_a_failed_thought_says_why():
    text = shown(thoughts_view([Thought(text="Fine."), Thought.failure("the server\nwas busy")]))
    assert "1 Fine." in text
    assert "2 failed: the server was busy" in text


def test_a_thought_that_was_cut_says_so():
    text = shown(thoughts_view([Thought(text="And so", finish="length", completion_tokens=64)]))
    assert "And so … (cut after 64 tokens)" in text
    whole = Thought(text='She said "no."', finish="length", completion_tokens=64)
    assert "cut" not in shown(thoughts_view([whole]))


@pytest.mark.parametrize(
    ("thoughts", "expected"),
    [
        ([Thought(text="a")], "1 thought"),
        (
            [Thought(text=text, completion_tokens=2, cached=True) for text in "ab"],
            "2 thoughts, 4 tokens, from cache",
        ),
        ([Thought(text="a")] * 3, "3 thoughts, 2 repeating another"),
        ([Thought(text="a", cached=True), Thought(text="b")], "2 thoughts, 1 from cache"),
        ([Thought(text="a"), Thought.failure("x")], "2 thoughts, 1 failed"),
    ],
)
def test_costs(thoughts, expected):
    assert costs_view(thoughts).plain == expected


def test_a_stage_that_did_not_run_costs_nothing():
    assert costs_view([Thought(text="a")], Timings(think_ms=5.0)).plain == "1 thought · think 5.0 ms"


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.04, "0.0 ms"), (9.94, "9.9 ms"), (9.96, "10 ms"), (999.4, "999 ms"), (1234.0, "1.2 s")],
)
def test_milliseconds(value, expected):
    assert milliseconds(value) == expected


def test_a_passage_is_cut_after_three_lines_unless_it_is_wanted_whole():
    lines = [line.rstrip() for line in shown(hits_view([hit(text=LONG)]), width=60).splitlines()]
    assert len(lines) == 4  # the source and three lines
    assert lines[-1].endswith(" …")
    assert "word199" not in "".join(lines)
    assert "word199" in shown(hits_view([hit(text=LONG)], full=True), width=60)
    short = shown(hits_view([hit(text="one two three")], lines=1))
    assert "one two three" in short
    assert "…" not in short


def test_one_line_of_a_passage():
    lines = shown(hits_view([hit(text=LONG)], lines=1), width=40).splitlines()
    assert len(lines) == 2
    assert lines[-1].rstrip().endswith("word3 …")


def test_a_whole_passage_keeps_its_lines():
    code = "def f():\n\treturn '\x1b[2J'\n\n"
    lines = [line.rstrip() for line in shown(hits_view([hit(text=code)], full=True)).splitlines()]
    assert [line[9:] for line in lines[1:3]] == ["def f():", "    return ' [2J'"]
    assert "def f(): return" in shown(hits_view([hit(text=code)]))


def test_a_word_that_is_wider_than_the_terminal_is_cut():
    rows = shown(hits_view([hit(text="x" * 500)], lines=2), width=40).splitlines()
    assert len(rows) == 3
    assert rows[-1].rstrip().endswith("xxx …")
    assert len(rows[-1].rstrip()) <= 40


@pytest.mark.parametrize(
    ("text", "title", "body"),
    [
        ("# Kitchen\n## Mirrors\n\nThey fog up.", "Kitchen > Mirrors", "They fog up."),
        ("Mirrors They fog up.", "Mirrors", "They fog up."),
        ("Mirrors. They fog up.", "Mirrors", "They fog up."),
        ("# Kitchen", "Kitchen", "# Kitchen"),
        ("They fog up.", "", "They fog up."),
    ],
)
def test_a_title_is_shown_once(text, title, body):
    lines = shown(hits_view([hit(text=text, metadata={"title": title})])).splitlines()
    assert lines[0].split()[2:] == [*title.split(), "a.md"]
    assert lines[1].strip() == body


def test_a_hit_without_a_source_goes_by_its_id():
    assert "doc-7" in shown(hits_view([hit(id="doc-7", source="")]))


def test_text_is_neither_markup_nor_a_command_to_the_terminal():
    nasty = "[bold]x[/bold] [/nothing] \x1b[2J\x9b31m\x07 y \u202e"
    text = shown(
        result_view(
            result((Thought(text=nasty), Thought.failure(nasty)), [hit(text=nasty, source=nasty)], nasty)
        )
    )
    assert text.count("[bold]x[/bold]") == 5
    assert not {"\x1b", "\x9b", "\x07", "\u202e"} & set(text)
    assert not {"\x1b", "\x9b", "\x07", "\u202e"} & set(shown(hits_view([hit(text=nasty)], full=True)))


def test_no_colours_where_there_is_no_terminal(monkeypatch):
    view = result_view(result((Thought.failure("x"),), [hit()]))
    assert "\x1b[" not in shown(view)
    assert "\x1b[31m" in shown(view, force_terminal=True, color_system="standard")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in shown(view, force_terminal=True)


@given(st.text())
def test_what_is_printable_stays_on_one_line(text):
    clean = printable(text)
    assert not any(unicodedata.category(letter) in ("Cc", "Zl", "Zp") for letter in clean)
    assert clean == printable(clean) == clean.strip()


@given(st.text(max_size=400), st.integers(20, 120), st.integers(1, 4))
def test_passages_keep_to_the_width_and_the_number_of_lines(text, width, lines):
    rows = shown(hits_view([hit(text=text or "x")], lines=lines), width=width).split("\n")[:-1]
    assert len(rows) <= 1 + lines
    assert all(cell_len(row) <= width for row in rows)
