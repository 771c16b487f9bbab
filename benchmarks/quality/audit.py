"""Own thoughts against controls on dev and train splits: is it what the thoughts say that helps?

Run from the repository's root:

    python -m benchmarks.quality.audit [DATA] [--sets NAME,...] [--thinker NAME]

MiniLM embeds, BM25 reads, and both are fused, with three thoughts a query: recorded ones of a strong model,
or those of `--thinker`, about the queries that have recorded ones. No test split is read.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

from benchmarks.quality.bench import MEASURE, Bench, open_bench
from benchmarks.record import Figure
from o1_retriever import ThinkingEmbedder
from o1_retriever.evaluation.comparison import ALONE, EMPTY, OTHERS, RANDOM, REPEATED, Evaluation, evaluate
from o1_retriever.evaluation.controls import audited
from o1_retriever.evaluation.report import write_report
from o1_retriever.evaluation.systems import Plan

SETS = ("entailmentbank/dev", "strategyqa_facts/train", "hotpotqa_1k/train", "scifact/train")
SYSTEMS = {"MiniLM": "minilm", "MiniLM + BM25": "hybrid", "BM25": "bm25"}
AGAINST = {ALONE: "alone", OTHERS: "others", EMPTY: "empty", REPEATED: "repeated", RANDOM: "random"}
THOUGHTS = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the figures, and print what each system comes to."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--thinker", help="Who thinks instead of the recorded strong model.")
    own, others = parser.parse_known_args(arguments)
    bench = open_bench(
        "benchmarks.quality.audit", __doc__, [*others, "--model", "none"], sets=SETS, results="audit.jsonl"
    )
    for name in bench.sets:
        if name.endswith("/test"):
            raise SystemExit(f"{name} is a test split: nothing is chosen there.")
        found = measure(bench, name, own.thinker)
        bench.record(figures(f"{name}/{'local' if own.thinker else 'recorded'}", found))
        write_report(found, bench.work / "audit")
        for system in found.audit.compared if found.audit else ():
            print(f"{name}, {system}: {found.audit.sentence(system) if found.audit else ''}", flush=True)
    return 0


def measure(bench: Bench, name: str, thinker: str | None) -> Evaluation:
    """The audit of one set, written `SET/SPLIT`."""
    collection, thoughts = bench.with_thoughts(name)
    embedder = ThinkingEmbedder.from_parts(
        thinker or thoughts,  # type: ignore[arg-type]  # a mapping is a record
        bench.minilm,
        cache=bench.work / "thoughts",
    )
    settings = embedder.settings.with_changes(n_thoughts=THOUGHTS)
    plan = Plan(thoughts=(0, THOUGHTS), hybrid=True, bm25=True, work=bench.work / "corpora")
    embedders = {"MiniLM": embedder}
    systems = plan.systems(collection.corpus, embedders, settings)
    return audited(evaluate(collection, systems, measures=[MEASURE]), plan, embedders, settings)


def figures(name: str, found: Evaluation) -> Iterator[Figure]:
    """nDCG@10 with own thoughts and with each control, p and effect size of the gain."""
    audit = found.audit
    assert audit is not None
    for system, row in audit.compared.items():
        label = f"{name}/{SYSTEMS[system.partition(',')[0]]}"
        yield Figure(name=f"{label}/own", value=round(found[system].means[MEASURE], 4), unit=MEASURE)
        for other, compared in row.items():
            key = f"{label}/{AGAINST[other]}"
            yield Figure(name=key, value=round(audit.means[system][other], 4), unit=MEASURE)
            yield Figure(name=f"{key}/p", value=round(compared.p_corrected, 4), unit="p", better="lower")
            yield Figure(name=f"{key}/effect", value=round(compared.effect, 3), unit="Cohen's d")


if __name__ == "__main__":
    raise SystemExit(main())
