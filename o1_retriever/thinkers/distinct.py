"""Thoughts about one query that differ: what nearly repeats an earlier one is drawn once more."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from o1_retriever.engine.follow import unheard
from o1_retriever.thought import Thought, ThoughtSettings, repeats

# Added to a thought's number for its second draw: no query has so many thoughts.
AGAIN = 1 << 20

# From the numbers of the thoughts that are wanted about each query to these thoughts.
Write = Callable[[Sequence[tuple[int, ...]]], Awaitable[list[list[Thought]]]]


async def distinct(queries: int, settings: ThoughtSettings, start: int, write: Write) -> list[list[Thought]]:
    """Thoughts `start` to `settings.n_thoughts - 1` about each of so many queries.

    A thought that nearly repeats one with a smaller number is drawn again, once, and the second draw counts
    where it repeats none. Whether it does hangs on the smaller numbers, so that they are written again where
    `start` leaves them out. Nothing is drawn again where a draw has no choice (temperature 0) or no time.
    """
    if start >= settings.n_thoughts:
        return [[] for _ in range(queries)]
    once = settings.temperature == 0 or settings.budget_ms is not None or settings.n_thoughts == 1
    first = start if once else 0
    rows = await write([tuple(range(first, settings.n_thoughts))] * queries)
    again = [() if once else repeats(row) for row in rows]
    if any(again):
        with unheard():  # the end brings the better one of two draws
            draws = await write([tuple(AGAIN + number for number in numbers) for numbers in again])
        for row, numbers, second in zip(rows, again, draws, strict=True):
            for number, thought in zip(numbers, second, strict=True):
                row[number] = _better(row[number], thought, row[:number])
    return [row[start - first :] for row in rows]


def _better(thought: Thought, other: Thought, earlier: Sequence[Thought]) -> Thought:
    """The second draw, or the first one where that is no better; it has cost both."""
    better = not other.failed and len(earlier) not in repeats([*earlier, other])
    return replace(
        other if better else thought,
        prompt_tokens=thought.prompt_tokens + other.prompt_tokens,
        completion_tokens=thought.completion_tokens + other.completion_tokens,
    )
