"""What an expert is asked: an instruction for the kind of task, examples, and the query."""

from __future__ import annotations

import random
from collections.abc import Sequence

from o1_retriever.endpoint.prompt import ChatPrompt
from o1_retriever_training.recipe import INSTRUCTIONS, Recipe
from o1_retriever_training.rows import TrainingRow, plain_text

_TRIES = 20  # draws per example that is wanted, before a small pool counts as used up


class Examples:
    """Rows to draw in-context examples from: other queries, each with its first positive as the response."""

    def __init__(self, pool: Sequence[TrainingRow]) -> None:
        self._pool = [(row.query, row.pos[0]) for row in pool if row.pos]
        self._plain = [(plain_text(query), plain_text(passage)) for query, passage in self._pool]

    def __len__(self) -> int:
        return len(self._pool)

    @property
    def content(self) -> list[tuple[str, str]]:
        """What may be drawn, in order."""
        return list(self._pool)

    def draw(self, row: TrainingRow, recipe: Recipe) -> list[tuple[str, str]]:
        """Examples for a row: never its query, never a passage that is or contains one of its documents.

        What is drawn depends on the row, the seed and the pool alone.
        """
        if not self._pool or not recipe.examples:
            return []
        forbidden = {plain_text(document) for document in row.pos}
        queries = {plain_text(row.query)}
        generator = random.Random(f"{recipe.seed}:{row.identity}")
        chosen: list[tuple[str, str]] = []
        for _ in range(_TRIES * recipe.examples):
            place = generator.randrange(len(self._pool))
            plain_query, plain_passage = self._plain[place]
            overlaps = any(own in plain_passage or plain_passage in own for own in forbidden)
            if plain_query in queries or overlaps:
                continue
            queries.add(plain_query)
            query, passage = self._pool[place]
            chosen.append((query, _cut(passage, recipe.example_characters)))
            if len(chosen) == recipe.examples:
                break
        return chosen


def prompt_for(
    row: TrainingRow, recipe: Recipe, examples: Examples, instruction: str | None = None
) -> ChatPrompt:
    """The chat that asks for a thought about a row; its `{query}` is to be filled in.

    The examples stand in the one message of the user, which servers without roles understand too.
    """
    known = INSTRUCTIONS | recipe.instructions
    system = instruction or row.prompt or known.get(row.type or "default", known["default"])
    query, response = recipe.labels
    shown = [f"{query}: {text}\n{response}: {passage}" for text, passage in examples.draw(row, recipe)]
    # A `{query}` inside an example would be filled in as well.
    parts = [part.replace("{query}", "{ query }") for part in shown]
    last = f"{query}: {{query}}\n{response}:" if shown else "{query}"
    return ChatPrompt("\n\n".join([*parts, last]), system=system)


def _cut(text: str, most: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 2].rsplit(" ", 1)[0] + " …"
