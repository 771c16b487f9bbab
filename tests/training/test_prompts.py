"""What an expert is shown: other queries, never the query's own documents, drawn the same every time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from o1_retriever.query import Query
from o1_retriever_training.recipe import INSTRUCTIONS, Recipe
from o1_retriever_training.rows import TrainingRow
from o1_retriever_training.synthesize import Examples, prompt_for

POOL = [TrainingRow(query=f"query {n}", pos=[f"passage number {n} says so", "another"]) for n in range(30)]
RECIPE = Recipe(examples=4)


def test_own_documents_are_never_shown_whoever_else_has_them() -> None:
    own = "The Moon turns once for every orbit."
    others = [
        TrainingRow(query="who else?", pos=[own.upper()]),
        TrainingRow(query="and who?", pos=[f"Chapter 1. {own} Chapter 2."]),
        TrainingRow(query="a part?", pos=["the moon turns once"]),
        TrainingRow(query="Why THE moon?", pos=["something else entirely"]),
    ]
    row = TrainingRow(query="why the moon", pos=[own])
    for seed in range(20):
        shown = Examples([*others, POOL[0]]).draw(row, Recipe(examples=4, seed=seed))
        assert shown == [("query 0", "passage number 0 says so")]


def test_a_draw_depends_on_seed_and_row_alone() -> None:
    examples, row = Examples(POOL), TrainingRow(query="mine", pos=["own"])
    first = examples.draw(row, RECIPE)
    assert examples.draw(row, RECIPE) == first
    assert len({query for query, _ in first}) == 4
    assert examples.draw(row, Recipe(examples=4, seed=1)) != first
    assert examples.draw(TrainingRow(query="another", pos=["own"]), RECIPE) != first
    assert examples.draw(row, Recipe(examples=0)) == []


@given(text=st.text(min_size=1).filter(lambda text: text.strip()), most=st.integers(20, 60))
def test_an_example_is_no_longer_than_allowed(text: str, most: int) -> None:
    pool = [TrainingRow(query="other", pos=[text * 30])]
    shown = Examples(pool).draw(TrainingRow(query="mine"), Recipe(example_characters=most))
    assert all(len(passage) <= most for _, passage in shown)


def test_the_wording_is_that_of_contributor_row_or_type() -> None:
    recipe, none = Recipe(examples=0, instructions={"poem": "Rhyme."}), Examples([])

    def said(row: TrainingRow, instruction: str | None = None) -> str | None:
        return prompt_for(row, recipe, none, instruction).system

    assert (
        said(TrainingRow(query="q"))
        == said(TrainingRow(query="q", type="unheard of"))
        == INSTRUCTIONS["default"]
    )
    assert said(TrainingRow(query="q", type="claim")) == INSTRUCTIONS["claim"]
    assert said(TrainingRow(query="q", type="poem")) == "Rhyme."
    assert said(TrainingRow(query="q", type="poem", prompt="Own.")) == "Own."
    assert said(TrainingRow(query="q", prompt="Own."), "Voice.") == "Voice."


def test_a_slot_inside_an_example_is_not_filled_in() -> None:
    pool = [TrainingRow(query="how do templates work?", pos=["Write {query} where the query belongs."])]
    prompt = prompt_for(TrainingRow(query="my secret"), Recipe(examples=1), Examples(pool))
    messages = prompt.messages(Query("my secret"))
    assert messages[-1]["content"].count("my secret") == 1
