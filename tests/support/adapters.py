"""A small embedder whose thoughts decide what is found, for the tests of the adapters."""

from __future__ import annotations

import asyncio
import hashlib
import re
import threading
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any, TypeVar

import numpy as np

from o1_retriever import Index, ThinkingEmbedder, ThoughtSettings
from o1_retriever.documents import Document
from o1_retriever.encoders import CallableEncoder
from o1_retriever.endpoint.exchange import RequestPolicy
from o1_retriever.guard import Gate
from o1_retriever.query import Conversation
from o1_retriever.search.relevance import Relevance, keep, kind
from o1_retriever.thinkers import RecordedThinker

DIMENSION = 256
QUERY = "Why does my bathroom mirror go blank?"
THOUGHT = "Water vapour condenses on cold glass."
OTHER = "Yeast makes dough."
# A thought that outweighs the words of QUERY, and leads to "bread".
BREAD = "Yeast makes dough rise. Yeast makes dough rise. Yeast makes dough rise."
# Without thinking QUERY shares words with "mirror" alone; with it, with "vapour".
TEXTS = {
    "vapour": "Warm water vapour condenses on cold glass as droplets.",
    "mirror": "My bathroom mirror has a blank wooden frame.",
    "bread": "Yeast makes dough rise.",
    "moon": "Tides follow the moon.",
}
METADATA: dict[str, dict[str, Any]] = {
    "vapour": {"topic": "physics", "page": 1},
    "mirror": {"topic": "home", "page": 2},
    "bread": {"topic": "home", "page": 3},
    "moon": {"topic": "physics", "page": 4},
}
FAST = ThoughtSettings(thinking="never")
NEVER_WORTH_IT, ALWAYS_WORTH_IT = Gate(bias=-9.0), Gate(bias=9.0)
# For models that fail on purpose: tried twice, without waiting.
PATIENCE = RequestPolicy(retries=1, backoff=0.0, timeout=60, deadline=60)
Result = TypeVar("Result")


def bag_of_words(texts: list[str]) -> np.ndarray:
    rows = np.full((len(texts), DIMENSION), 0.01, np.float32)
    for row, text in zip(rows, texts, strict=True):
        for word in re.findall(r"\w+", text.lower()) or [text]:
            place = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=4).digest())
            row[place % DIMENSION] += 1.0
    return rows


class Mind:
    """Thinks about mirrors, repeats other queries, fails where told to, and remembers what it was asked.

    It may think when `goes_on` is set.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.goes_on = threading.Event()
        self.goes_on.set()

    def __call__(self, queries: list[str], k: int, passages: Any = None) -> list[list[str | None]]:
        self.asked += queries
        assert self.goes_on.wait(200)
        return [[self._thought(query)] * k for query in queries]

    def _thought(self, query: str) -> str | None:
        if "unthinkable" in query:
            return None
        return THOUGHT if "mirror" in query else query


def best_cosines(texts: list[str]) -> list[float]:
    """The best cosine of each text with QUERY and one of the thoughts of `of_two_minds`."""
    rows = bag_of_words([f"{QUERY} {THOUGHT}", f"{QUERY} {OTHER}", *texts])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return list((rows[2:] @ rows[:2].T).max(axis=1).tolist())


@contextmanager
def calibrated(index: Index) -> Iterator[None]:
    """The index with a calibration: what is 0.1 less near than the first hit has the probability 0.5."""
    figures = {"questions": 10, "brier": 0.0, "brier_of_base_rate": 0.0, "calibration_error": 0.0}
    models = {
        kind(hybrid, pooling, weight): Relevance(
            weights=(30.0, -30.0, 0.0, 0.0) if hybrid else (30.0, -30.0), bias=3.0, **figures
        )
        for hybrid, pooling, weight in product((False, True), ("mean", "best"), (None, 0.0))
    }
    path = keep(index, models)
    try:
        yield
    finally:
        path.unlink()


def of_two_minds() -> ThinkingEmbedder:
    """Thinks THOUGHT and OTHER about QUERY, and embeds as `small_embedder` does."""
    encoder = CallableEncoder(bag_of_words, name="bag of words")
    thinker = RecordedThinker({QUERY: [THOUGHT, OTHER]})
    return ThinkingEmbedder.from_parts(thinker, encoder, settings=ThoughtSettings(n_thoughts=2), cache=False)


# What the adapters read of a chat in each framework's own messages.
TURNS = [
    ("system", "Answer briefly."),
    ("user", "Where does the vapour go?"),
    ("assistant", "Water vapour condenses as droplets."),
]


def last_turn_embedder() -> ThinkingEmbedder:
    """Thinks the last turn of the conversation, and of tides where there is none."""

    def think(queries: list[str], n_thoughts: int, histories: Any = None) -> list[list[str]]:
        turns = [history.messages for history in histories or [Conversation()] * len(queries)]
        return [[messages[-1].content if messages else "Tides."] * n_thoughts for messages in turns]

    encoder = CallableEncoder(bag_of_words, name="bag of words")
    return ThinkingEmbedder.from_parts(think, encoder, settings=ThoughtSettings(n_thoughts=1), cache=False)


def many_documents() -> list[Document]:
    """The four documents and others that have no word of theirs: enough for the gate of adaptive thinking."""
    others = {f"other-{number}": f"lorem{number} ipsum{number} dolor{number}" for number in range(10)}
    return [Document(id=name, text=text) for name, text in {**TEXTS, **others}.items()]


def small_embedder(mind: Mind | None = None, *, k: int = 2) -> ThinkingEmbedder:
    encoder = CallableEncoder(bag_of_words, name="bag of words")
    return ThinkingEmbedder.from_parts(
        mind or Mind(), encoder, settings=ThoughtSettings(n_thoughts=k), cache=False
    )


async def beside_the_loop(mind: Mind, work: Awaitable[Result]) -> Result:
    """What `work` returned, for which `mind` thinks when another task of the loop has had some turns."""
    mind.goes_on.clear()

    async def heart() -> None:
        for _ in range(5):
            await asyncio.sleep(0.01)
        mind.goes_on.set()

    beating = asyncio.create_task(heart())
    found = await work
    await beating
    return found
