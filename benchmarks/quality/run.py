"""The README's quality table: nDCG@10 on the test splits of the evaluation data.

Run from the repository's root:

    python -m benchmarks.quality.run [DATA] [--model models/o1-embedder-22m] [--sets scifact,...]
    python -m benchmarks.quality.pages      # then the tables of the README and of docs/ follow the figures

DATA (default ../shared/data) holds `eval/<set>` in BEIR format and `expert_thoughts/<set>.test.jsonl`.
Document vectors and thoughts are kept in the work folder, so that only what changed is computed again and
a run that was stopped goes on where it was.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from benchmarks.quality.bench import MEASURE, Bench, open_bench, systems
from benchmarks.quality.examples import write_examples
from benchmarks.quality.pages import LEVEL, P_VALUE, SETS, WINS, quality_table
from benchmarks.record import Figure, read
from o1_retriever.evaluation.comparison import Evaluation, evaluate, holm, randomisation_test
from o1_retriever.evaluation.metrics import aligned, write_run


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the figures and print the table."""
    bench = open_bench("benchmarks.quality.run", __doc__, arguments, sets=list(SETS), results="quality.jsonl")
    done = {}
    for name in bench.sets:
        done[name] = measure(bench, name)
        bench.record(_figures(name, done[name]))
    if bench.model is not None and set(done) == set(SETS):
        bench.record(_thinking(done))
        write_examples(bench.results.with_name("examples.jsonl"), done)
    print(quality_table(read(bench.results)))
    return 0


def measure(bench: Bench, name: str) -> Evaluation:
    """All systems on the test split of one set; the runs are left in the work folder."""
    collection = bench.collection(name)
    evaluation = evaluate(
        collection, systems(bench, collection, bench.recorded(name), control=True), measures=[MEASURE]
    )
    for result in evaluation.results:
        print(f"{name}/{result.name}: {result.means[MEASURE]:.4f}", file=sys.stderr)
        path = bench.work / "runs" / f"{name}.{result.name}.trec"
        write_run(path, result.run, tag=result.name, queries=collection.queries, thoughts=result.thoughts)
    return evaluation


def _figures(name: str, evaluation: Evaluation) -> list[Figure]:
    figures = []
    for result in evaluation.results:
        key = f"{name}/{result.name}"
        figures.append(Figure(name=key, value=round(result.means[MEASURE], 4), unit=MEASURE))
        if result.name.startswith("o1_embedder_22m_"):
            tokens, ms = round(result.cost.thought_tokens, 1), round(result.cost.ms_per_query, 1)
            figures.append(Figure(name=f"{key}/tokens", value=tokens, unit="tokens a query", better="lower"))
            if not result.cost.cached:  # thoughts that were kept take no time
                figures.append(Figure(name=f"{key}/ms", value=ms, unit="ms a query", better="lower"))
    return figures


def _thinking(done: Mapping[str, Evaluation]) -> list[Figure]:
    """Thinking against the fast path of o1-embedder-22m: the p-value in each set, and in how many it wins."""
    p_values = _p_values(done)
    gains = {
        name: evaluation["o1_embedder_22m_thinking"].means[MEASURE]
        - evaluation["o1_embedder_22m_fast"].means[MEASURE]
        for name, evaluation in done.items()
    }
    wins = sum(gains[name] > 0 and p_values[name] < LEVEL for name in done)
    unit = f"p, paired randomisation, Holm over {len(done)} sets"
    figures = [
        Figure(name=f"{name}/{P_VALUE}", value=round(p, 5), unit=unit, better="lower")
        for name, p in p_values.items()
    ]
    return [*figures, Figure(name=WINS, value=wins, unit=f"of {len(done)} sets, p < {LEVEL}")]


def _p_values(done: Mapping[str, Evaluation]) -> dict[str, float]:
    raw = []
    for evaluation in done.values():
        queries = list(evaluation.collection.qrels)
        fast, thinking = (
            aligned(evaluation[name].values[MEASURE], queries)
            for name in ("o1_embedder_22m_fast", "o1_embedder_22m_thinking")
        )
        raw.append(randomisation_test(fast, thinking))
    return dict(zip(done, holm(raw), strict=True))


if __name__ == "__main__":
    raise SystemExit(main())
