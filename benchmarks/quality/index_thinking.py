"""What a thinker that has read an index gains there, on dev and train splits, in the mean of several draws.

Run from the repository's root:

    python -m benchmarks.quality.index_thinking [DATA] --thinker FOLDER [--sets NAME,...] [--seeds 0,1,2]

MiniLM embeds, BM25 reads, and both are fused; each without thoughts, with three, and with those about another
question. Values are averaged over the draws for each question before they are compared. No test split is
read, so that a thinker may be chosen by these figures.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from benchmarks.quality.bench import MEASURE, Bench, open_bench
from benchmarks.record import Figure
from o1_retriever import ThinkingEmbedder
from o1_retriever.evaluation.comparison import Values, compare, evaluate
from o1_retriever.evaluation.controls import PAIRS, thinking_systems
from o1_retriever.evaluation.corpus import encode_corpus
from o1_retriever.evaluation.metrics import aligned
from o1_retriever.thinkers import LocalThinker

SETS = ("entailmentbank/dev", "strategyqa_facts/train", "hotpotqa_1k/train", "scifact/train")
QUERIES = 200  # of a split, the first ones


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the figures and print them."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--thinker", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    own, others = parser.parse_known_args(arguments)
    bench = open_bench(
        "benchmarks.quality.index_thinking",
        __doc__,
        [*others, "--model", "none"],
        sets=SETS,
        results="index_thinking.jsonl",
    )
    thinker = LocalThinker(own.thinker)
    embedder = ThinkingEmbedder.from_parts(thinker, bench.minilm, cache=bench.work / "thoughts")
    for name in bench.sets:
        if name.endswith("/test"):
            raise SystemExit(f"{name} is a test split: nothing is chosen there.")
        figures = list(measure(bench, name, embedder, [int(seed) for seed in own.seeds.split(",")]))
        bench.record(figures)
        for figure in figures:
            print(f"{figure.name}: {figure.value:.4f}", flush=True)
    return 0


def measure(bench: Bench, name: str, embedder: ThinkingEmbedder, seeds: Sequence[int]) -> Iterator[Figure]:
    """nDCG@10 of each system on one set, written `SET/SPLIT`, and p against the same without thoughts."""
    draws = [_values(bench, name, embedder, seed) for seed in seeds]
    values = {system: np.mean([draw[system] for draw in draws], axis=0) for system in draws[0]}
    for system, each in values.items():
        yield Figure(name=f"{name}/{_key(system)}", value=round(float(each.mean()), 4), unit=MEASURE)
    for place, seed in enumerate(seeds):
        for _, (thinking, _) in PAIRS.items():
            value = round(float(draws[place][thinking].mean()), 4)
            yield Figure(name=f"{name}/{_key(thinking)}/draw_{seed}", value=value, unit=MEASURE)
    for without, (thinking, another) in PAIRS.items():
        for label, before in (("p", without), ("p_against_anothers", another)):
            found = compare(values[before], {thinking: values[thinking]})[thinking]
            yield Figure(name=f"{name}/{_key(thinking)}/{label}", value=round(found.p, 4), unit="p")


def _values(bench: Bench, name: str, embedder: ThinkingEmbedder, seed: int) -> dict[str, Values]:
    """The measure of every query by system, for one draw of the thoughts."""
    whole = bench.collection(name)
    collection = whole.with_queries(dict(islice(whole.queries.items(), QUERIES)))
    queries, corpus = list(collection.queries.values()), collection.corpus
    encoded = encode_corpus(embedder, corpus, bench.work / "corpora")
    settings = embedder.settings.with_changes(seed=seed)
    systems = thinking_systems(embedder, queries, corpus, encoded, settings)
    found = evaluate(collection, systems, measures=[MEASURE], depth=1000)
    return {each.name: aligned(each.values[MEASURE], list(collection.qrels)) for each in found.results}


def _key(system: str) -> str:
    return system.replace("'", "").replace(" ", "_")


if __name__ == "__main__":
    import sys

    raise SystemExit(main(sys.argv[1:]))
