"""A training step of ours against the reference's way, and what gradient caching does to memory.

    python -m benchmarks.joint.step [--pairs 7] [--threads 2] [--part step|caching] [--small]

The reference's way runs the query with its thought twice, once for the language-model loss with logits at
every position and once for the vector, and pads all of a batch to its longest sequence. Ours runs it once,
computes logits where a thought's tokens are predicted, and cuts the batch by length. Both have the same
random Qwen2-shaped model (hidden 384, 6 layers, vocabulary 8k), the same rows and the same loss; tokens are
counted without padding, and the forward of the vector is given to the reference without its head.

Speed is the median ratio of alternated pairs of steps in one process, memory the largest resident set of a
process that makes three steps, above that of one that only loaded the model. With gradient caching, the
same peak for contrastive batches from 16 to 1024 queries in chunks of 4 times 256 tokens.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from torch.nn.functional import cross_entropy, normalize
from transformers import Qwen2Config, Qwen2ForCausalLM

from benchmarks.record import RESULTS, ROOT, Figure, record
from o1_retriever.evaluation.comparison import peak_megabytes
from o1_retriever_training.joint.batches import Batch
from o1_retriever_training.joint.model import JointModel
from o1_retriever_training.joint.recipe import LossSection
from o1_retriever_training.joint.steps import How, joint_step

VOCABULARY = 8192
LOSSES = LossSection(thinking_probability=1.0, thought_dropout=0.0, distillation_weight=0.0)
CACHED = (16, 64, 256, 1024)


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--part", choices=("step", "caching"), help="one of the two alone")
    parser.add_argument(
        "--small", action="store_true", help="a tiny model, to see that it runs; nothing is recorded"
    )
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--queries", type=int, default=8, help=argparse.SUPPRESS)
    parser.add_argument("--group", type=int, default=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.measure:
        _three_steps(options)
        return
    figures = []
    for group in (2, 16) if options.part != "caching" else ():
        figures += _against_reference(options, group)
    if options.part != "step":
        figures += _cached_memory(options)
    if not options.small:
        record(RESULTS / "joint.jsonl", figures, used=f"{options.threads} threads, float32")


def _against_reference(options: argparse.Namespace, group: int) -> list[Figure]:
    model, batches = _model(options.small), [make_batch(8, group, seed=seed) for seed in range(options.pairs)]
    ours, reference = _ours(model, None), _reference(model)
    seconds: dict[str, list[float]] = {"ours": [], "reference": []}
    losses = []
    for batch in [batches[0], *batches]:
        for name, step in (("ours", ours), ("reference", reference)):
            model.zero_grad(set_to_none=True)
            started = time.perf_counter()
            losses.append(step(batch))
            seconds[name].append(time.perf_counter() - started)
    # The first pair warms up.
    pairs = zip(seconds["reference"][1:], seconds["ours"][1:], strict=True)
    ratio = statistics.median(theirs / mine for theirs, mine in pairs)
    worst = max(abs(mine - theirs) for mine, theirs in zip(losses[::2], losses[1::2], strict=True))
    peaks = {way: _peak(options, way, 8, group) for way in ("nothing", "ours", "reference")}
    share = (peaks["ours"] - peaks["nothing"]) / (peaks["reference"] - peaks["nothing"])
    said = f"{ratio:.2f} times the reference's tokens/s, {share:.2f} of its memory"
    print(f"8 queries, {group} passages each: {said}; losses differ by at most {worst:.1e}", flush=True)
    return [
        Figure(name=f"step/group{group}/ratio", value=round(ratio, 3), unit="reference's seconds / ours"),
        Figure(
            name=f"step/group{group}/memory", value=round(share, 3), unit="ours / reference's", better="lower"
        ),
    ]


def _cached_memory(options: argparse.Namespace) -> list[Figure]:
    peaks = {count: _peak(options, "cached", count, 2) for count in CACHED}
    said = ", ".join(f"{count} queries {peak:.0f} MB" for count, peak in peaks.items())
    growth = peaks[CACHED[-1]] / peaks[CACHED[0]]
    print(f"Gradient caching, chunks of 4 x 256 tokens: {said}; {growth:.3f} times", flush=True)
    return [
        Figure(
            name="caching/1024_over_16/memory", value=round(growth, 3), unit="peak / peak", better="lower"
        ),
        *(
            Figure(name=f"caching/{count}/peak", value=round(peak), unit="MB", better="lower")
            for count, peak in peaks.items()
        ),
    ]


def make_batch(queries: int, group: int, *, seed: int) -> Batch:
    """Random rows with lengths like those of questions, thoughts and passages, in the paper layout."""
    draw = np.random.default_rng(seed)
    asked = draw.integers(8, 28, queries)
    thoughts = np.clip(draw.lognormal(4.4, 0.5, queries), 10, 220).astype(int)
    documents = np.sort(np.clip(draw.lognormal(4.3, 0.5, queries * group), 10, 190).astype(int))[::-1] + 2
    order = np.argsort(-(asked + thoughts))
    asked, thoughts = asked[order], thoughts[order]
    # <query> q <emb> <thought> t eos <emb>
    widths = asked + thoughts + 5
    labels = [(row, column) for row in range(queries) for column in range(asked[row] + 2, widths[row] - 2)]
    places = draw.permutation(queries * group)
    groups = torch.from_numpy(places.reshape(queries, group))
    rows, columns = torch.tensor(labels).T.contiguous()
    query_ids = _ids(draw, widths)
    return {
        "query_ids": query_ids,
        "vector_rows": torch.arange(queries),
        "vector_columns": torch.from_numpy(widths - 1),
        "labels": torch.stack([rows, columns, query_ids[rows, columns + 1]]),
        "document_labels": query_ids.new_zeros(3, 0),
        "document_ids": _ids(draw, documents),
        "document_ends": torch.from_numpy(documents.copy() - 1),
        "document_keys": torch.arange(1, queries * group + 1),
        "targets": groups[:, 0].contiguous(),
        "groups": groups,
        "teacher": torch.full((queries, group), torch.nan),
        "positive_keys": groups[:, :1] + 1,
        "tokens": torch.tensor(int(widths.sum() + documents.sum())),
    }


def _ids(draw: np.random.Generator, widths: np.ndarray) -> torch.Tensor:
    ids = np.zeros((len(widths), int(widths.max())), dtype=np.int64)
    for row, width in enumerate(widths):
        ids[row, :width] = draw.integers(1, VOCABULARY, width)
    return torch.from_numpy(ids)


def _model(small: bool) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    shape = (64, 2, 2, 128) if small else (384, 6, 6, 1536)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=shape[0],
        num_hidden_layers=shape[1],
        num_attention_heads=shape[2],
        num_key_value_heads=shape[2],
        intermediate_size=shape[3],
        tie_word_embeddings=True,
    )
    return Qwen2ForCausalLM(config).train()


def _ours(model: Qwen2ForCausalLM, chunk: int | None) -> Callable[[Batch], float]:
    joint = JointModel(model, model)
    how = How(tokens=chunk and chunk * 256)
    return lambda batch: float(joint_step(joint, batch, LOSSES, how)["loss"])


def _reference(model: Qwen2ForCausalLM) -> Callable[[Batch], float]:
    def step(batch: Batch) -> float:
        ids, ends = batch["query_ids"], batch["vector_columns"]
        mask = (torch.arange(ids.shape[1])[None] <= ends[:, None]).long()
        labels = torch.full_like(ids, -100)
        rows, columns, ids_there = batch["labels"]
        labels[rows, columns + 1] = ids_there
        generation = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
        queries = _embedded(model, ids, mask, ends)
        document_ends = batch["document_ends"]
        documents = batch["document_ids"]
        seen = (torch.arange(documents.shape[1])[None] <= document_ends[:, None]).long()
        scores = queries @ _embedded(model, documents, seen, document_ends).T / LOSSES.temperature
        contrastive = cross_entropy(scores, batch["targets"])
        share = LOSSES.contrastive_weight
        loss = share * contrastive + (1 - share) * generation
        loss.backward()
        return float(loss.detach())

    return step


def _embedded(
    model: Qwen2ForCausalLM, ids: torch.Tensor, mask: torch.Tensor, ends: torch.Tensor
) -> torch.Tensor:
    hidden = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    return normalize(hidden[torch.arange(len(ids)), ends], dim=-1)


def _peak(options: argparse.Namespace, way: str, queries: int, group: int) -> float:
    """Largest resident set in MB of a process that makes three steps."""
    command = [sys.executable, "-m", "benchmarks.joint.step", "--measure", way, "--queries", str(queries)]
    command += ["--group", str(group), "--threads", str(options.threads)]
    command += ["--small"] if options.small else []
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def _three_steps(options: argparse.Namespace) -> None:
    model = _model(options.small)
    ways: dict[str, Callable[[Batch], float]] = {
        "nothing": lambda batch: 0.0,
        "ours": _ours(model, None),
        "cached": _ours(model, 4),
        "reference": _reference(model),
    }
    for seed in range(3 if options.measure != "cached" else 1):
        ways[options.measure](make_batch(options.queries, options.group, seed=seed))
    print(peak_megabytes() or 0.0)


if __name__ == "__main__":
    main()
