"""A second round of thoughts that has read the first hits, against as many thoughts in one round.

Run from the repository's root:

    python -m benchmarks.quality.rounds [DATA] [--thinker NAME] [--sets NAME,...] [--first 150]

MiniLM embeds, BM25 reads, and both are fused. The thinker writes three thoughts about each query; then three
more with the first three hits of the fused ranking before it, or three more without. No test split is read.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

from benchmarks.quality.bench import MEASURE, Bench, open_bench
from benchmarks.record import Figure
from o1_retriever import ThinkingEmbedder
from o1_retriever.evaluation.collection import Collection
from o1_retriever.evaluation.comparison import Evaluation, SystemResult, evaluate, randomisation_test
from o1_retriever.evaluation.systems import Plan
from o1_retriever.query import Query
from o1_retriever.search.result import SearchSettings
from o1_retriever.thinkers import RecordedThinker, as_thinker
from o1_retriever.thought import Thought

SETS = ("entailmentbank/dev", "hotpotqa_1k/train")
THINKER = "HuggingFaceTB/SmolLM2-135M-Instruct"
SYSTEMS = {"MiniLM": "minilm", "MiniLM + BM25": "hybrid"}
THOUGHTS = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the figures and print them."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--thinker", default=THINKER)
    parser.add_argument("--first", type=int, default=150, help="Queries of each set.")
    own, others = parser.parse_known_args(arguments)
    bench = open_bench(
        "benchmarks.quality.rounds", __doc__, [*others, "--model", "none"], sets=SETS, results="rounds.jsonl"
    )
    thinker = as_thinker(own.thinker)
    embedder = ThinkingEmbedder.from_parts(thinker, bench.minilm, cache=bench.work / "thoughts")
    for name in bench.sets:
        if name.endswith("/test"):
            raise SystemExit(f"{name} is a test split: nothing is chosen there.")
        whole = bench.collection(name)
        collection = whole.with_queries(dict(islice(whole.queries.items(), own.first)))
        found = list(figures(name, measure(bench, embedder, collection)))
        bench.record(found)
        for figure in found:
            print(f"{figure.name}: {figure.value:g} {figure.unit}", flush=True)
    return 0


def measure(bench: Bench, embedder: ThinkingEmbedder, collection: Collection) -> dict[str, Evaluation]:
    """One round of three thoughts (with the fast path beside it), one of six, and two of three."""
    queries = list(collection.queries.values())
    six = embedder.think(queries, n_thoughts=2 * THOUGHTS)
    three = {query: row[:THOUGHTS] for query, row in zip(queries, six, strict=True)}
    first = ranked(bench, collection, three)
    asked = [Query(text, passages=_read(collection, first, key)) for key, text in collection.queries.items()]
    more = embedder.think(asked, n_thoughts=THOUGHTS)
    two = {query: [*three[query], *row] for query, row in zip(queries, more, strict=True)}
    return {
        "one_round": first,
        "six_in_one": ranked(bench, collection, dict(zip(queries, six, strict=True)), fast=False),
        "two_rounds": ranked(bench, collection, two, fast=False),
        "second_alone": ranked(bench, collection, dict(zip(queries, more, strict=True)), fast=False),
    }


def ranked(
    bench: Bench, collection: Collection, thoughts: Mapping[str, Sequence[Thought]], *, fast: bool = True
) -> Evaluation:
    """Vectors, and vectors with BM25, with all of these thoughts."""
    usable = {query: [each.text for each in row if not each.failed] for query, row in thoughts.items()}
    most = max(map(len, usable.values()))
    embedder = ThinkingEmbedder.from_parts(
        RecordedThinker(usable), bench.minilm, cache=bench.work / "thoughts"
    )
    plan = Plan(thoughts=(0, most) if fast else (most,), hybrid=True, work=bench.work / "corpora")
    systems = plan.systems(collection.corpus, {"MiniLM": embedder}, embedder.settings)
    return evaluate(collection, systems, measures=[MEASURE])


def _read(collection: Collection, first: Evaluation, key: str) -> tuple[str, ...]:
    """The passages that the fused ranking has first, as a search reads them."""
    places = {identity: place for place, identity in enumerate(collection.corpus.ids)}
    found = islice(_last(first, "MiniLM + BM25").run[key], SearchSettings().rounds_read)
    return tuple(text for each in found for text in collection.corpus.texts(places[each], places[each] + 1))


def _last(evaluation: Evaluation, system: str) -> SystemResult:
    """The system with most thoughts."""
    return [each for each in evaluation.results if each.name.partition(",")[0] == system][-1]


def figures(name: str, found: Mapping[str, Evaluation]) -> Iterator[Figure]:
    """nDCG@10 of each, and what two rounds gain over one of as many thoughts."""
    base = found["one_round"]
    for system, label in SYSTEMS.items():
        plain = next(each for each in base.results if each.name.partition(",")[0] == system)
        yield Figure(name=f"{name}/{label}/never", value=round(plain.means[MEASURE], 4), unit=MEASURE)
        values = {key: _last(each, system) for key, each in found.items()}
        for key, result in values.items():
            yield Figure(name=f"{name}/{label}/{key}", value=round(result.means[MEASURE], 4), unit=MEASURE)
        for other in ("one_round", "six_in_one"):
            p = randomisation_test(base.values(values[other]), base.values(values["two_rounds"]))
            yield Figure(
                name=f"{name}/{label}/two_rounds/p_against_{other}",
                value=round(p, 4),
                unit="p",
                better="lower",
            )


if __name__ == "__main__":
    raise SystemExit(main())
