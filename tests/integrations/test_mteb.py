"""MTEB's own evaluation over a local task."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("mteb", reason="needs the extra `eval`")

import mteb
from datasets import Dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import EncoderProtocol
from mteb.types import PromptType

from mteb_o1_retriever import O1Model
from o1_retriever.errors import SettingsError
from tests.support.adapters import FAST, QUERY, TEXTS, THOUGHT, Mind, bag_of_words, small_embedder


class Everyday(AbsTaskRetrieval):
    metadata = TaskMetadata(
        name="Everyday",
        description="Four facts and one question.",
        dataset={"path": "local/everyday", "revision": "1"},
        type="Retrieval",
        category="t2t",
        modalities=["text"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_1",
    )

    def load_data(self, num_proc: int | None = None, **_: Any) -> None:
        corpus = [{"id": name, "title": "", "text": text} for name, text in TEXTS.items()]
        self.dataset = {
            "default": {
                "test": {
                    "corpus": Dataset.from_list(corpus),
                    "queries": Dataset.from_list([{"id": "q", "text": QUERY}]),
                    "relevant_docs": {"q": {"vapour": 1}},
                    "top_ranked": None,
                }
            }
        }
        self.data_loaded = True


def score(model: O1Model) -> float:
    result = mteb.evaluate(
        model, Everyday(), cache=None, encode_kwargs={"batch_size": 2}, show_progress_bar=False
    )
    return float(result.task_results[0].get_score())


def test_mteb_measures_what_thinking_brings() -> None:
    mind = Mind()
    assert score(O1Model(small_embedder(mind))) == 1.0
    assert mind.asked == [QUERY]
    assert score(O1Model(small_embedder(), settings=FAST)) == 0.0


def encoded(model: O1Model, texts: list[str], kind: PromptType | None, **options: Any) -> Any:
    batches: Any = [{"text": [text]} for text in texts]
    return model.encode(
        batches,
        task_metadata=Everyday.metadata,
        hf_split="test",
        hf_subset="default",
        prompt_type=kind,
        **options,
    )


def test_only_queries_are_thought_about() -> None:
    model = O1Model(small_embedder(), truncate_dim=100)
    assert isinstance(model, EncoderProtocol)
    for kind, text in (
        (PromptType.query, f"{QUERY} {THOUGHT}"),
        (PromptType.document, QUERY),
        (None, QUERY),
    ):
        expected = bag_of_words([text])[0, :100]
        found = encoded(model, [QUERY], kind)
        assert np.allclose(found[0], expected / np.linalg.norm(expected), atol=1e-6)
    assert encoded(model, ["a", "b", "c"], PromptType.document, batch_size=2).shape == (3, 100)
    rows = encoded(model, ["a", "b"], PromptType.document)
    assert np.allclose(model.similarity(rows, rows), rows @ rows.T, atol=1e-6)
    assert np.allclose(model.similarity_pairwise(rows, rows), [1.0, 1.0], atol=1e-6)
    with pytest.raises(SettingsError, match="precision is 'int8'"):
        encoded(model, ["a"], None, precision="int8")


def test_results_of_different_models_have_different_names() -> None:
    embedder = small_embedder()
    meta = O1Model(embedder).mteb_model_meta
    assert meta.name == f"o1-retriever/{embedder.space.fingerprint}"
    assert meta.embed_dim == 256
    assert O1Model(small_embedder()).mteb_model_meta.revision == meta.revision
    others = [
        O1Model(embedder, settings=FAST),
        O1Model(embedder, truncate_dim=8),
        O1Model(small_embedder(k=3)),
    ]
    assert len({meta.revision, *(other.mteb_model_meta.revision for other in others)}) == 4
    named = O1Model(embedder, name="o1/mini", revision="7").mteb_model_meta
    assert (named.name, named.revision) == ("o1/mini", "7")
    with pytest.raises(SettingsError, match="expected organisation/model"):
        O1Model(embedder, name="mini")
