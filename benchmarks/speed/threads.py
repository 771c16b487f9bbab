"""What stepping back from crowded cores gains: the same thinking with all threads and with fewer, in one run.

Other processes keep the cores busy, one for each. A figure above 1 says that thinking is that many times
faster with the engine's own choice of threads; on a quiet machine it should be 1.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch

from benchmarks.record import Figure
from benchmarks.speed.models import SHAPES, random_model, random_queries
from benchmarks.speed.pairs import ratio
from o1_retriever import ThinkingEmbedder, ThoughtSettings
from o1_retriever.engine import threads
from o1_retriever.engine.backend import LocalBackend

_SETTINGS = ThoughtSettings(n_thoughts=3, max_new_tokens=32)
_QUERIES = 4
_PAIRS = 3
_BUSY = "while True: pass"


def measure(*, full: bool = False) -> list[Figure]:
    """`threads/quiet/ratio` and `threads/crowded/ratio`: time with all threads over time with our choice."""
    if torch.get_num_threads() < 2:
        print("One thread: there is none to spare.")
        return []
    figures = [_compare("quiet", full=full)]
    with _busy(os.cpu_count() or 1):
        figures.append(_compare("crowded", full=full))
    return figures


def _compare(machine: str, *, full: bool) -> Figure:
    local = random_model("110M" if full else "16M")
    embedder = ThinkingEmbedder(LocalBackend(local), settings=_SETTINGS, cache=False)
    queries = random_queries(_QUERIES, SHAPES[local.name].vocabulary)

    def think() -> None:
        embedder.encode_queries(queries, show_progress_bar=False)

    def with_all_threads() -> None:
        with mock.patch.multiple(threads, _crowded_until=0.0, _LOOK_EVERY_S=float("inf")):
            think()

    think()
    found = ratio(think, with_all_threads, pairs=_PAIRS, said=f"{machine}, all threads over ours")
    return Figure(name=f"threads/{machine}/ratio", value=found, unit="ratio")


@contextmanager
def _busy(count: int) -> Iterator[None]:
    """So many processes that do nothing but compute."""
    processes = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
