"""Peak memory of every stage by the number of rows.

    python -m benchmarks.synthesis.memory [--rows 10000 1000000]

Each stage runs in a process of its own over generated rows: synthesis with three candidates by a function,
a vote by BM25, negatives from 1000 documents, and the quality page. Recorded are the processes' largest
resident sets, and for the largest number the rows per second.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.record import RESULTS, ROOT, Figure, record
from o1_retriever.evaluation.comparison import peak_megabytes

STAGES = ("synthesize", "vote", "negatives", "quality page")
FILES = ("pairs", "thoughts", "voted", "train")


def main() -> None:
    """Run all stages for each number of rows, and record what they took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        _run(options.stage, options.folder)
        return
    for count in options.rows:
        with tempfile.TemporaryDirectory() as name:
            _measure(Path(name), count)


def _measure(folder: Path, count: int) -> None:
    _write(folder, count)
    for stage in STAGES:
        command = [
            sys.executable,
            "-m",
            "benchmarks.synthesis.memory",
            "--stage",
            stage,
            "--folder",
            str(folder),
        ]
        started = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        rate = count / (time.perf_counter() - started)
        peak = round(float(done.stdout.split()[-1]))
        print(f"{stage}, {count:,} rows: {peak} MB, {rate:,.0f} rows/s", flush=True)
        figures = [
            Figure(name=f"memory/{stage}/{count} rows", value=peak, unit="MB at the peak", better="lower"),
            Figure(name=f"rate/{stage}/{count} rows", value=round(rate), unit="rows/s, start included"),
        ]
        record(RESULTS / "synthesis.jsonl", figures)


def _write(folder: Path, count: int) -> None:
    generator = random.Random(0)
    words = [f"word{number}" for number in range(20_000)]
    with (folder / "corpus.jsonl").open("w") as corpus:
        for _ in range(1000):
            corpus.write(json.dumps({"text": " ".join(generator.choices(words, k=40))}) + "\n")
    with (folder / "pairs.jsonl").open("w") as pairs:
        for number in range(count):
            query, positive = (" ".join(generator.choices(words, k=size)) for size in (8, 24))
            pairs.write(json.dumps({"id": number, "query": query, "pos": [positive]}) + "\n")


def _run(stage: str, folder: Path) -> None:
    before, after = (folder / f"{name}.jsonl" for name in _ends(stage))
    if stage == "synthesize":
        from o1_retriever.thinkers import CallableThinker
        from o1_retriever_training.experts import ThinkerExpert
        from o1_retriever_training.synthesize import Options, synthesize

        thinker = CallableThinker(_think, name="generated")
        expert = ThinkerExpert(thinker, batch=256)
        synthesize(before, after, experts=expert, options=Options(show=False))
    elif stage == "vote":
        from o1_retriever_training.vote import vote

        vote(before, after, committee=["bm25"], show=False)
    elif stage == "negatives":
        from o1_retriever_training.negatives import mine_negatives
        from o1_retriever_training.synthesize import Options

        mine_negatives(before, after, corpus=folder / "corpus.jsonl", options=Options(show=False))
    else:
        from o1_retriever_training.pages import write_page

        write_page(before, folder / "page.html")
    print(peak_megabytes() or 0.0)


def _think(queries: list[str], k: int) -> list[list[str]]:
    return [[f"{query} {number}" for number in range(k)] for query in queries]


def _ends(stage: str) -> tuple[str, str]:
    place = STAGES.index(stage)
    return FILES[place], FILES[min(place + 1, len(FILES) - 1)]


if __name__ == "__main__":
    main()
