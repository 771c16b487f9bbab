"""What was thought about a query, what is drawn once more because it repeats another, and what it became."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from o1_retriever.errors import SettingsError
from o1_retriever.query import Conversation

Vector = NDArray[np.float32]
Finish = Literal["eos", "length", "budget", "recorded", "given", "failed"]
Thinking = Literal["always", "auto", "never"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ThoughtSettings:
    """How to think. Defaults are those of the released O1 Embedder checkpoint (arXiv 2502.07555).

    `n_thoughts` per query, each of at most `max_new_tokens` tokens, sampled with `temperature` (0 takes the
    likeliest token) and nucleus `top_p`. `seed` together with the query and the thought's index fixes the
    draw, so that a thought does not depend on the other queries of a batch nor on `n_thoughts`.
    `thinking="never"` takes the fast path: the query is embedded without thoughts. `budget_ms` is how long
    the local engine may write about one query, in wall-clock milliseconds from its first token on (None: as
    long as it takes); what has been thought by then is embedded, and its `finish` is "budget".
    `repetition_penalty` above 1 makes tokens that a thought already holds less likely (Keskin et al. 2019): a
    positive logit is divided by it, a negative one multiplied. The query's own tokens are not penalised.
    `query_weight` is how much the query's own vector counts beside the mean of those with its thoughts (0:
    not at all, as in the paper; 1: as much), which costs one more vector. None: as much as the thinker
    prefers, which is its `doubt`, and 0 beside thoughts that the caller brings. `guard` drops thoughts that
    cannot help, such as loops and refusals; the query is embedded with the others (docs/guard.md).

    Raises `SettingsError` for a value out of range.
    """

    n_thoughts: int = 3
    temperature: float = 0.1
    top_p: float = 0.9
    max_new_tokens: int = 128
    seed: int = 0
    thinking: Thinking = "always"
    budget_ms: float | None = None
    repetition_penalty: float = 1.0
    query_weight: float | None = None
    doubt: float = 0.0
    guard: bool = True

    def __post_init__(self) -> None:
        check_number("n_thoughts", self.n_thoughts, 1, 1024, whole=True)
        check_number("temperature", self.temperature, 0, 100)
        check_number("top_p", self.top_p, 1e-6, 1)
        check_number("max_new_tokens", self.max_new_tokens, 1, 1_000_000, whole=True)
        check_number("seed", self.seed, 0, 2**63 - 1, whole=True)
        check_number("repetition_penalty", self.repetition_penalty, 1e-2, 100)
        if self.query_weight is not None:
            check_number("query_weight", self.query_weight, 0, 100)
        check_number("doubt", self.doubt, 0, 100)
        if not isinstance(self.guard, bool):
            raise SettingsError(f"guard is {self.guard!r}; expected True or False.")
        if self.budget_ms is not None:
            check_number("budget_ms", self.budget_ms, 1e-3, 1e9)
        if isinstance(self.thinking, str) and self.thinking == "auto":
            raise SettingsError(
                "thinking is 'auto', which needs a search without thoughts first; expected 'always' or "
                "'never' here.",
                hint="Type: Retriever(embedder, index, thinking='auto')",
            )
        if not isinstance(self.thinking, str) or self.thinking not in ("always", "never"):
            raise SettingsError(f"thinking is {self.thinking!r}; expected 'always' or 'never'.")

    @property
    def thinks(self) -> bool:
        """Whether thoughts are written at all."""
        return self.thinking != "never"

    def weight(self, thoughts: Iterable[Thought] = ()) -> float:
        """How much the query counts beside these thoughts, or beside those that will be written."""
        if self.query_weight is not None:
            return self.query_weight
        return 0.0 if any(each.finish == "given" for each in thoughts) else self.doubt

    def sampling(self) -> dict[str, float]:
        """The part that decides what a thought says, for cache keys: not how many there are, nor whether."""
        parts = {
            "temperature": float(self.temperature),
            "top_p": float(self.top_p),
            "max_new_tokens": self.max_new_tokens,
            "seed": self.seed,
        }
        if self.repetition_penalty != 1:  # left out where it does nothing: older entries stay valid
            parts["repetition_penalty"] = float(self.repetition_penalty)
        return parts

    def with_changes(self, **changes: Any) -> ThoughtSettings:
        """A copy with some settings replaced; a value of None means: leave as it is."""
        known = {key: value for key, value in changes.items() if value is not None}
        unknown = sorted(set(known) - set(self.__slots__))
        if unknown:
            raise SettingsError(
                f"Unknown thought settings {unknown}; expected some of {sorted(self.__slots__)}."
            )
        return replace(self, **known)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return asdict(self)


def check_number(name: str, value: object, low: float, high: float, *, whole: bool = False) -> None:
    """Raise `SettingsError` for what is no number, or out of its range."""
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise SettingsError(f"{name} is {value!r}; expected a {'whole ' if whole else ''}number.")
    if not low <= value <= high:
        raise SettingsError(f"{name} is {value!r}; expected a value from {low:g} to {high:g}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Thought:
    """One thought about one query.

    `token_ids` are the model's own tokens without the final eos (empty when the thinker gave text only).
    `finish` says why it ended: the model stopped (`eos`), the length limit (`length`), its time was up
    (`budget`), it was read from a record (`recorded`), the caller brought it (`given`), or it could not be
    written (`failed`; then `text` is empty and `error` says why).
    `dropped` is why the guard leaves it out (`o1_retriever.guard`; docs/guard.md), None where it counts.
    `prompt_tokens` and `completion_tokens` are what it cost, 0 where the thinker does not count.
    `cached` is True when no model ran for it.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    finish: Finish = "eos"
    error: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached: bool = field(default=False, compare=False)
    dropped: str | None = None

    @classmethod
    def failure(cls, error: str) -> Thought:
        """A recorded failure: the query will be embedded without this thought."""
        return cls(text="", finish="failed", error=error)

    @property
    def failed(self) -> bool:
        """Whether the thought could not be written."""
        return self.finish == "failed"

    @property
    def usable(self) -> bool:
        """Whether the query is embedded with it: it could be written, and was not dropped."""
        return not self.failed and self.dropped is None

    def to_dict(self) -> dict[str, Any]:
        """The thought as plain JSON values: `text`, `finish`, `error`, `dropped`, `tokens` and `cached`."""
        return {
            "text": self.text,
            "finish": self.finish,
            "error": self.error,
            "dropped": self.dropped,
            "tokens": self.completion_tokens,
            "cached": self.cached,
        }


# Two thoughts nearly repeat each other where of all words of both, so large a share is in both.
_SAME_WORDS = 0.6


def repeats(thoughts: Sequence[Thought]) -> tuple[int, ...]:
    """The places of those thoughts about one query that nearly repeat an earlier one, in the same words."""
    words = [set(re.findall(r"\w+", thought.text.lower())) for thought in thoughts]
    return tuple(
        place
        for place, own in enumerate(words)
        if own and any(len(own & other) >= _SAME_WORDS * len(own | other) for other in words[:place])
    )


# Added to a thought's number for its second draw: no query has so many thoughts.
AGAIN = 1 << 20

# From the numbers of the thoughts that are wanted about each query, and whether they are second draws, to the
# thoughts. Nobody is told of a second draw while it is written: the end brings the better one of two.
Write = Callable[[Sequence[tuple[int, ...]], bool], Awaitable[list[list[Thought]]]]


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
    rows = await write([tuple(range(first, settings.n_thoughts))] * queries, False)
    again = [() if once else repeats(row) for row in rows]
    if any(again):
        draws = await write([tuple(AGAIN + number for number in numbers) for numbers in again], True)
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


def texts_of(thoughts: Iterable[Thought]) -> list[str]:
    """What was thought; thoughts that could not be had, or that the guard dropped, are left out."""
    return [thought.text for thought in thoughts if thought.usable]


def flat(thoughts: Iterable[Thought]) -> str:
    """Thoughts as one string, a line each; those that could not be written, or were dropped, are left out."""
    return "\n".join(" ".join(text.split()) for text in texts_of(thoughts))


@dataclass(frozen=True, slots=True, kw_only=True)
class ThoughtPiece:
    """What was added to a thought since its last piece: the `text` of thought number `index`, from 0.

    The last piece of each has the whole `thought`, which may lack a sentence that was cut and the reasoning
    before an answer, though both were among the pieces.
    """

    index: int
    text: str
    thought: Thought | None = None


# Called in the thread that writes, with a query's place, a thought's number, and the text that is new.
Listener = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Wall-clock milliseconds of one query's batch, divided by the queries of that batch."""

    think_ms: float = 0.0
    embed_ms: float = 0.0

    @property
    def total_ms(self) -> float:
        """Thinking and embedding together."""
        return self.think_ms + self.embed_ms


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QueryEmbedding:
    """A query, what was thought about it, and the vector to search with.

    `vectors` is float32 of shape (n, dimension): one unit vector per usable thought, or the single fast
    vector when there is none. `vector` of shape (dimension,) is their mean, a unit vector unless
    `normalize_embeddings=False` was passed. `history` is the conversation that the thinker read, and is empty
    where no thought was written; the vectors are those of the query and its thoughts alone.
    """

    query: str
    thoughts: tuple[Thought, ...]
    vectors: Vector
    vector: Vector
    timings: Timings = Timings()
    history: Conversation = field(default_factory=Conversation)

    @property
    def thought_tokens(self) -> int:
        """Tokens that the thinker wrote, cached thoughts included."""
        return sum(thought.completion_tokens for thought in self.thoughts)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompts that were read to write the thoughts, cached thoughts included.

        The thoughts of one query share one prompt in the local engine, so that it counts once there;
        a thinker behind an endpoint is sent the prompt once per thought.
        """
        return sum(thought.prompt_tokens for thought in self.thoughts)

    @property
    def thought_about(self) -> bool:
        """Whether at least one thought went into the vector."""
        return any(thought.usable for thought in self.thoughts)
