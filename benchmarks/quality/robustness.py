"""The quality table again under other wordings of the queries: typos, synonyms, upper and lower case.

Run from the repository's root:

    python -m benchmarks.quality.robustness [DATA] [--model models/o1-embedder-22m] [--sets scifact/test,...]

Sets with recorded thoughts, written `SET/SPLIT`; only queries with thoughts take part. Recorded thoughts are
those written about the original wording; o1-embedder-22m reads the other wording and thinks again.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.quality.bench import MEASURE, Bench, open_bench, systems
from benchmarks.quality.pages import GAINS
from benchmarks.record import Figure
from o1_retriever.evaluation.collection import Collection
from o1_retriever.evaluation.comparison import evaluate
from o1_retriever.evaluation.sources import WORDINGS, variants

SETS = ("entailmentbank/test", "strategyqa_facts/train", "hotpotqa_1k/train", "scifact/test")
PLAIN = "as_written"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the figures and print them."""
    bench = open_bench(
        "benchmarks.quality.robustness", __doc__, arguments, sets=SETS, results="robustness.jsonl"
    )
    for name in bench.sets:
        original, _ = bench.with_thoughts(name)
        names = [PLAIN, *(wording.replace(" ", "_") for wording in WORDINGS)]
        for wording, variant in zip(names, variants(original), strict=True):
            figures = measure(bench, name, variant, original=original, wording=wording)
            bench.record(figures)
            for figure in figures:
                print(f"{figure.name}: {figure.value:.4f}", flush=True)
    return 0


def measure(
    bench: Bench, name: str, variant: Collection, *, original: Collection, wording: str
) -> list[Figure]:
    """Every system under one wording, and what thinking gains in each pair of systems."""
    compared = systems(bench, variant, bench.recorded(name), original=original)
    done = evaluate(variant, compared, measures=[MEASURE], depth=10)
    means = {result.name: result.means[MEASURE] for result in done.results}
    where = f"{name}/{wording}"
    figures = [
        Figure(name=f"{where}/{key}", value=round(value, 4), unit=MEASURE) for key, value in means.items()
    ]
    return figures + [
        Figure(name=f"{where}/gain/{key}", value=round(means[key] - means[base], 4), unit=MEASURE)
        for key, base in GAINS.items()
        if key in means
    ]


if __name__ == "__main__":
    raise SystemExit(main())
