"""A 7B-shaped model on a GPU: speed, share of the roofline and memory, beside the two-pass reference.

Without a GPU the same script runs on a tiny model on the processor, to show that it is complete; nothing of
that is recorded.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from tempfile import TemporaryDirectory

import torch

from benchmarks.record import Figure
from benchmarks.speed import reference
from benchmarks.speed.models import SHAPES, random_model, random_queries
from o1_retriever import ThinkingEmbedder, ThoughtSettings
from o1_retriever.engine.backend import LocalBackend
from o1_retriever.engine.load import LoadOptions, LocalModel, load_model
from o1_retriever.engine.steps import Shared

_SETTINGS = ThoughtSettings(n_thoughts=3, max_new_tokens=128)
_QUERIES = (1, 8, 64)
_DOCUMENT_TOKENS = 512
# A share is of what this very GPU reaches for a large copy and a large product.
_COPY_BYTES = 1 << 32
_PRODUCT = 8192


def measure(*, full: bool = False) -> list[Figure]:
    """`gpu/<precision>/q<queries>/...` and `.../documents/...`, absolute; none on a processor."""
    if torch.cuda.is_available():
        return [*_all("7B", "bf16", full=full), *_all("7B", "nf4", full=full)]
    print("No GPU: the same steps on a tiny model on the processor, not recorded.")
    for precision in ("float32", "nf4"):
        for figure in _all("tiny", precision, full=False):
            print(f"{figure.name}: {figure.value} {figure.unit}")
    return []


def _all(shape: str, precision: str, *, full: bool) -> list[Figure]:
    local = _model(shape, precision)
    read_rate, product_rate = _read_rate(local), _product_rate(local)
    weights = sum(p.numel() * p.element_size() for p in local.model.parameters())
    figures = []
    for count in _QUERIES:
        # A step reads all weights once and multiplies them with every row: the slower is its floor.
        products = 2 * _parameters(local) * count * _SETTINGS.n_thoughts / product_rate
        floor = (_SETTINGS.max_new_tokens + 2) * max(weights / read_rate, products)
        figures += _queries(local, f"gpu/{precision}/q{count}", count, floor, compare=full or count <= 8)
    return [*figures, *_documents(local, f"gpu/{precision}/documents", product_rate)]


def _queries(local: LocalModel, name: str, count: int, floor: float, *, compare: bool) -> list[Figure]:
    embedder = ThinkingEmbedder(LocalBackend(local), settings=_SETTINGS, cache=False)
    queries = random_queries(count, SHAPES[local.name].vocabulary)
    _reset(local)

    def think() -> object:
        return embedder.encode_queries(queries, show_progress_bar=False)

    seconds = _seconds(local, think)
    tokens = count * _SETTINGS.n_thoughts * _SETTINGS.max_new_tokens
    figures = [
        Figure(name=f"{name}/queries_per_s", value=round(count / seconds, 2), unit="queries/s"),
        Figure(name=f"{name}/tokens_per_s", value=round(tokens / seconds, 1), unit="tokens/s"),
        Figure(name=f"{name}/roofline", value=round(floor / seconds, 3), unit="share"),
        Figure(name=f"{name}/peak_memory_gib", value=_peak(local), unit="GiB", better="lower"),
    ]
    if count == 1:
        figures.append(Figure(name=f"{name}/graphs_ratio", value=_graphs(local, think), unit="ratio"))
    if compare:
        other = _seconds(local, lambda: reference.encode_queries(local, queries, _SETTINGS))
        figures.append(Figure(name=f"{name}/ratio", value=round(other / seconds, 2), unit="ratio"))
    return figures


def _graphs(local: LocalModel, work: Callable[[], object]) -> float:
    """The time with steps that are launched kernel by kernel over the time with CUDA graphs."""
    shared = local.once(Shared)
    found = []
    for shared.graphs_fail in (True, False):
        found.append(_seconds(local, work))
    return round(found[0] / found[1], 2)


def _documents(local: LocalModel, name: str, product_rate: float) -> list[Figure]:
    embedder = ThinkingEmbedder(LocalBackend(local), settings=_SETTINGS, cache=False)
    words = (_DOCUMENT_TOKENS - 4, _DOCUMENT_TOKENS - 3)
    texts = random_queries(64, SHAPES[local.name].vocabulary, words=words)
    _reset(local)
    seconds = _seconds(local, lambda: embedder.encode_documents(texts, show_progress_bar=False))
    floor = 2 * _parameters(local) * len(texts) * _DOCUMENT_TOKENS / product_rate
    return [
        Figure(name=f"{name}/documents_per_s", value=round(len(texts) / seconds, 2), unit="documents/s"),
        Figure(name=f"{name}/roofline", value=round(floor / seconds, 3), unit="share"),
        Figure(name=f"{name}/peak_memory_gib", value=_peak(local), unit="GiB", better="lower"),
    ]


def _model(shape: str, precision: str) -> LocalModel:
    on_gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if on_gpu else torch.float32
    local = random_model(shape, device="cuda" if on_gpu else "cpu", dtype=dtype, packed=False)
    if precision != "nf4":
        return local
    with TemporaryDirectory() as folder:
        local.model.save_pretrained(folder)
        local.template.tokenizer.save_pretrained(folder)
        del local
        quantized = load_model(folder, LoadOptions(load_in_4bit=True))
    return replace(quantized, name=shape, stop_ids=())


def _parameters(local: LocalModel) -> int:
    """Weights that a token is multiplied with: all but the rows of the input embeddings."""
    shape = SHAPES[local.name]
    head = shape.hidden // shape.heads * shape.kv_heads
    layer = 2 * shape.hidden * (shape.hidden + head) + 3 * shape.hidden * shape.intermediate
    return shape.layers * layer + shape.hidden * shape.vocabulary


def _read_rate(local: LocalModel) -> float:
    """Bytes per second that a large tensor is read with."""
    count = _COPY_BYTES if local.device.type == "cuda" else 1 << 26
    much = torch.ones(count // 4, device=local.device)
    return count / _seconds(local, much.sum)


def _product_rate(local: LocalModel) -> float:
    """Operations per second of a large product in the model's own type."""
    size = _PRODUCT if local.device.type == "cuda" else 512
    square = torch.randn(size, size, device=local.device, dtype=local.model.dtype)
    return 2 * size**3 / _seconds(local, lambda: square @ square)


def _seconds(local: LocalModel, function: Callable[[], object], *, times: int = 3) -> float:
    """The best of some runs after one to warm up, waiting for the GPU at both ends."""
    best = float("inf")
    for run in range(times + 1):
        _wait(local)
        started = time.perf_counter()
        function()
        _wait(local)
        if run:
            best = min(best, time.perf_counter() - started)
    return best


def _wait(local: LocalModel) -> None:
    if local.device.type == "cuda":
        torch.cuda.synchronize()


def _reset(local: LocalModel) -> None:
    if local.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def _peak(local: LocalModel) -> float:
    """GiB of the GPU's memory at the highest; 0 on a processor."""
    return round(torch.cuda.max_memory_allocated() / 2**30, 2) if local.device.type == "cuda" else 0.0
