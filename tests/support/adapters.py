"""A small embedder whose thoughts decide what is found, for the tests of the adapters."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import Awaitable
from typing import Any, TypeVar

import numpy as np

from o1_retriever import ThinkingEmbedder, ThoughtSettings
from o1_retriever.encoders import CallableEncoder
from o1_retriever.endpoint import RequestPolicy

DIMENSION = 256
QUERY = "Why does my bathroom mirror go blank?"
THOUGHT = "Water vapour condenses on cold glass."
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
FAST = ThoughtSettings(mode="never")
# For models that fail on purpose: tried twice, without waiting.
PATIENCE = RequestPolicy(retries=1, backoff=0.0, timeout=5, deadline=5)
Result = TypeVar("Result")


def bag_of_words(texts: list[str]) -> np.ndarray:
    rows = np.full((len(texts), DIMENSION), 0.01, np.float32)
    for row, text in zip(rows, texts, strict=True):
        for word in re.findall(r"\w+", text.lower()) or [text]:
            place = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=4).digest())
            row[place % DIMENSION] += 1.0
    return rows


class Mind:
    """Thinks about mirrors, repeats other queries, fails where told to, and remembers what it was asked."""

    def __init__(self, *, seconds: float = 0.0) -> None:
        self.asked: list[str] = []
        self.seconds = seconds

    def __call__(self, queries: list[str], k: int) -> list[list[str | None]]:
        self.asked += queries
        time.sleep(self.seconds)
        return [[self._thought(query)] * k for query in queries]

    def _thought(self, query: str) -> str | None:
        if "unthinkable" in query:
            return None
        return THOUGHT if "mirror" in query else query


def small_embedder(mind: Mind | None = None, *, k: int = 2) -> ThinkingEmbedder:
    encoder = CallableEncoder(bag_of_words, name="bag of words")
    return ThinkingEmbedder.from_parts(mind or Mind(), encoder, settings=ThoughtSettings(k=k), cache=False)


async def beats_during(work: Awaitable[Result]) -> tuple[Result, int]:
    """What `work` returned, and how often another task of the loop could run meanwhile."""
    beats = 0

    async def heart() -> None:
        nonlocal beats
        while True:
            await asyncio.sleep(0.01)
            beats += 1

    task = asyncio.create_task(heart())
    try:
        return await work, beats
    finally:
        task.cancel()
