"""What a model of this machine gains by its thoughts, on dev and train splits, as it comes or trained for it.

Run from the repository's root:

    python -m benchmarks.quality.local_models [DATA] [--thinker NAME] [--seeds 0,1,2] [--sets NAME,...]
        [--queries N] [--label LABEL] [--report] [--speeds --threads 2]

The thinker may be an address; a label other than "local" keeps its figures apart from those of the default.

MiniLM embeds, BM25 reads, and both are fused: each without thoughts, with three that the thinker writes with
its own prompt and settings, and with those about another query. With several seeds the values of each query
are averaged over the draws. No test split is read, so that defaults, and a thinker, may be chosen by these
figures; `--report` reads those of all five sets, when nothing is left to choose, and counts in how many of
them thinking wins (`index_thinking/...`, Holm's correction over the sets). `--speeds` measures instead what
one query costs with three thoughts, three short ones, one and none, what its vector finds then, and how the
thoughts end.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from benchmarks.quality.bench import MEASURE, Bench, open_bench
from benchmarks.quality.pages import LEVEL
from benchmarks.quality.pages import SETS as REPORTED
from benchmarks.record import Figure
from o1_retriever import ThinkingEmbedder, ThoughtSettings
from o1_retriever.evaluation.collection import encode_corpus
from o1_retriever.evaluation.comparison import Values, evaluate, holm, randomisation_test
from o1_retriever.evaluation.controls import FAST, PAIRS, thinking_systems
from o1_retriever.evaluation.metrics import aligned
from o1_retriever.thinkers import as_thinker

SETS = ("entailmentbank/dev", "strategyqa_facts/train")
THINKER = "HuggingFaceTB/SmolLM2-135M-Instruct"
QUERIES = 200  # of a split, the first ones; a report has all
# What differs from the thinker's own settings.
SPEEDS: dict[str, dict[str, Any]] = {
    "full": {},
    "short": {"max_new_tokens": 16},
    "one": {"n_thoughts": 1},
    "fast": {"thinking": "never"},
}
TIMED = 40  # queries, after some that warm the models up
_WARM = 3
_NAMES = {"dense": "minilm", "bm25": "bm25", "hybrid": "hybrid"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the figures and print them."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--thinker", default=THINKER)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--queries", type=int, default=QUERIES)
    parser.add_argument("--label", default="local")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--speeds", action="store_true")
    own, others = parser.parse_known_args(arguments)
    bench = open_bench(
        "benchmarks.quality.local_models",
        __doc__,
        [*others, "--model", "none"],
        sets=[f"{name}/test" for name in REPORTED] if own.report else SETS,
        results="index_thinking.jsonl" if own.report or own.speeds else "local_models.jsonl",
    )
    thinker = as_thinker(own.thinker)
    embedder = ThinkingEmbedder.from_parts(thinker, bench.minilm, cache=bench.work / "thoughts")
    if own.speeds:
        fresh = ThinkingEmbedder.from_parts(thinker, bench.minilm, cache=False)
        for figure in speeds(bench, bench.sets[0], embedder, fresh, own.label):
            print(f"{figure.name}: {figure.value:.4f} {figure.unit}", flush=True)
            bench.record([figure])
        return 0
    compared: dict[str, list[Figure]] = {}
    for name in bench.sets:
        if name.endswith("/test") and not own.report:
            raise SystemExit(f"{name} is a test split: nothing is chosen there.")
        seeds, count = [int(seed) for seed in own.seeds.split(",")], None if own.report else own.queries
        compared[name] = list(measure(bench, name, embedder, seeds, queries=count, label=own.label))
        bench.record(compared[name])
        for figure in compared[name]:
            print(f"{figure.name}: {figure.value:.4f}", flush=True)
    if own.report and len(compared) == len(REPORTED):
        bench.record(wins := list(_wins(compared, own.label)))
        for figure in wins:
            print(f"{figure.name}: {figure.value:.0f} {figure.unit}")
    return 0


def measure(
    bench: Bench,
    name: str,
    embedder: ThinkingEmbedder,
    seeds: Sequence[int],
    *,
    queries: int | None = QUERIES,
    label: str = "local",
) -> Iterator[Figure]:
    """nDCG@10 of each system on one set, written `SET/SPLIT`, and p against the same without thoughts.

    Where there are several draws, also what each came to.
    """
    draws = [_values(bench, name, embedder, queries, seed=seed) for seed in seeds]
    if FAST in draws[0]:  # no thought, so no draw
        fast, alone = draws[0][FAST], draws[0]["dense"]
        gain = np.mean([draw[PAIRS["dense"][0]].mean() for draw in draws]) - alone.mean()
        yield _figure(key := f"{name}/minilm_{label}_fast", [float(fast.mean())])
        yield Figure(name=f"{key}/p", value=round(randomisation_test(fast, alone), 4), unit="p")
        share = round(float((fast.mean() - alone.mean()) / gain), 2)
        yield Figure(name=f"{key}/share", value=share, unit="of the gain with thoughts")
    for system, (own, others) in PAIRS.items():
        plain = f"{name}/{_NAMES[system]}"
        thinks = f"{plain}_{label}"
        without = plain if label == "local" else f"{plain}_for_{label}"  # perhaps of fewer queries
        for key, figure in ((system, without), (own, thinks), (others, f"{thinks}_others")):
            yield _figure(figure, [float(draw[key].mean()) for draw in draws])
        for seed, draw in zip(seeds, draws, strict=True) if len(seeds) > 1 else ():
            yield _figure(f"{thinks}/draw_{seed}", [float(draw[own].mean())])
        mean = {key: np.mean([draw[key] for draw in draws], axis=0) for key in (system, own, others)}
        compared = {
            f"{thinks}/p": (own, system),
            f"{thinks}_others/p": (others, system),
            f"{thinks}/p_against_others": (own, others),
        }
        for figure, (one, other) in compared.items():
            yield Figure(name=figure, value=round(randomisation_test(mean[one], mean[other]), 4), unit="p")


def speeds(
    bench: Bench, name: str, embedder: ThinkingEmbedder, fresh: ThinkingEmbedder, label: str
) -> Iterator[Figure]:
    """Milliseconds of a query (p50) and nDCG@10 by vectors, by speed, and how the thoughts of each end.

    `fresh` keeps nothing, and is what is timed.
    """
    queries = list(bench.collection(name).queries.values())
    for speed, changes in SPEEDS.items():
        key, settings = f"index_thinking/{label}/{speed}", fresh.settings.with_changes(**changes)
        spent = [_seconds(fresh, query, settings) for query in queries[: _WARM + TIMED]][_WARM:]
        p50 = round(1000 * float(np.median(spent)), 1)
        yield Figure(name=f"{key}/p50_ms", value=p50, unit="ms", better="lower")
        never = settings.thinking == "never"
        found = _values(bench, name, embedder, None, **({} if never else changes))
        yield _figure(f"{key}/{name}/minilm", [float(found[FAST if never else PAIRS["dense"][0]].mean())])
        if never:
            continue
        written = [thought for own in embedder.think(queries, settings=settings) for thought in own]
        ended = sum(thought.finish == "eos" for thought in written) / len(written)
        circles = sum("circles" in (thought.dropped or "") for thought in written) / len(written)
        yield Figure(name=f"{key}/end_by_themselves", value=round(ended, 4), unit="share of thoughts")
        yield Figure(name=f"{key}/loops", value=round(circles, 4), unit="share of thoughts", better="lower")


def _seconds(embedder: ThinkingEmbedder, query: str, settings: ThoughtSettings) -> float:
    began = time.perf_counter()
    embedder.embed_query(query, settings=settings)
    return time.perf_counter() - began


def _wins(compared: Mapping[str, Sequence[Figure]], label: str) -> Iterator[Figure]:
    """In how many sets thinking is better, or worse, than none, and better than another query's thoughts."""
    found = {name: {each.name: each.value for each in figures} for name, figures in compared.items()}
    unit = f"of {len(found)} sets, p < {LEVEL}, Holm"
    for system in _NAMES.values():
        gains = {"thinking_wins": 0, "thinking_loses": 0, "own_thoughts_beat_anothers": 0}
        for other, suffix in (
            (f"{system}_for_{label}", "p"),
            (f"{system}_{label}_others", "p_against_others"),
        ):
            p_values = holm([found[name][f"{name}/{system}_{label}/{suffix}"] for name in found])
            for name, p in zip(found, p_values, strict=True):
                gain = found[name][f"{name}/{system}_{label}"] - found[name][f"{name}/{other}"]
                if p < LEVEL and suffix == "p":
                    gains["thinking_wins" if gain > 0 else "thinking_loses"] += 1
                elif p < LEVEL and gain > 0:
                    gains["own_thoughts_beat_anothers"] += 1
        for key, count in gains.items():
            better = "lower" if key == "thinking_loses" else "higher"
            yield Figure(
                name=f"index_thinking/{system}/sets_where_{key}", value=count, unit=unit, better=better
            )


def _figure(name: str, values: Sequence[float]) -> Figure:
    return Figure(name=name, value=round(float(np.mean(values)), 4), unit=MEASURE)


def _values(
    bench: Bench, name: str, embedder: ThinkingEmbedder, count: int | None, **changes: Any
) -> dict[str, Values]:
    """The measure of every query by system; `changes` are of the settings."""
    whole = bench.collection(name)
    collection = whole.with_queries(dict(islice(whole.queries.items(), count)))
    queries, corpus = list(collection.queries.values()), collection.corpus
    encoded = encode_corpus(embedder, corpus, bench.work / "corpora")
    settings = embedder.settings.with_changes(**changes)
    systems = thinking_systems(embedder, queries, corpus, encoded, settings)
    found = evaluate(collection, systems, measures=[MEASURE], depth=1000)
    return {each.name: aligned(each.values[MEASURE], list(collection.qrels)) for each in found.results}


if __name__ == "__main__":
    import sys

    raise SystemExit(main(sys.argv[1:]))
