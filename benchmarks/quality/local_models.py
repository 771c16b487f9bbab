"""What an untrained small model of this machine gains by its thoughts, on dev and train splits.

Run from the repository's root:

    python -m benchmarks.quality.local_models [DATA] [--sets NAME,...]

MiniLM embeds; the thinker writes three thoughts with its default prompt and settings. The control embeds each
query with the thoughts about another one. No test split is read, so that defaults may follow these figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from benchmarks.quality.bench import MEASURE, Bench, open_bench
from benchmarks.record import Figure
from o1_retriever import ThinkingEmbedder, ThoughtSettings
from o1_retriever.evaluation.collection import Collection
from o1_retriever.evaluation.comparison import evaluate, randomisation_test
from o1_retriever.evaluation.controls import with_other_thoughts
from o1_retriever.evaluation.corpus import encode_corpus
from o1_retriever.evaluation.systems import NEVER, Dense, Hybrid, Lexical, System, bm25_over
from o1_retriever.thinkers import as_thinker

SETS = ("entailmentbank/dev", "strategyqa_facts/train")
THINKER = "HuggingFaceTB/SmolLM2-135M-Instruct"
QUERIES = 200  # of a split, the first ones


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the figures and print them."""
    bench = open_bench(
        "benchmarks.quality.local_models",
        __doc__,
        [*(arguments or ()), "--model", "none"],
        sets=SETS,
        results="local_models.jsonl",
    )
    embedder = ThinkingEmbedder.from_parts(as_thinker(THINKER), bench.minilm, cache=bench.work / "thoughts")
    for name in bench.sets:
        if name.endswith("/test"):
            raise SystemExit(f"{name} is a test split: nothing is chosen there.")
        figures = list(measure(bench, name, embedder))
        bench.record(figures)
        for figure in figures:
            print(f"{figure.name}: {figure.value:.4f}", flush=True)
    return 0


def measure(bench: Bench, name: str, embedder: ThinkingEmbedder) -> Iterator[Figure]:
    """nDCG@10 of each system on one set, written `SET/SPLIT`, and p against the same without thoughts."""
    whole = bench.collection(name)
    collection = whole.with_queries(dict(islice(whole.queries.items(), QUERIES)))
    evaluation = evaluate(collection, systems(bench, collection, embedder), measures=[MEASURE], depth=1000)
    for result in evaluation.results:
        yield Figure(name=f"{name}/{result.name}", value=round(result.means[MEASURE], 4), unit=MEASURE)
    for system, without in _PAIRS.items():
        gains, without_gains = (
            np.array([evaluation[key].values[MEASURE][query] for query in collection.queries])
            for key in (system, without)
        )
        yield Figure(
            name=f"{name}/{system}/p", value=round(randomisation_test(gains, without_gains), 4), unit="p"
        )


# Systems that think, and the one without thoughts that each is compared with.
_PAIRS = {
    "minilm_local": "minilm",
    "minilm_local_others": "minilm",
    "bm25_local": "bm25",
    "hybrid_local": "hybrid",
}


def systems(bench: Bench, collection: Collection, embedder: ThinkingEmbedder) -> list[System]:
    """MiniLM, BM25 and both, each with and without the local thoughts, and MiniLM with another query's."""
    corpus = collection.corpus
    encoded = encode_corpus(embedder, corpus, bench.work / "corpora")
    others = with_other_thoughts(embedder, list(collection.queries.values()))
    always, bm25 = embedder.settings, bm25_over(corpus)

    def dense(name: str, who: ThinkingEmbedder, settings: ThoughtSettings) -> Dense:
        return Dense(name=name, embedder=who, corpus=corpus, encoded=encoded, settings=settings)

    plain, thinking = dense("minilm", embedder, NEVER), dense("minilm_local", embedder, always)
    words = Lexical(name="bm25", corpus=corpus, index=bm25)
    more_words = Lexical(name="bm25_local", corpus=corpus, index=bm25, embedder=embedder, settings=always)
    return [
        plain,
        thinking,
        dense("minilm_local_others", others, always),
        words,
        more_words,
        Hybrid(name="hybrid", corpus=corpus, parts=[plain, words]),
        Hybrid(name="hybrid_local", corpus=corpus, parts=[thinking, more_words]),
    ]


if __name__ == "__main__":
    import sys

    raise SystemExit(main(sys.argv[1:]))
