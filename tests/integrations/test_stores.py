"""Vector stores of others, real ones, beside our own index: the same hits, whatever is asked for."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from o1_retriever import Index, Retriever
from o1_retriever.documents import Document
from o1_retriever.errors import FilterError, FingerprintError, InputError, SettingsError, StoreError
from o1_retriever.index.foreign import ForeignIndex, load_shards, opened_for
from o1_retriever.index.ledger import EmbeddedDocument
from o1_retriever.index.shards import embed_shards
from stores_o1_retriever import open_index, open_store
from tests.support.adapters import METADATA, QUERY, TEXTS, small_embedder
from tests.support.filters import random_filter, random_metadata
from tests.support.index_worker import TinyEmbedder
from tests.support.vector_stores import served

SLOW = {"chroma", "postgresql"}  # their servers take seconds to begin
KINDS = [
    pytest.param(kind, marks=[pytest.mark.long] if kind in SLOW else [])
    for kind in ("qdrant", "lancedb", "chroma", "postgresql")
]
FILTERS = 60


@dataclass
class Pair:
    """The same documents in our index and in a store, and what made their vectors."""

    address: str
    embedder: Any
    ours: Index
    theirs: ForeignIndex


def without_nul(value: Any) -> Any:
    """Most stores cannot keep it, and no document that was read has it."""
    if isinstance(value, list):
        return [without_nul(each) for each in value]
    return value.replace("\0", " ") if isinstance(value, str) else value


def many() -> list[EmbeddedDocument]:
    embedder = TinyEmbedder()
    return [
        EmbeddedDocument(
            document=Document(
                id=f"d{number}'\"ü",
                text=f"word{number % 7} text {number}",
                metadata={name: without_nul(value) for name, value in metadata.items()},
            ),
            vector=embedder.vector(f"text {number}"),
        )
        for number, metadata in enumerate(random_metadata(3, 120))
    ]


@pytest.fixture(scope="module", params=KINDS)
def address(request, tmp_path_factory) -> Iterator[str]:
    with served(request.param, tmp_path_factory.mktemp(request.param)) as address:
        yield address


@pytest.fixture(scope="module")
def pair(address, tmp_path_factory) -> Iterator[Pair]:
    embedder = TinyEmbedder()
    with Index(tmp_path_factory.mktemp("ours"), embedder) as ours:
        ours.put(many())
        with _filled(address, "many", embedder, many()) as theirs:
            yield Pair(address, embedder, ours, theirs)


def _filled(address: str, name: str, embedder: Any, documents: list[EmbeddedDocument]) -> ForeignIndex:
    store = open_store(address, name)
    assert store.description() is None
    store.begin({"space": embedder.space.to_dict()}, embedder.space.dimension)
    index = ForeignIndex(store)
    index.put(documents)
    index.put(documents[:5])  # again: nothing is doubled
    store.finish()
    assert index.count() == len(documents)
    return index


def same(ours: Any, theirs: Any) -> None:
    assert [hit.id for hit in theirs] == [hit.id for hit in ours]
    assert [hit.score for hit in theirs] == pytest.approx([hit.score for hit in ours], abs=1e-5)
    assert [(hit.text, hit.metadata) for hit in theirs] == [(hit.text, hit.metadata) for hit in ours]
    assert [hit.relevance for hit in theirs] == pytest.approx([hit.relevance for hit in ours], abs=1e-5)
    assert [hit.lexical_rank for hit in theirs] == [hit.lexical_rank for hit in ours]


def test_the_nearest_are_those_of_our_index(pair):
    vectors = [pair.embedder.vector(f"query {number}") for number in range(6)]
    for ours, theirs in zip(pair.ours.search(vectors, k=7), pair.theirs.search(vectors, k=7), strict=True):
        same(ours, theirs)
    groups = [np.stack(vectors[:3]), np.stack(vectors[3:])]
    for ours, theirs in zip(
        pair.ours.search_groups(groups, k=9), pair.theirs.search_groups(groups, k=9), strict=True
    ):
        same(ours, theirs)
    assert len(pair.theirs.search(vectors[:1], k=500)[0]) == 120


def test_every_filter_means_what_it_means_in_our_index(pair):
    draw = random.Random(5)
    vector = pair.embedder.vector("query")[None]
    for _ in range(FILTERS):
        where = random_filter(draw)
        (ours,), (theirs,) = (each.search(vector, k=6, where=where) for each in (pair.ours, pair.theirs))
        assert [hit.id for hit in theirs] == [hit.id for hit in ours], where
    with pytest.raises(FilterError):
        pair.theirs.search(vector, where={"a": {"$near": 2}})


@pytest.mark.parametrize(
    "where", [None, {"a": {"$exists": True}}, {"a": {"$gt": 1}, "b": {"$ne": "a"}}, {"a": 9}]
)
def test_words_and_vectors_are_fused_as_in_our_index(pair, where):
    vectors = [pair.embedder.vector(f"query {number}")[None] for number in range(2)]
    texts, more = ["word3 text", "word5"], {"k": 8, "depth": 60, "where": where}
    found = [each.search_groups(vectors, texts=texts, **more) for each in (pair.ours, pair.theirs)]
    for ours, theirs in zip(*found, strict=True):
        same(ours, theirs)


def test_documents_and_vectors_are_found_by_id(pair):
    names = [each.document.id for each in many()[:3]]
    assert pair.theirs.get([names[2], "none", names[0]]) == pair.ours.get([names[2], names[0]])
    assert np.allclose(pair.theirs.vectors(names), pair.ours.vectors(names), atol=1e-6)
    assert pair.theirs.ids({"a": True}) == sorted(pair.ours.ids({"a": True}))
    with pytest.raises(InputError, match="no document 'none'"):
        pair.theirs.vectors(["none"])


def test_a_retriever_thinks_searches_and_explains_as_over_our_index(address, tmp_path):
    embedder = small_embedder()
    rows = [{"id": name, "text": text, **METADATA[name]} for name, text in TEXTS.items()]
    vectors = embedder.encode_documents([row["text"] for row in rows])
    documents = [
        EmbeddedDocument(document=Document.of(row), vector=vector)
        for row, vector in zip(rows, vectors, strict=True)
    ]
    with (
        Index(tmp_path / "ours", embedder) as ours,
        _filled(address, "retriever", embedder, documents) as theirs,
    ):
        ours.put(documents)
        first, second = Retriever(embedder, ours), Retriever(embedder, theirs)
        for options in (
            {},
            {"hybrid": True},
            {"pooling": "best"},
            {"thinking": "never"},
            {"thinking": "auto"},
            {"where": {"topic": "physics"}},
            {"hybrid": True, "where": {"page": {"$gte": 2}}},
        ):
            same(first.search(QUERY, k=3, **options), second.search(QUERY, k=3, **options))
            mine, other = (each.explain(QUERY, k=3, **options) for each in (first, second))
            same(mine.result, other.result)
            assert [move.hit.id for move in mine.moves] == [move.hit.id for move in other.moves]
        assert second.search(QUERY, k=1)[0].id == "vapour"


def test_shards_are_loaded_once_and_their_space_is_known(address, tmp_path):
    embedder = TinyEmbedder()
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"id": "{number}", "text": "text {number}"}}\n' for number in range(30)))
    embed_shards(str(path), tmp_path / "shards", embedder)
    for _ in range(2):
        with opened_for(address, "loaded", tmp_path / "shards") as target:
            assert load_shards(tmp_path / "shards", target) == 30
            assert target.count() == 30
    with open_index(address, "loaded") as index:
        assert index.space == embedder.space
        assert index.search([embedder.vector("text 7")], k=1)[0][0].id == "7"
        with pytest.raises(FingerprintError, match="document space"):
            Retriever(small_embedder(), index)
    embed_shards(str(path), tmp_path / "other", TinyEmbedder(weights="other"))
    with pytest.raises(FingerprintError, match="another collection"):
        opened_for(address, "loaded", tmp_path / "other")
    with pytest.raises(StoreError, match="does not say"):
        open_index(address, "nothing")


def test_the_stores_of_langchain_find_the_same_documents(address, pair):
    from langchain_core.embeddings import DeterministicFakeEmbedding

    kind, _, place = address.partition(":")
    if kind == "lancedb":
        pytest.importorskip("lancedb")
        return
    store = _langchain(kind, place, address, pair, DeterministicFakeEmbedding(size=16))
    vector = pair.embedder.vector("query")
    (ours,) = pair.ours.search([vector], k=3)
    found = store.similarity_search_by_vector(vector.tolist(), k=3)
    assert [document.page_content for document in found] == [hit.text for hit in ours]


def _langchain(kind: str, place: str, address: str, pair: Pair, embeddings: Any) -> Any:
    if kind == "qdrant":
        from langchain_qdrant import QdrantVectorStore

        return QdrantVectorStore(
            client=pair.theirs.store._client, collection_name="many", embedding=embeddings
        )
    if kind == "chroma":
        from langchain_chroma import Chroma

        return Chroma(client=pair.theirs.store._client, collection_name="many", embedding_function=embeddings)
    from langchain_postgres import PGEngine, PGVectorStore

    engine = PGEngine.from_connection_string(address.replace("postgresql:", "postgresql+psycopg:"))
    return PGVectorStore.create_sync(engine, table_name="many", embedding_service=embeddings)


def test_an_address_that_is_none_is_refused(tmp_path: Path):
    for wrong in ("redis://x", "qdrant:", "chroma", "nothing"):
        with pytest.raises(SettingsError, match="expected chroma:URL"):
            open_store(wrong)
    with pytest.raises(SettingsError, match="expected the URL of a Chroma server"):
        open_store(f"chroma:{tmp_path}")


@pytest.mark.parametrize(
    "wrong", ["chroma:http://127.0.0.1:9", "qdrant:http://127.0.0.1:9", "postgresql://x@127.0.0.1:9/x"]
)
def test_a_store_that_is_not_there_is_said(wrong):
    with pytest.raises(StoreError, match=r"no Chroma|cannot be opened|cannot be reached"):
        open_store(wrong)


@pytest.mark.long
def test_the_commands_load_and_the_adapters_search(address, tmp_path):
    from langchain_o1_retriever import O1Retriever
    from tests.support.commands import ok, refused

    embedder = small_embedder()
    path = tmp_path / "rows.jsonl"
    rows = [{"id": name, "text": text, **METADATA[name]} for name, text in TEXTS.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    embed_shards(str(path), tmp_path / "shards", embedder)
    said = ok("load", str(tmp_path / "shards"), "--into", address, "--collection", "commands")
    assert "4 documents loaded, 4 in all" in said
    with open_index(address, "commands") as index:
        retriever = O1Retriever(retriever=Retriever(embedder, index), hybrid=True, k=2)
        assert retriever.invoke(QUERY)[0].id == "vapour"
        (found,) = retriever.invoke(QUERY, filter={"topic": "home"}, k=1)
        assert found.metadata["topic"] == "home"
        assert retriever.explain(QUERY).result[0].id == "vapour"
    assert "does not exist" not in refused("load", str(tmp_path / "none"), "--into", address)
