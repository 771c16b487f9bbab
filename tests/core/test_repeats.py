"""Thoughts about one query that nearly repeat each other: found, drawn once more, and counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from o1_retriever import ThinkingEmbedder, ThoughtSettings
from o1_retriever import thought as drawing
from o1_retriever.concurrency.shared import finished
from o1_retriever.query import as_queries
from o1_retriever.search.render import costs_view
from o1_retriever.thought import AGAIN, Thought, Timings, repeats
from tests.support.adapters import bag_of_words
from tests.support.writers import writer

WARM = ThoughtSettings(n_thoughts=3, temperature=0.7)
ICE = "Ice is water that is frozen, and it is cold."


def thoughts(*texts: str) -> list[Thought]:
    return [Thought(text=text, prompt_tokens=2, completion_tokens=5) for text in texts]


def test_the_same_words_in_another_order_are_a_repeat() -> None:
    assert repeats(thoughts(ICE, "Frozen water is ice, and it is cold.", "Steam is hot.")) == (1,)
    assert repeats(thoughts(ICE, "Steam is hot.", "It is ice that is cold, frozen water.", ICE)) == (2, 3)
    assert repeats([Thought.failure("no"), Thought.failure("no"), Thought(text="…")]) == ()


@given(st.lists(st.text(alphabet="ab ", max_size=6), max_size=5))
def test_a_thought_alone_and_the_first_of_several_repeat_nothing(texts: list[str]) -> None:
    found = repeats([Thought(text=text) for text in texts])
    assert 0 not in found
    assert any(text.strip() for text in texts) or not found


def distinct(*given: Any) -> list[list[Thought]]:
    return finished(drawing.distinct(*given))


def scripted(table: dict[int, str], asked: list[Sequence[tuple[int, ...]]]):
    async def write(numbers: Sequence[tuple[int, ...]], again: bool) -> list[list[Thought]]:
        assert again is any(number >= AGAIN for own in numbers for number in own)
        asked.append(numbers)
        return [[thoughts(table[number])[0] for number in own] for own in numbers]

    return write


def test_a_repeat_is_drawn_once_more_and_costs_both_draws() -> None:
    asked: list[Sequence[tuple[int, ...]]] = []
    table = {0: ICE, 1: ICE, 2: "Steam is hot.", AGAIN + 1: "A fridge pumps heat."}
    [row] = distinct(1, WARM, 0, scripted(table, asked))
    assert [thought.text for thought in row] == [ICE, "A fridge pumps heat.", "Steam is hot."]
    assert asked == [[(0, 1, 2)], [(AGAIN + 1,)]]
    assert [thought.completion_tokens for thought in row] == [5, 10, 5]
    # The same one, whether or not those before it are wanted.
    assert distinct(1, WARM, 1, scripted(table, [])) == [row[1:]]
    assert distinct(1, WARM.with_changes(n_thoughts=2), 0, scripted(table, [])) == [row[:2]]


def test_a_second_draw_that_is_no_better_is_left() -> None:
    table = {0: ICE, 1: "Cold ice is water that is frozen.", 2: "Steam is hot.", AGAIN + 1: ICE}
    [row] = distinct(1, WARM, 0, scripted(table, []))
    assert [thought.text for thought in row] == [table[0], table[1], table[2]]
    assert row[1].completion_tokens == 10


@pytest.mark.parametrize("changes", [{"temperature": 0.0}, {"budget_ms": 5.0}, {"n_thoughts": 1}])
def test_nothing_is_drawn_again_where_it_cannot_differ_or_has_no_time(changes: dict[str, float]) -> None:
    asked: list[Sequence[tuple[int, ...]]] = []
    distinct(1, WARM.with_changes(**changes), 0, scripted(dict.fromkeys(range(3), ICE), asked))
    assert len(asked) == 1


def test_a_local_model_draws_again_with_another_seed() -> None:
    """A model with one word to say repeats itself; a repeat has cost two draws."""
    cold = ThoughtSettings(n_thoughts=4, temperature=0.01, max_new_tokens=6)
    thinker = writer()
    local = thinker.local
    letter = local.template.tokenizer("a")["input_ids"][0]
    allowed = {letter, *local.stop_ids}
    local.template.suppressed = lambda size: sorted(set(range(size)) - allowed)  # type: ignore[method-assign]
    [row] = thinker.think(as_queries(["why?"]), settings=cold)
    first, *others = (thought.completion_tokens for thought in row)
    assert others == [2 * first] * 3
    assert thinker.think(as_queries(["why?", "how?"]), settings=cold)[0] == row
    assert thinker.think(as_queries(["why?"]), settings=cold, start=2)[0] == row[2:]


def test_repeats_are_counted_where_costs_are_told() -> None:
    assert (
        "3 thoughts, 15 tokens, 1 repeating another"
        in costs_view(thoughts(ICE, ICE, "Steam."), Timings()).plain
    )

    def same(queries: list[str], n: int) -> list[list[str]]:
        return [[ICE] * n for _ in queries]

    embedder = ThinkingEmbedder.from_parts(same, bag_of_words, cache=False)
    assert repeats(embedder.embed_query("why?").thoughts) == (1, 2)
