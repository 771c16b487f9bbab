"""MTEB's own evaluation over a local task."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("mteb", reason="needs the extra `eval`")

import mteb
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.models import EncoderProtocol
from mteb.types import PromptType

from mteb_o1_retriever import O1Model, as_task
from o1_retriever.errors import SettingsError
from o1_retriever.evaluation.collection import load_collection
from o1_retriever.evaluation.sources import write_collection
from tests.support.adapters import FAST, QUERY, TEXTS, THOUGHT, Mind, bag_of_words, small_embedder


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> AbsTaskRetrieval:
    """Four facts and one question."""
    folder = tmp_path_factory.mktemp("everyday facts")
    write_collection(
        folder,
        documents=({"_id": name, "title": "", "text": text} for name, text in TEXTS.items()),
        queries=[{"_id": "q", "text": QUERY}],
        judgments=[("q", "vapour", 1)],
    )
    return as_task(load_collection(folder, strict=True))


def rank_of_the_fact(model: O1Model, task: AbsTaskRetrieval) -> float:
    done = mteb.evaluate(model, task, cache=None, encode_kwargs={"batch_size": 2}, show_progress_bar=False)
    result = done.task_results[0]
    assert result.task_name.startswith("everyday-facts")
    return round(1 / result.scores["test"][0]["mrr_at_10"])


def test_mteb_measures_what_thinking_brings(task: AbsTaskRetrieval) -> None:
    mind = Mind()
    assert rank_of_the_fact(O1Model(small_embedder(mind)), task) == 1
    assert mind.asked == [QUERY]
    assert rank_of_the_fact(O1Model(small_embedder(), settings=FAST), task) > 1


def encoded(
    task: AbsTaskRetrieval, model: O1Model, texts: list[str], kind: PromptType | None, **options: Any
) -> Any:
    batches: Any = [{"text": [text]} for text in texts]
    return model.encode(
        batches,
        task_metadata=task.metadata,
        hf_split="test",
        hf_subset="default",
        prompt_type=kind,
        **options,
    )


def test_only_queries_are_thought_about(task: AbsTaskRetrieval) -> None:
    model = O1Model(small_embedder(), truncate_dim=100)
    assert isinstance(model, EncoderProtocol)
    for kind, text in (
        (PromptType.query, f"{QUERY} {THOUGHT}"),
        (PromptType.document, QUERY),
        (None, QUERY),
    ):
        expected = bag_of_words([text])[0, :100]
        found = encoded(task, model, [QUERY], kind)
        assert np.allclose(found[0], expected / np.linalg.norm(expected), atol=1e-6)
    assert encoded(task, model, ["a", "b", "c"], PromptType.document, batch_size=2).shape == (3, 100)
    rows = encoded(task, model, ["a", "b"], PromptType.document)
    assert np.allclose(model.similarity(rows, rows), rows @ rows.T, atol=1e-6)
    assert np.allclose(model.similarity_pairwise(rows, rows), [1.0, 1.0], atol=1e-6)
    with pytest.raises(SettingsError, match="precision is 'int8'"):
        encoded(task, model, ["a"], None, precision="int8")


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
    named = O1Model(embedder, name="o1/embedder-22m", revision="7").mteb_model_meta
    assert (named.name, named.revision) == ("o1/embedder-22m", "7")
    with pytest.raises(SettingsError, match="expected organisation/model"):
        O1Model(embedder, name="mini")
