"""The embedding function in Chroma itself: stored, opened again, and compared."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("chromadb", reason="needs the extra `index`")

import chromadb
from chromadb.utils.embedding_functions import known_embedding_functions

from chroma_o1_retriever import O1EmbeddingFunction, open_collection
from o1_retriever import ThinkingEmbedder, ThoughtSettings
from o1_retriever.errors import FingerprintError, ModelError, SettingsError
from tests.support.adapters import QUERY, TEXTS, THOUGHT, TURNS, Mind, last_turn_embedder, small_embedder
from tests.support.tiny import tiny_model

SETTINGS = ThoughtSettings(n_thoughts=2, max_new_tokens=8)


def saved(folder: Path, *, seed: int = 0) -> Path:
    model, tokenizer = tiny_model("llama", seed=seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("checkpoint"))


def filled(client: Any, function: O1EmbeddingFunction) -> Any:
    collection = open_collection(client, "facts", function)
    collection.add(ids=list(TEXTS), documents=list(TEXTS.values()))
    return collection


def reopened(folder: Path) -> Any:
    """A client that knows nothing of the one before it."""
    chromadb.api.shared_system_client.SharedSystemClient.clear_system_cache()
    return chromadb.PersistentClient(str(folder))


def test_a_plain_query_thinks_and_documents_do_not(tmp_path: Path) -> None:
    mind = Mind()
    client = chromadb.PersistentClient(str(tmp_path))
    collection = filled(client, O1EmbeddingFunction(small_embedder(mind)))
    assert mind.asked == []
    found = collection.query(query_texts=[QUERY, "dough"], n_results=1)
    assert found["ids"] == [["vapour"], ["bread"]]
    assert mind.asked == [QUERY, "dough"]
    assert collection.configuration_json["hnsw"]["space"] == "cosine"
    fast = O1EmbeddingFunction(small_embedder(), settings=ThoughtSettings(thinking="never"))
    assert open_collection(client, "facts", fast).query(query_texts=[QUERY], n_results=1)["ids"] == [
        ["mirror"]
    ]
    assert fast.think([QUERY])[0].thoughts == ()
    assert O1EmbeddingFunction(small_embedder()).think([QUERY])[0].thoughts[0].text == THOUGHT


def test_a_collection_is_opened_again_without_the_function(checkpoint: Path, tmp_path: Path) -> None:
    first = filled(
        chromadb.PersistentClient(str(tmp_path)), O1EmbeddingFunction(checkpoint, settings=SETTINGS)
    )
    before = first.query(query_texts=[QUERY], n_results=4)
    again = reopened(tmp_path).get_collection("facts")
    after = again.query(query_texts=[QUERY], n_results=4)
    assert after["ids"] == before["ids"]
    assert np.allclose(after["distances"], before["distances"], atol=1e-5)
    direct = ThinkingEmbedder.from_pretrained(checkpoint, cache=False, settings=SETTINGS)
    stored = again.get(ids=["moon"], include=["embeddings"])["embeddings"][0]
    assert np.allclose(stored, direct.encode_documents(TEXTS["moon"]), atol=1e-5)
    cosine = float(stored @ direct.encode_queries(QUERY))
    distance = after["distances"][0][after["ids"][0].index("moon")]
    assert distance == pytest.approx(1 - cosine, abs=1e-4)


def test_the_configuration_makes_the_same_function(checkpoint: Path) -> None:
    assert known_embedding_functions["o1-retriever"] is O1EmbeddingFunction
    function = O1EmbeddingFunction(checkpoint, settings=SETTINGS, truncate_dim=8)
    config = function.get_config()
    again = O1EmbeddingFunction.build_from_config(config)
    assert again.get_config() == config
    assert not function.is_legacy()
    assert np.allclose(again(["a"]), function(["a"]))
    assert np.allclose(again.embed_query([QUERY]), function.embed_query([QUERY]))
    assert len(again(["a"])[0]) == 8
    with pytest.raises(SettingsError, match=r"lacks \['fingerprint'\]"):
        O1EmbeddingFunction.build_from_config({"model": "a"})
    function.validate_config_update(config, {**config, "settings": None})
    with pytest.raises(FingerprintError, match="another document space: its fingerprint"):
        function.validate_config_update(config, {**config, "fingerprint": "other"})


def test_another_space_is_refused_when_a_collection_is_opened(checkpoint: Path, tmp_path: Path) -> None:
    client = chromadb.PersistentClient(str(tmp_path / "chroma"))
    function = O1EmbeddingFunction(checkpoint)
    filled(client, function)
    other = O1EmbeddingFunction(saved(tmp_path / "other", seed=1))
    # The same dimension, so that Chroma would search on and find nonsense.
    assert other.embedder.dimension == function.embedder.dimension
    with pytest.raises(FingerprintError, match="another document space"):
        open_collection(client, "facts", other)
    with pytest.raises(FingerprintError, match="another document space"):
        open_collection(client, "facts", O1EmbeddingFunction(checkpoint, truncate_dim=8))
    client.create_collection("plain", embedding_function=None)
    with pytest.raises(FingerprintError, match="made with the embedding function 'none'"):
        open_collection(client, "plain", function)


def test_a_checkpoint_that_was_replaced_is_noticed(checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    filled(chromadb.PersistentClient(str(tmp_path / "chroma")), O1EmbeddingFunction(folder))
    saved(folder, seed=1)
    again = reopened(tmp_path / "chroma").get_collection("facts")
    with pytest.raises(FingerprintError, match="another document space: its fingerprint"):
        again.query(query_texts=[QUERY], n_results=1)


def test_an_embedder_without_a_name_has_to_be_brought(tmp_path: Path) -> None:
    function = O1EmbeddingFunction(small_embedder())
    filled(chromadb.PersistentClient(str(tmp_path)), function)
    client = reopened(tmp_path)
    with pytest.raises(ModelError, match="no name to load it by"):
        client.get_collection("facts").query(query_texts=[QUERY], n_results=1)
    brought = open_collection(client, "facts", function)
    assert brought.query(query_texts=[QUERY], n_results=1)["ids"] == [["vapour"]]


def test_a_history_is_read(tmp_path: Path) -> None:
    function = O1EmbeddingFunction(last_turn_embedder())
    collection = filled(chromadb.PersistentClient(str(tmp_path)), function)
    vectors = function.embed_query([QUERY, QUERY], histories=[TURNS, None])
    found = collection.query(query_embeddings=vectors, n_results=1)["ids"]
    assert found == [["vapour"], ["mirror"]]
    assert [thought.text for thought in function.think([QUERY], [TURNS])[0].thoughts] == [TURNS[-1][1]]
