"""Thinking and embedding against the usual two-pass road: same weights, same sampling, one run.

Ours runs on the model as loading prepares it, the reference on what transformers gives. Every thought has
full length (no end of text is sampled), so that both do the same work.
"""

from __future__ import annotations

import numpy as np

from benchmarks.record import Figure
from benchmarks.speed import reference
from benchmarks.speed.models import SHAPES, random_model, random_queries
from benchmarks.speed.pairs import ratio
from o1_retriever import ThinkingEmbedder, ThoughtSettings
from o1_retriever.engine.backend import LocalBackend

SETTINGS = ThoughtSettings(n_thoughts=3, max_new_tokens=128)
_QUICK = [("16M", 32), ("16M", 1)]
_FULL = [*_QUICK, ("110M", 32)]
_PAIRS = 5


def measure(*, full: bool = False) -> list[Figure]:
    """`encode_queries/<model>/q<queries>/ratio`: the reference's time over ours, median of alternated pairs.

    `.../int8_ratio` is the same with our linear layers in 8 bits, which is not the same arithmetic.
    """
    figures = [compare(name, count) for name, count in (_FULL if full else _QUICK)]
    return [*figures, compare("16M", 32, quantization="int8")]


def compare(name: str, count: int, *, pairs: int = _PAIRS, quantization: str | None = None) -> Figure:
    """One model, so many queries at once; every pair starts with the other side."""
    ours, plain = random_model(name, quantization=quantization), random_model(name, packed=False)
    embedder = ThinkingEmbedder(LocalBackend(ours), settings=SETTINGS, cache=False)
    queries = random_queries(count, SHAPES[name].vocabulary)

    def think() -> np.ndarray:
        return np.asarray(embedder.encode_queries(queries, show_progress_bar=False))

    def refer() -> np.ndarray:
        return reference.encode_queries(plain, queries, SETTINGS).numpy()

    assert think().shape == refer().shape  # both warm, and both answer the same question
    found = ratio(think, refer, pairs=pairs, said=f"{name}, {count} queries")
    what = f"{quantization}_ratio" if quantization else "ratio"
    return Figure(name=f"encode_queries/{name}/q{count}/{what}", value=found, unit="ratio")
