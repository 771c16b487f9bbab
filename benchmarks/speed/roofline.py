"""How near thinking comes to what the machine can do.

The floor of a job is the time of its matrix products, each at the rate that this machine reaches for that
very shape, plus the bytes of weights and of keys and values that it must read, at the rate at which it reads
memory. Rates are measured in the same process, right before and after the job.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median

import torch

from benchmarks.record import Figure
from benchmarks.speed.models import SHAPES, Shape, random_model, random_queries
from benchmarks.speed.queries import SETTINGS
from o1_retriever import ThinkingEmbedder
from o1_retriever.engine.backend import LocalBackend
from o1_retriever.engine.rows import Sampler
from o1_retriever.engine.weights import PackedLinear

_RUNS = 5


def measure(*, full: bool = False) -> Iterator[Figure]:
    """`roofline/<model>/q32`: the floor over the time taken; `sampling/...`: what drawing takes of it."""
    for name in ["16M", "110M"] if full else ["16M"]:
        yield from shares(name)


def shares(name: str, *, count: int = 32, runs: int = _RUNS) -> list[Figure]:
    """The median over some runs, each with its own floor."""
    local, shape = random_model(name), SHAPES[name]
    embedder = ThinkingEmbedder(LocalBackend(local), settings=SETTINGS, cache=False)
    queries = random_queries(count, shape.vocabulary)
    embedder.encode_queries(queries, show_progress_bar=False)
    prompts = [len(local.template.prompt(ids)) for ids in local.template.text_ids(queries)]
    floors, draws = [], []
    for _ in range(runs):
        before = floor(shape, prompts)
        started = time.perf_counter()
        embedder.encode_queries(queries, show_progress_bar=False)
        taken = time.perf_counter() - started
        lowest = min(before, floor(shape, prompts))
        floors.append(lowest / taken)
        draws.append(SETTINGS.max_new_tokens * _draw(count * SETTINGS.n_thoughts, shape.vocabulary) / taken)
        print(f"{name}, {count} queries: floor {lowest:.2f} s of {taken:.2f} s = {floors[-1]:.2f}")
    return [
        Figure(name=f"roofline/{name}/q{count}", value=round(median(floors), 2), unit="share"),
        Figure(name=f"sampling/{name}/q{count}", value=round(median(draws), 3), unit="share", better="lower"),
    ]


def floor(shape: Shape, prompts: list[int]) -> float:
    """Seconds that the job's products and reads take at this machine's own rates."""
    rows, steps = len(prompts) * SETTINGS.n_thoughts, SETTINGS.max_new_tokens + 2
    products = steps * _products(shape, rows) + _products(shape, sum(prompts), head=len(prompts))
    read = steps * 4 * _weights(shape) + 4 * _cache_floats(shape, rows, max(prompts), steps)
    return products + read / _read_rate()


def _matrices(shape: Shape) -> list[tuple[int, int, int]]:
    """(inputs, outputs, how many) of the layers' matrices."""
    head = shape.hidden // shape.heads * shape.kv_heads
    return [
        (shape.hidden, shape.hidden, 2 * shape.layers),
        (shape.hidden, head, 2 * shape.layers),
        (shape.hidden, shape.intermediate, 2 * shape.layers),
        (shape.intermediate, shape.hidden, shape.layers),
    ]


def _products(shape: Shape, rows: int, *, head: int | None = None) -> float:
    seconds = sum(count * _product(rows, a, b) for a, b, count in _matrices(shape))
    return seconds + _product(head or rows, shape.hidden, shape.vocabulary)


def _weights(shape: Shape) -> int:
    return sum(a * b * count for a, b, count in _matrices(shape)) + shape.hidden * shape.vocabulary


def _cache_floats(shape: Shape, rows: int, prompt: int, steps: int) -> float:
    """Keys and values read over all steps, which find ever more of them."""
    columns = steps * prompt + steps * (steps - 1) / 2
    return rows * columns * 2 * shape.layers * shape.kv_heads * (shape.hidden // shape.heads)


@torch.inference_mode()
def _product(rows: int, inputs: int, outputs: int) -> float:
    """Seconds of one product of that shape, the better of plain and packed weights."""
    states = torch.randn(rows, inputs)
    plain = torch.nn.Linear(inputs, outputs, bias=False)
    packed = PackedLinear(plain)
    return min(_best(lambda: plain(states)), _best(lambda: packed(states)))


@torch.inference_mode()
def _draw(rows: int, vocabulary: int) -> float:
    """Seconds of drawing one token for each row."""
    sampler = Sampler(SETTINGS.temperature, SETTINGS.top_p)
    logits = 0.4 * torch.randn(rows, vocabulary)
    keys, steps = torch.randint(1 << 62, (rows,)), torch.arange(rows)
    return _best(lambda: sampler.draw(logits.clone(), keys, steps))


def _read_rate() -> float:
    """Bytes per second of adding up what is in no processor cache."""
    much = torch.ones(1 << 26)
    return much.numel() * 4 / _best(much.sum, times=3)


def _best(function: Callable[[], object], *, times: int = 12) -> float:
    function()
    lowest = float("inf")
    for _ in range(times):
        started = time.perf_counter()
        function()
        lowest = min(lowest, time.perf_counter() - started)
    return lowest
