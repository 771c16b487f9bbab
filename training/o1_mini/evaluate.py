"""Step 5: nDCG@10 of a model folder, fast and thinking, beside all-MiniLM-L6-v2.

```
python training/o1_mini/evaluate.py --model FOLDER --split dev --samples 10
python training/o1_mini/evaluate.py --model models/o1-mini --split test --out RESULTS.jsonl
```

`dev` reads entailmentbank's dev split and a sample of the train queries of three other collections: choose on
these. `test` is for the report only.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from beir import Collection, Vectors, kept, load_collection, ndcg
from teacher import Teacher

from o1_retriever import ThinkingEmbedder

DEV = (
    ("entailmentbank", "dev"),
    ("strategyqa_facts", "train"),
    ("scifact", "train"),
    ("hotpotqa_1k", "train"),
)
TEST = tuple(
    (name, "test") for name in ("scifact", "hotpotqa_1k", "strategyqa_facts", "entailmentbank", "qasc_2hop")
)
DEV_QUERIES = 200


@dataclass(frozen=True)
class Systems:
    """What is compared: the teacher, and one model with and without thinking."""

    teacher: Teacher
    embedder: ThinkingEmbedder
    thinking: bool
    keep: Path | None  # folder for the teacher's vectors, which do not change between models

    def scores(self, collection: Collection) -> dict[str, float]:
        """nDCG@10 by system."""
        never = self.embedder.settings.with_changes(mode="never")
        documents = self.embedder.encode_documents(collection.documents, show_progress_bar=False)
        fast = self.embedder.encode_queries(collection.queries, settings=never, show_progress_bar=False)
        out = {
            "minilm": self.teacher_score(collection),
            "o1_mini_fast": ndcg(collection, fast, documents),
        }
        if self.thinking:
            thinking = self.embedder.encode_queries(collection.queries, show_progress_bar=False)
            out["o1_mini_thinking"] = ndcg(collection, thinking, documents)
        out["fast_share_of_minilm"] = out["o1_mini_fast"] / out["minilm"]
        return out

    def teacher_score(self, collection: Collection) -> float:
        """nDCG@10 of all-MiniLM-L6-v2 at 256 tokens."""
        return ndcg(
            collection,
            self.kept(f"{collection.name}_{collection.split}_queries", collection.queries),
            self.kept(f"{collection.name}_documents", collection.documents),
        )

    def kept(self, name: str, texts: list[str]) -> Vectors:
        """The teacher's vectors of `texts`, from disk when they were computed before."""
        path = self.keep / f"{name}.npy" if self.keep else None
        compute: Callable[[], Vectors] = lambda: self.teacher.encode(texts)  # noqa: E731
        return kept(path, compute)


def commit() -> str:
    """The repository's current commit, or "unknown" outside a checkout."""
    done = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    return done.stdout.strip() or "unknown"


def machine(dtype: str) -> str:
    """Processor family, threads, library and arithmetic in words."""
    threads = torch.get_num_threads()
    return f"{platform.machine()} CPU, {threads} thread(s), torch {torch.__version__}, {dtype}"


def records(name: str, scores: dict[str, float], dtype: str) -> list[dict[str, object]]:
    """One result object per figure."""
    shared = {"commit": commit(), "machine": machine(dtype), "date": datetime.date.today().isoformat()}
    return [
        {
            "name": f"{name}/{system}",
            "value": round(value, 4),
            "unit": "ratio" if system == "fast_share_of_minilm" else "nDCG@10",
            "better": "higher",
            **shared,
        }
        for system, value in scores.items()
    ]


def print_thoughts(embedder: ThinkingEmbedder, queries: list[str]) -> None:
    """A few queries with one sampled thought each."""
    for query, (thought,) in zip(queries, embedder.think(queries, k=1), strict=True):
        print(f"  Q: {query}\n  T: {thought.text} [{thought.finish}]", flush=True)


RAW = argparse.RawDescriptionHelpFormatter


def main() -> None:
    """Measure, print, and append to the results file when one is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RAW)
    parser.add_argument("--model", type=Path, required=True, help="folder that export.py wrote")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with eval/")
    parser.add_argument("--split", choices=("dev", "test"), default="dev")
    parser.add_argument("--only", nargs="*", help="names of collections; all by default")
    parser.add_argument("--keep", type=Path, help="folder for the teacher's vectors")
    parser.add_argument("--dtype", default="float32", help="of the model and, as autocast, of the teacher")
    parser.add_argument("--no-thinking", action="store_true")
    parser.add_argument("--temperature", type=float, help="instead of the folder's own")
    parser.add_argument("--samples", type=int, default=0, help="print this many thoughts a collection")
    parser.add_argument("--out", type=Path, help="results file, JSON lines")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("o1_retriever").setLevel(logging.ERROR)
    embedder = ThinkingEmbedder.from_pretrained(args.model, dtype=args.dtype, cache=False)
    embedder.settings = embedder.settings.with_changes(temperature=args.temperature)
    teacher = Teacher(bfloat16=args.dtype == "bfloat16")
    systems = Systems(teacher, embedder, not args.no_thinking, args.keep)
    lines: list[str] = []
    for name, split in DEV if args.split == "dev" else TEST:
        if args.only and name not in args.only:
            continue
        start = time.time()
        sample = DEV_QUERIES if args.split == "dev" else None
        collection = load_collection(args.data / "eval" / name, split, sample)
        scores = systems.scores(collection)
        figures = "  ".join(f"{system} {value:.4f}" for system, value in scores.items())
        seconds = time.time() - start
        print(f"{name} {split} ({len(collection.queries)} queries, {seconds:.0f} s): {figures}", flush=True)
        if args.samples:
            print_thoughts(embedder, collection.queries[: args.samples])
        lines += [json.dumps(record) for record in records(name, scores, args.dtype)]
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
