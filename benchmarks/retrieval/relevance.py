"""How true the probabilities are that `min_relevance` cuts by, on dev and train splits.

Run from the repository's root:

    python -m benchmarks.retrieval.relevance [DATA] [--sets SET/SPLIT,...] [--first N] [--work FOLDER]

Each set is calibrated on one half of its questions, by the same function as `o1-retriever calibrate`, and its
probabilities are compared with the judgments of the other half, and of the other sets. Questions of another
set, about which nothing is in the index, tell how often the answer is honestly empty. MiniLM, fused with BM25
and without, with recorded thoughts of a strong model. No test split is read.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack

import numpy as np

from benchmarks.record import Figure, record
from benchmarks.retrieval.measure import Bench, opened
from benchmarks.retrieval.run import minilm, options_of
from o1_retriever.evaluation.calibration import calibrate, calibration_error
from o1_retriever.search.relevance import Relevance, kind
from o1_retriever.search.result import SearchResult

SETS = ("entailmentbank/dev", "strategyqa_facts/train", "scifact/train", "hotpotqa_1k/train")
LEAST = 0.5  # the cut-off of which the shares are told
K = 10


def main(arguments: Sequence[str] | None = None) -> int:
    """Calibrate on one half of each set, measure on all others, write the figures and print them."""
    options = options_of("relevance", __doc__, SETS, arguments)
    if not (options.data / "eval").is_dir():
        print(f"There is no folder {options.data / 'eval'}: nothing is measured.", file=sys.stderr)
        return 1
    encoder = minilm()
    with ExitStack() as stack:
        sets = [
            stack.enter_context(opened(options.data, name, options.work, encoder, first=options.first))
            for name in options.sets
        ]
        for hybrid in (False, True):
            fitted = {bench.name: _fitted(bench, hybrid) for bench in sets}
            for bench in sets:
                figures = list(_figures(bench, fitted, hybrid, sets))
                record(options.results, figures)
                for figure in figures:
                    print(f"{figure.name}: {figure.value:g} {figure.unit}", flush=True)
    return 0


def _halves(bench: Bench) -> tuple[list[str], list[str]]:
    """The keys of the questions to calibrate on, and of the others."""
    keys = list(bench.collection.queries)
    return keys[::2], keys[1::2]


def _relevant(bench: Bench, key: str) -> list[str]:
    return [document for document, grade in bench.collection.qrels[key].items() if grade > 0]


def _fitted(bench: Bench, hybrid: bool) -> Mapping[str, Relevance]:
    """What the first half of the questions says, kept beside the index too."""
    own, _ = _halves(bench)
    asked = {bench.collection.queries[key]: _relevant(bench, key) for key in own}
    found = calibrate(bench.retriever, asked, hybrid=hybrid)
    found.keep(bench.retriever.index)
    return found.relevance


def _figures(
    bench: Bench, fitted: Mapping[str, Mapping[str, Relevance]], hybrid: bool, sets: Sequence[Bench]
) -> Iterator[Figure]:
    """Of the half that was not calibrated on, with and without thoughts."""
    _, others = _halves(bench)
    texts = [bench.collection.queries[key] for key in others]
    for thinking, weight in (("always", 0.0), ("never", None)):
        found = bench.retriever.search_many(
            texts, k=K, hybrid=hybrid, thinking=thinking, min_relevance=0.0, show_progress_bar=False
        )
        labels = np.array(
            [
                float(hit.id in relevant)
                for key, result in zip(others, found, strict=True)
                for relevant in [set(_relevant(bench, key))]
                for hit in result
            ]
        )
        name = f"relevance/{bench.name}/{'hybrid' if hybrid else 'vectors'}/{thinking}"
        for whose, relevance in fitted.items():
            told = np.concatenate(
                [relevance[kind(hybrid, "mean", weight)].probabilities(result.hits) for result in found]
            )
            label = name if whose == bench.name else f"{name}/fitted_on/{whose}"
            yield from _reliability(label, told, labels)
            if whose == bench.name:
                yield from _kept(name, told, labels, found)
        base = labels.mean()
        yield Figure(name=f"{name}/base_rate", value=round(float(base), 4), unit="share of hits")
        yield Figure(
            name=f"{name}/brier_of_base_rate",
            value=round(float(base * (1 - base)), 4),
            unit="mean squared error",
            better="lower",
        )
    yield from _empty(bench, hybrid, texts, sets)


def _reliability(name: str, told: np.ndarray, labels: np.ndarray) -> Iterator[Figure]:
    brier = round(float(((told - labels) ** 2).mean()), 4)
    yield Figure(name=f"{name}/brier", value=brier, unit="mean squared error", better="lower")
    error = round(calibration_error(told, labels), 4)
    yield Figure(name=f"{name}/calibration_error", value=error, unit="probability", better="lower")


def _kept(name: str, told: np.ndarray, labels: np.ndarray, found: Sequence[SearchResult]) -> Iterator[Figure]:
    """Of the hits that reach the cut-off, how many are relevant; of the relevant ones, how many reach it."""
    kept = told >= LEAST
    right = float(labels[kept].mean()) if kept.any() else float("nan")
    if kept.any():
        yield Figure(name=f"{name}/kept/precision", value=round(right, 3), unit=f"share, at {LEAST:g}")
    yield Figure(
        name=f"{name}/kept/recall",
        value=round(float(kept[labels > 0].mean()), 3),
        unit=f"share of the relevant hits, at {LEAST:g}",
    )
    ends = np.cumsum([len(result) for result in found])[:-1]
    empty = float(np.mean([not part.any() for part in np.split(kept, ends)]))
    yield Figure(
        name=f"{name}/empty",
        value=round(empty, 3),
        unit=f"share of questions with an answer, at {LEAST:g}",
        better="lower",
    )


def _empty(bench: Bench, hybrid: bool, texts: Sequence[str], sets: Sequence[Bench]) -> Iterator[Figure]:
    """How often nothing is found for questions of another collection, asked without thoughts."""
    for other in sets:
        if other is bench:
            continue
        found = bench.retriever.search_many(
            other.queries[: len(texts)],
            k=K,
            hybrid=hybrid,
            thinking="never",
            min_relevance=LEAST,
            show_progress_bar=False,
        )
        yield Figure(
            name=f"relevance/{bench.name}/{'hybrid' if hybrid else 'vectors'}/empty_for/{other.name}",
            value=round(float(np.mean([not result for result in found])), 3),
            unit=f"share of questions without an answer, at {LEAST:g}",
        )


if __name__ == "__main__":
    raise SystemExit(main())
