"""BEIR-format collections on disk, ranked by inner product and scored with nDCG@10."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ir_measures
import numpy as np
from ir_measures import Qrel, ScoredDoc, nDCG
from numpy.typing import NDArray
from sources import read_jsonl

Vectors = NDArray[np.float32]
DEPTH = 100  # documents of a ranking that are handed to the metric; nDCG@10 reads ten


@dataclass(frozen=True)
class Collection:
    """The queries of one split with their judgments, and the whole corpus."""

    name: str
    split: str
    document_ids: list[str]
    documents: list[str]  # title, space, text
    query_ids: list[str]
    queries: list[str]
    judgments: dict[str, dict[str, int]]


def read_judgments(path: Path) -> dict[str, dict[str, int]]:
    """Relevance by query and document from a tab-separated qrels file with a header."""
    judgments: dict[str, dict[str, int]] = {}
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        query, document, relevance = line.split("\t")
        judgments.setdefault(query, {})[document] = int(relevance)
    return judgments


def load_collection(folder: Path, split: str, sample: int | None = None) -> Collection:
    """One collection; `sample` keeps that many queries, the same ones every time."""
    qrels = folder / "qrels" / f"{split}.tsv"
    if not qrels.is_file():
        raise SystemExit(f"No {qrels}: point --data at the folder that holds eval/ with BEIR collections.")
    judgments = read_judgments(qrels)
    texts = {str(row["_id"]): str(row["text"]) for row in read_jsonl(folder / "queries.jsonl")}
    chosen = sorted(query for query in judgments if query in texts)
    if sample is not None and sample < len(chosen):
        chosen = sorted(random.Random(0).sample(chosen, sample))
    corpus = read_jsonl(folder / "corpus.jsonl")
    return Collection(
        name=folder.name,
        split=split,
        document_ids=[str(row["_id"]) for row in corpus],
        documents=[f"{row.get('title') or ''} {row['text']}".strip() for row in corpus],
        query_ids=chosen,
        queries=[texts[query] for query in chosen],
        judgments={query: judgments[query] for query in chosen},
    )


def ndcg(collection: Collection, queries: Vectors, documents: Vectors) -> float:
    """nDCG@10 of ranking every document by inner product."""
    scores = queries @ documents.T
    best = np.argsort(-scores, axis=1, kind="stable")[:, :DEPTH]
    run = [
        ScoredDoc(query, collection.document_ids[j], float(scores[i, j]))
        for i, query in enumerate(collection.query_ids)
        for j in best[i]
    ]
    qrels = [
        Qrel(query, document, relevance)
        for query, judged in collection.judgments.items()
        for document, relevance in judged.items()
    ]
    return float(ir_measures.calc_aggregate([nDCG @ 10], qrels, run)[nDCG @ 10])


def kept(path: Path | None, compute: Callable[[], Vectors]) -> Vectors:
    """Vectors from `path`, computed and written there first when it does not exist."""
    if path is not None and path.is_file():
        return np.asarray(np.load(path), dtype=np.float32)
    vectors = compute()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, vectors)
    return vectors
