"""The index: adding, searching, and what happens when processes are killed or share it."""

from __future__ import annotations

import logging
import os
import random
import shutil
import sqlite3
import threading
import time
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from o1_retriever.documents import Document
from o1_retriever.errors import (
    EncoderError,
    FingerprintError,
    IndexNotFoundError,
    InputError,
    SettingsError,
    StoreError,
)
from o1_retriever.index import graph as graph_module
from o1_retriever.index.index import Index
from o1_retriever.index.ledger import EmbeddedDocument, Ledger
from tests.support.index_worker import TinyEmbedder, answers, contents, finish, numbered, vectors, worker


@pytest.fixture
def embedder():
    return TinyEmbedder()


@pytest.fixture
def index(tmp_path, embedder):
    with Index(tmp_path / "index", embedder) as index:
        yield index


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An index of 2100 documents, more than are searched one by one, that nobody killed."""
    path = tmp_path_factory.mktemp("whole")
    with Index(path, TinyEmbedder()) as index:
        index.add(numbered(2100), batch_size=64)
        yield index


def test_found_documents_come_with_score_source_and_metadata(index, embedder):
    assert index.add(numbered(50)) == 50
    (hits,) = index.search(vectors(embedder, "text number 8"), k=3)
    assert hits[0].id == "d00008"
    assert hits[0].text == "text number 8"
    assert hits[0].source == "f1"
    assert hits[0].metadata == {"source": "f1", "n": 8}
    assert hits[0].score == pytest.approx(1, abs=1e-6)
    assert [hit.rank for hit in hits] == [1, 2, 3]
    assert hits[0].score > hits[1].score > hits[2].score


@pytest.mark.parametrize("count", [40, 3000])
def test_search_equals_an_exact_search(index, embedder, count):
    index.add(numbered(count), batch_size=512)
    queries = vectors(embedder, *(f"question {n}" for n in range(30)))
    every = queries @ vectors(embedder, *(f"text number {n}" for n in range(count))).T
    for hits, row in zip(index.search(queries, k=10), every, strict=True):
        best = np.argsort(-row)[:10]
        assert [hit.id for hit in hits] == [f"d{n:05d}" for n in best]
        assert [hit.score for hit in hits] == pytest.approx(row[best].tolist(), abs=1e-5)


def test_k_beyond_the_documents_gives_all_of_them(index, embedder):
    index.add(numbered(2200), batch_size=512)
    (hits,) = index.search(vectors(embedder, "x"), k=5000)
    assert sorted(hit.id for hit in hits) == sorted(index.ids())


def test_an_empty_index_answers_with_nothing(index, embedder):
    assert index.search(vectors(embedder, "x", "y")) == [[], []]
    assert index.search(vectors(embedder, "x"), where={"source": "f1"}) == [[]]
    assert index.search(np.empty((0, 16), np.float32)) == []
    assert (index.ids(), index.get([]), len(index), index.vectors([]).shape) == ([], [], 0, (0, 16))
    assert index.delete(ids=["x"]) == 0
    assert index


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"n": {"$lt": 3}}, {0, 1, 2}),
        ({"source": "f6"}, set(range(6, 4200, 7))),
        ({"$and": [{"source": "f0"}, {"n": {"$in": [0, 1, 7]}}]}, {0, 7}),
        ({"source": "f9"}, set()),
        ({"n": {"$gte": 0}}, set(range(4200))),
        ({"n": {"$gte": 1500}}, set(range(1500, 4200))),
    ],
)
def test_a_filter_finds_every_document_that_matches(large, where, expected):
    index, embedder = large
    ids = {f"d{n:05d}" for n in expected}
    (hits,) = index.search(vectors(embedder, "question"), k=4200, where=where)
    assert {hit.id for hit in hits} == ids
    assert set(index.ids(where)) == ids
    assert index.ids(where) == sorted(ids), "in the order of their addition"
    best = sorted(hits, key=lambda hit: -hit.score)[:10]
    (few,) = index.search(vectors(embedder, "question"), k=10, where=where)
    assert [hit.id for hit in few] == [hit.id for hit in best]


def test_documents_that_match_and_are_far_away_are_found(index, embedder):
    """The graph never comes to them, however many it is asked for: they are compared one by one."""
    query = vectors(embedder, "question")
    texts = [f"text number {n}" for n in range(5000)]
    cosines = vectors(embedder, *texts) @ query[0]
    order = np.argsort(-cosines)
    far = set(order[2000:].tolist())
    index.add(
        [Document(id=text, text=text, metadata={"far": n in far}) for n, text in enumerate(texts)],
        batch_size=512,
    )
    (hits,) = index.search(query, k=5, where={"far": True})
    assert [hit.id for hit in hits] == [texts[n] for n in order[2000:2005]]
    (hits,) = index.search(query, k=5, where={"$not": {"far": True}})
    assert [hit.id for hit in hits] == [texts[n] for n in order[:5]]


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    embedder = TinyEmbedder()
    with Index(tmp_path_factory.mktemp("large"), embedder) as index:
        index.add(numbered(4200), batch_size=512)
        yield index, embedder


@pytest.mark.parametrize("others", [300, 1700])
def test_equal_scores_are_ordered_by_id_however_many_there_are(index, embedder, others):
    copies = [f"c{n:04d}" for n in range(700)]
    same = [Document(id=one, text="the same text", metadata={"n": 5000 + int(one[1:])}) for one in copies]
    index.add([*numbered(others), *random.Random(0).sample(same, len(same))])
    query = vectors(embedder, "the same text")
    (hits,) = index.search(query, k=5)
    assert [hit.id for hit in hits] == copies[:5]
    (hits,) = index.search(query, k=900)
    assert [hit.id for hit in hits[:700]] == copies
    assert len({hit.id for hit in hits}) == 900
    (hits,) = index.search(query, k=400, where={"n": {"$lt": 5350}})
    assert [hit.id for hit in hits[:350]] == copies[:350]
    assert all(hit.metadata["n"] < 300 + others for hit in hits[350:])
    assert len(hits) == 400


def test_adding_again_embeds_nothing(index, embedder):
    index.add(numbered(20))
    embedder.texts.clear()
    assert index.add(numbered(25)) == 5
    assert embedder.texts == [f"text number {n}" for n in range(20, 25)]


def test_more_is_written_at_once_where_embedding_is_quick(tmp_path):
    with Index(tmp_path / "quick", TinyEmbedder()) as quick:
        assert quick.portion(2) == 4
        quick.add(numbered(4), batch_size=2)
        assert quick.portion(2) == 32
    with Index(tmp_path / "slow", TinyEmbedder(delay=0.3)) as slow:
        slow.add(numbered(1))
        assert slow.portion(32) == 64


def test_a_known_text_under_another_id_keeps_its_vector(index, embedder):
    index.add([Document(id="a", text="same"), Document(id="b", text="same")])
    index.add([Document(id="c", text="same")])
    assert embedder.texts == ["same"]
    assert len(index) == 3
    assert np.array_equal(*index.vectors(["a", "c"]))


def test_a_changed_document_replaces_the_old_one(index, embedder):
    index.add([Document(id="a", text="old", metadata={"v": 1}), Document(id="b", text="other")])
    assert index.add([Document(id="a", text="new", metadata={"v": 1})]) == 1
    assert index.add([Document(id="a", text="new", metadata={"v": 2})]) == 1
    assert index.get(["a"]) == [Document(id="a", text="new", metadata={"v": 2})]
    assert index.search(vectors(embedder, "new"), k=1, where={"v": 2})[0][0].score == pytest.approx(1)
    assert index.search(vectors(embedder, "new"), where={"v": 1}) == [[]]
    assert embedder.texts == ["old", "other", "new"]
    assert len(index) == 2


def test_documents_survive_a_round_trip(index):
    document = Document(
        id="ü/x.md#0",
        text="<emb> </s> \0 é \U0001f600\u2028 'quoted' %s",
        metadata={
            "source": "ü/x.md",
            "n": 2**62,
            "low": -(2**63),
            "f": 0.1,
            "yes": True,
            "t": "",
            "l": [1, "a", 0.5],
        },
    )
    index.add([document, Document(id="plain", text="no metadata")])
    assert index.get(["plain", "none", "ü/x.md#0"])[1] == document
    (hit,) = index.search(index.vectors([document.id]), k=1)[0]
    assert (hit.text, hit.metadata) == (document.text, document.metadata)
    assert list(index.documents()) == [document, Document(id="plain", text="no metadata")]
    assert [one.id for one in index.documents({"yes": True})] == [document.id]


def test_documents_are_streamed_page_by_page(large):
    index, _ = large
    assert list(index.documents()) == numbered(4200)
    assert [one.metadata["n"] for one in index.documents({"source": "f0"})] == list(range(0, 4200, 7))


def test_ids_of_any_kind_are_taken_or_refused(index):
    index.add(numbered(3))
    assert [each.id for each in index.get(iter(["d00001", "d00001", "\ud800"]))] == ["d00001", "d00001"]
    assert index.vectors(iter(["d00002"])).shape == (1, 16)
    assert index.delete(["\ud800", "nothing"]) == 0
    for wrong in (5, None, [None], "d00001"):
        with pytest.raises(InputError, match="expected a list of strings"):
            index.get(wrong)
    with pytest.raises(InputError, match="no document"):
        index.vectors(["\ud800"])
    with pytest.raises(InputError, match="Found one int; expected a list of documents"):
        index.add(5)


def test_deleting(index, embedder):
    index.add(numbered(70))
    before = index.generation
    assert index.delete(["d00001", "d00001", "none"]) == 1
    assert index.delete(where={"source": "f0"}) == 10
    assert len(index) == 59
    assert index.generation > before
    (hits,) = index.search(vectors(embedder, "text number 1"), k=100)
    assert {hit.id for hit in hits} == {f"d{n:05d}" for n in range(70) if n % 7 and n != 1}
    index.add(numbered(70))
    assert index.search(vectors(embedder, "text number 1"), k=1)[0][0].id == "d00001"
    for arguments in ((), (["a"], {"n": 1})):
        with pytest.raises(InputError, match="expected one of them"):
            index.delete(*arguments[:1], **({"where": arguments[1]} if len(arguments) > 1 else {}))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (7, "document 40 is int; expected a Document, a string or a dict"),
        ({"body": "x"}, r"document 40 is dict with \['body'\]; expected"),
        ({"text": "x", "metadata": 3}, "metadata of document 40 is int"),
        ({"text": "x", "tags": {"a": 1}}, "document 40 has the metadata 'tags'"),
        ({"text": None}, "document 40 is None"),
        (
            Document(id="d00007", text="again"),
            "document 40 has the id 'd00007' of document 7; expected another",
        ),
        ({"_id": "d00039", "text": "again"}, "document 40 has the id 'd00039' of document 39"),
        (Document(id="x", text=" "), "document 40 is only whitespace"),
        (Document(id="x", text=None), "document 40 is None"),
        (Document(id="x", text="\ud800"), "document 40 has a lone surrogate"),
        (Document(id="", text="a"), "id of document 40 is empty"),
        (Document(id=7, text="a"), "id of document 40 is int"),
        (Document(id="x", text="a", metadata=None), "metadata of document 40 is NoneType"),
        (Document(id="x", text="a", metadata={"k": None}), "document 40 has the metadata 'k': found None"),
        (Document(id="x", text="a", metadata={"k": [1, [2]]}), "document 40 has the metadata"),
        (Document(id="x", text="a", metadata={"k": {"a": 1}}), "document 40 has the metadata"),
        (Document(id="x", text="a", metadata={"k": float("inf")}), "document 40 .*'k': found inf .* finite"),
        (Document(id="x", text="a", metadata={"k": 2**63}), "document 40 has the metadata"),
        (Document(id="x", text="a", metadata={"k": float("nan")}), "document 40 has the metadata"),
        (Document(id="x", text="a", metadata={"k": "\ud800"}), "document 40 has the metadata"),
        (Document(id="x", text="a", metadata={"$k": 1}), "document 40 has the metadata"),
        (Document(id="x", text="a", metadata={"chroma:document": "b"}), "document 40 has the metadata"),
        (Document(id="x", text="a", metadata={"": 1}), "document 40 has the metadata"),
        (Document(id="x", text="a", metadata={3: 1}), "document 40 has the metadata"),
    ],
)
def test_a_bad_document_is_named_and_those_before_it_are_kept(index, bad, message):
    with pytest.raises(InputError, match=message) as caught:
        index.add([*numbered(40), bad, *numbered(60)], batch_size=4)
    assert caught.value.position == 40
    assert len(index) == 40
    assert index.add(numbered(60)) == 20


class Passage:
    """What LangChain's documents look like from outside."""

    def __init__(self, text, metadata, name=None):
        self.page_content, self.metadata, self.id = text, metadata, name


def test_strings_dicts_and_documents_of_frameworks_are_taken(index):
    given = [
        "a text",
        {"id": 7, "text": "b text", "page": 2, "none": None, "metadata": {"source": "b.md"}},
        {"_id": "c", "text": "c text"},
        Passage("d text", {"source": "d.md", "none": None}),
        Passage("e text", {}, "e"),
        Document(id="f", text="f text"),
    ]
    assert index.add(given) == 6
    assert index.add(iter(given)) == 0, "a text without an id has the same one again"
    kept = {document.text: (document.id, document.metadata) for document in index.documents()}
    assert kept["b text"] == ("7", {"page": 2, "source": "b.md"})
    assert kept["c text"] == ("c", {})
    assert kept["d text"][1] == {"source": "d.md"}
    assert (kept["e text"][0], kept["f text"][0]) == ("e", "f")
    for lone in ("a text", {"text": "a"}, Document(id="1", text="a")):
        with pytest.raises(InputError, match=r"Found one .*; expected a list"):
            index.add(lone)


def test_equal_texts_without_an_id_are_kept_as_often_as_they_come(index, embedder):
    assert index.add(["same", "other", {"text": "same"}, "same"]) == 4
    assert index.add(["same", "other", "same", "same"]) == 0
    assert sorted(document.text for document in index.documents()) == ["other", "same", "same", "same"]
    assert embedder.texts == ["same", "other"]


def test_two_documents_of_one_id_in_one_call_are_an_error(index):
    first, second = Document(id="1", text="a"), Document(id="1", text="b")
    with pytest.raises(InputError, match=r"document 1 has the id '1' of document 0.*added in a later call"):
        index.add([first, second])
    assert index.get(["1"]) == [first]
    assert index.add([second]) == 1
    assert index.get(["1"]) == [second]


def test_a_megabyte_of_text_is_kept(index, embedder):
    text = "word " * 200_000
    index.add([Document(id="big", text=text)])
    assert index.get(["big"])[0].text == text
    assert index.search(vectors(embedder, text))[0][0].text == text


class Wrong(TinyEmbedder):
    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def encode_documents(self, documents, *, batch_size=32, show_progress_bar=None):
        return self.answer(super().encode_documents(documents))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda v: v[:-1], r"shape \(9, 16\) for 10 documents; expected \(10, 16\)"),
        (lambda v: v[:, :8], "shape"),
        (lambda v: v * np.nan, "10 vectors of 10 that are zero or not finite"),
        (lambda v: v * [[0]] * 1.0, "zero or not finite"),
        (lambda v: v * ([[0]] + [[1]] * 9), "1 vector of 10 that is zero"),
    ],
)
def test_an_embedder_that_returns_something_else_is_an_error(tmp_path, answer, message):
    with Index(tmp_path, Wrong(answer)) as index:
        with pytest.raises(EncoderError, match=message):
            index.add(numbered(10))
        assert len(index) == 0


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (np.ones(16), r"shape \(16,\); expected \(queries, 16\)"),
        (np.ones((1, 15)), r"shape \(1, 15\)"),
        (np.stack([np.ones(16), np.zeros(16)]), "Query vector 1 is zero"),
        (np.full((1, 16), np.inf), "Query vector 0"),
        ([["a"]], "cannot be used"),
        ([[10**400] * 16], "cannot be used"),
        (np.ones((1, 16)) * 1j, "found complex numbers; expected real ones"),
    ],
)
def test_query_vectors_that_cannot_be_compared_are_refused(index, query, message):
    index.add(numbered(5))
    with pytest.raises(InputError, match=message):
        index.search(query)


@pytest.mark.parametrize("k", [0, -1, 1.5, True, "3"])
def test_k_out_of_range_is_refused(index, embedder, k):
    with pytest.raises(SettingsError, match="k is"):
        index.search(vectors(embedder, "x"), k=k)


@pytest.mark.parametrize("size", [0, True, 2.0])
def test_batch_size_out_of_range_is_refused(index, size):
    with pytest.raises(SettingsError, match="batch_size is"):
        index.add(numbered(1), batch_size=size)


def test_another_document_space_is_refused(tmp_path, index):
    index.add(numbered(3))
    for other in (TinyEmbedder(weights="other"), TinyEmbedder(dimension=8)):
        with pytest.raises(
            FingerprintError, match=r"another document space: (weights 'tiny' there and 'other'|dim)"
        ):
            Index(tmp_path / "index", other)
    Index(tmp_path / "index", TinyEmbedder(weights="other"), collection="second").close()


def test_another_precision_is_logged_once_and_works(tmp_path, index, caplog):
    index.add(numbered(3))
    with caplog.at_level(logging.WARNING), Index(tmp_path / "index", TinyEmbedder(device="cuda")) as other:
        assert other.add(numbered(4)) == 1
    assert [
        "precision: device 'cpu' there and 'cuda' here" in record.message for record in caplog.records
    ] == [True]


def test_the_collection_of_chroma_says_whose_it_is(index):
    import chromadb

    index.add(numbered(3))
    info = index.info()
    shutil.copytree(info.chroma_path, info.path / "copy")
    client = chromadb.PersistentClient(str(info.path / "copy"))
    (collection,) = client.list_collections()
    assert collection.name == "documents"
    assert collection.metadata["made_by"] == "o1-retriever"
    assert collection.metadata["fingerprint"] == info.space.fingerprint
    assert collection.configuration_json["hnsw"]["space"] == "cosine"
    assert sorted(collection.get()["ids"]) == index.ids()
    client.close()


def test_info(tmp_path, index, embedder):
    index.add(numbered(14))
    info = index.info()
    assert (info.path, info.collection, info.documents) == (tmp_path / "index", "documents", 14)
    assert (info.space, info.precision, info.roots) == (embedder.space, embedder.precision, {"": 7})
    assert info.bytes > 10_000


def test_nothing_where_an_index_was_expected(tmp_path, embedder):
    for arguments in ((tmp_path / "none", embedder), (tmp_path / "none",), (tmp_path, embedder)):
        with pytest.raises(IndexNotFoundError, match="o1-retriever index FOLDER"):
            Index(*arguments, create=False)
    assert list(tmp_path.iterdir()) == [], "looking leaves nothing behind"


def test_an_index_without_an_embedder_reads_and_deletes(tmp_path, index, embedder):
    index.add(numbered(5))
    with Index(tmp_path / "index") as reader:
        assert len(reader.search(vectors(embedder, "x"))[0]) == 5
        assert reader.delete(["d00000"]) == 1
        with pytest.raises(StoreError, match="without an embedder"):
            reader.add(numbered(5))


@pytest.mark.parametrize("name", ["../x", "a", "", "a/b", "x" * 70, "-ab"])
def test_collection_names_that_are_no_folder_are_refused(tmp_path, embedder, name):
    with pytest.raises(SettingsError, match="collection name"):
        Index(tmp_path, embedder, collection=name)


def test_a_closed_index_says_so(tmp_path, embedder):
    index = Index(tmp_path, embedder)
    index.close()
    index.close()
    for call in (index.count, lambda: index.search(np.ones((1, 16))), lambda: index.add(numbered(1))):
        with pytest.raises(StoreError, match="has been closed"):
            call()


def test_what_is_no_index_is_left_alone(tmp_path, embedder):
    import chromadb

    (tmp_path / "file").write_text("x")
    (tmp_path / "notes" / "documents").mkdir(parents=True)
    (tmp_path / "notes" / "documents" / "letter.txt").write_text("mine")
    client = chromadb.PersistentClient(str(tmp_path / "foreign"))
    client.create_collection("documents", embedding_function=None)
    client.close()
    (tmp_path / "other" / "documents").mkdir(parents=True)
    other = sqlite3.connect(tmp_path / "other" / "documents" / "documents.sqlite3")
    other.execute("CREATE TABLE state (key, value)")
    other.close()
    for name, message in [
        ("file", "is a file; expected the folder of an index"),
        ("notes", "is not an index: found 'letter.txt'"),
        ("foreign", "a Chroma database that o1-retriever did not write"),
        ("other", "a database that o1-retriever did not write"),
    ]:
        for create in (True, False):
            with pytest.raises(StoreError, match=message) as caught:
                Index(tmp_path / name, embedder, create=create)
            assert not isinstance(caught.value, IndexNotFoundError)
    assert [file.name for file in (tmp_path / "notes" / "documents").iterdir()] == ["letter.txt"]


@pytest.mark.parametrize("damage", [b"garbage" * 2000, b"SQLite format 3\0" + b"\xff" * 9000])
def test_a_damaged_ledger_is_an_error_in_one_line(tmp_path, embedder, damage):
    with Index(tmp_path, embedder) as index:
        index.add(numbered(10))
    (tmp_path / "documents" / "documents.sqlite3").write_bytes(damage)
    with pytest.raises(
        StoreError, match=r"cannot be used: found .*; expected an intact .* index FOLDER"
    ) as caught:
        Index(tmp_path, embedder)
    assert "\n" not in str(caught.value)


def flipped(value):
    return (
        bytes([value[0] ^ 1, *value[1:]]) if isinstance(value, bytes) else chr(ord(value[0]) ^ 1) + value[1:]
    )


@pytest.mark.parametrize("column", ["vector", "text", "metadata", "digest"])
def test_a_bit_that_the_disk_has_changed_is_never_given_out(tmp_path, embedder, column):
    """SQLite does not notice it inside a value."""
    with Index(tmp_path, embedder) as index:
        index.add(numbered(10))
    with closing(sqlite3.connect(tmp_path / "documents" / "documents.sqlite3")) as ledger, ledger:
        (value,) = ledger.execute(f"SELECT {column} FROM documents WHERE id = 'd00004'").fetchone()
        ledger.execute(f"UPDATE documents SET {column} = ? WHERE id = 'd00004'", (flipped(value),))
    with Index(tmp_path, embedder) as index:
        for look in (
            lambda: index.search(vectors(embedder, "text number 4"), k=10),
            lambda: index.get(["d00004"]),
        ):
            with pytest.raises(StoreError, match=r"not as it was written.*index FOLDER"):
                look()
        assert [document.id for document in index.get(["d00003"])] == ["d00003"]


def test_a_damaged_state_is_an_error(tmp_path, embedder):
    with Index(tmp_path, embedder) as index:
        index.add(numbered(10))
    for change in (
        "UPDATE state SET value = '17' WHERE key = 'generation'",
        "DELETE FROM state WHERE key = 'graph'",
    ):
        with closing(sqlite3.connect(tmp_path / "documents" / "documents.sqlite3")) as ledger, ledger:
            ledger.execute(change)
        with pytest.raises(StoreError, match="a damaged state"):
            Index(tmp_path, embedder)


@pytest.mark.parametrize("change", ["a document is gone", "a vector is another"])
def test_a_graph_that_says_other_than_the_ledger_is_built_anew(
    tmp_path, embedder, monkeypatch, caplog, change
):
    """As after a bit has changed in Chroma's own log of writes, which nothing checks."""
    monkeypatch.setattr(graph_module, "_EXACT", 0)
    with Index(tmp_path, embedder) as index:
        index.add(numbered(10))
        if change == "a document is gone":
            with closing(sqlite3.connect(tmp_path / "documents" / "documents.sqlite3")) as ledger, ledger:
                ledger.execute("DELETE FROM documents WHERE id = 'd00004'")
        else:
            index._store._graph._collection.update(ids=["d00004"], embeddings=vectors(embedder, "other"))
        (hits,) = index.search(vectors(embedder, "other" if "vector" in change else "text number 4"), k=10)
        assert sorted(hit.id for hit in hits) == index.ids()
        exact = (
            index.vectors([hit.id for hit in hits])
            @ vectors(embedder, "other" if "vector" in change else "text number 4")[0]
        )
        assert [hit.score for hit in hits] == pytest.approx(exact.tolist(), abs=1e-5)
    assert "Building the search graph" in caplog.text


@pytest.mark.parametrize("by", ["a program", "the disk"])
def test_a_damaged_file_of_the_graph_is_not_used(tmp_path, whole, embedder, caplog, by):
    """Chroma may crash on it, or find other documents."""
    shutil.copytree(whole.path, tmp_path / "copy")
    (file,) = (tmp_path / "copy").rglob("data_level0.bin")
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 4
    file.write_bytes(raw)
    if by == "the disk":
        os.utime(file, ns=times)
    with Index(tmp_path / "copy", embedder) as index:
        assert answers(index) == answers(whole)
    assert "have been changed" in caplog.text


def test_large_files_of_the_graph_have_a_checksum_when_the_index_is_closed(
    tmp_path, whole, embedder, monkeypatch, caplog
):
    monkeypatch.setattr(graph_module, "_SUMMED_AT_ONCE", 100)
    shutil.copytree(whole.path, tmp_path / "copy")
    with Index(tmp_path / "copy", embedder) as index:
        index.add(numbered(3400))
        with index._store.ledger.session() as session:
            assert len(session.state().sums) < len(session.state().sizes)
    with Index(tmp_path / "copy", embedder) as index, index._store.ledger.session() as session:
        assert set(session.state().sums) == set(session.state().sizes)


def test_another_format_is_an_error(tmp_path, embedder):
    Index(tmp_path, embedder).close()
    ledger = sqlite3.connect(tmp_path / "documents" / "documents.sqlite3")
    ledger.execute("UPDATE state SET value = '99' WHERE key = 'format'")
    ledger.commit()
    ledger.close()
    with pytest.raises(StoreError, match="has format 99; expected 3"):
        Index(tmp_path, embedder)


def test_an_index_of_the_first_format_is_brought_up_to_date(tmp_path, embedder):
    """As the first format left it: without the tables of fields, checksums, and a name of its own."""
    metadata = {"tags": ["a", "b"], "n": 1}
    with Index(tmp_path, embedder) as index:
        index.add([*numbered(50), Document(id="tagged", text="tagged", metadata=metadata)])
        expected = index.ids({"n": {"$lt": 3}})
    ledger = sqlite3.connect(tmp_path / "documents" / "documents.sqlite3")
    for statement in (
        "DROP TABLE fields",
        "DROP TABLE field_values",
        "ALTER TABLE documents DROP COLUMN crc",
        "ALTER TABLE documents DROP COLUMN vector_sum",
        "DELETE FROM state WHERE key IN ('identity', 'crc')",
        "UPDATE state SET value = '1' WHERE key = 'format'",
    ):
        ledger.execute(statement)
    ledger.commit()
    ledger.close()
    with Index(tmp_path, embedder) as index, Index(tmp_path, embedder) as again:
        assert index.ids({"n": {"$lt": 3}}) == again.ids({"n": {"$lt": 3}}) == expected
        assert again.delete(where={"tags": {"$contains": "b"}}) == 1
        assert len(index.search(vectors(embedder, "x"), k=99)[0]) == 50


@pytest.mark.parametrize("what", ["index", "index/documents", "index/documents/documents.sqlite3"])
def test_an_index_that_vanished_says_so(tmp_path, index, embedder, what):
    index.add(numbered(2100), batch_size=512)
    (tmp_path / what).rename(tmp_path / "elsewhere")
    for call in (
        lambda: index.search(vectors(embedder, "x")),
        lambda: index.add(numbered(2101)),
        lambda: index.ids({"n": 1}),
        index.info,
    ):
        with pytest.raises(
            IndexNotFoundError, match=r"is gone: .* has been moved or deleted.* Open it where"
        ):
            call()


def test_an_index_made_anew_in_its_folder_is_seen(tmp_path, index, embedder):
    index.add(numbered(2100), batch_size=512)
    assert index.search(vectors(embedder, "text number 7"), k=1)[0][0].id == "d00007"
    assert index.ids({"n": 7}) == ["d00007"]
    (tmp_path / "index").rename(tmp_path / "before")
    with Index(tmp_path / "index", embedder) as other:
        other.add([Document(id=f"new{n}", text=f"text number {n}") for n in range(2100)], batch_size=512)
    assert index.search(vectors(embedder, "text number 7"), k=1)[0][0].id == "new7"
    assert index.ids({"n": 7}) == []


def damage_sqlite(folder):
    (folder / "chroma.sqlite3").write_bytes(b"garbage" * 2000)


def damage_graph(folder):
    next(folder.glob("*/index_metadata.pickle")).write_bytes(b"")


def cut_graph(folder):
    for file in folder.glob("*/*.bin"):
        file.write_bytes(file.read_bytes()[:50])


@pytest.mark.parametrize("damage", [damage_sqlite, damage_graph, cut_graph, shutil.rmtree])
def test_a_damaged_graph_is_built_again(tmp_path, whole, embedder, damage, caplog):
    shutil.copytree(whole.path, tmp_path, dirs_exist_ok=True)
    graph = tmp_path / whole.info().chroma_path.relative_to(whole.path)
    damage(graph)
    with caplog.at_level(logging.WARNING), Index(tmp_path, embedder) as index:
        assert answers(index) == answers(whole)
        assert index.add(numbered(2101)) == 1
    assert "Building the search graph" in caplog.text
    assert not graph.exists(), "the damaged files are gone"


def test_a_small_index_is_not_built_again_where_nothing_changed(tmp_path, embedder, caplog):
    """Below 1,000 documents Chroma writes its files anew at each opening, unset memory among them."""
    with Index(tmp_path, embedder) as index:
        index.add(numbered(3))
        graph = index.info().chroma_path
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            for file in graph.glob("*/length.bin"):
                file.write_bytes(random.randbytes(file.stat().st_size))
            with Index(tmp_path, embedder) as index:
                assert index.search(vectors(embedder, "text number 2"), k=1)[0][0].id == "d00002"
    assert not caplog.records
    assert graph.exists(), "it is the same graph"


def test_a_request_that_chroma_refuses_is_not_taken_for_damage(tmp_path, whole, embedder, caplog):
    shutil.copytree(whole.path, tmp_path, dirs_exist_ok=True)
    with caplog.at_level(logging.WARNING), Index(tmp_path, embedder) as index:
        before = index.info().chroma_path
        with pytest.raises(StoreError, match=r"Chroma refused .*, whose files are whole: .* dimension"):
            index._store.read(lambda session, graph: graph.nearest(np.ones((1, 3), np.float32), 1))
        assert index.info().chroma_path == before
        assert answers(index) == answers(whole)
    assert not caplog.records


def embedded(embedder, count):
    documents = numbered(count)
    rows = vectors(embedder, *(f"new {n}" for n in range(count)))
    return [EmbeddedDocument(document=each, vector=row) for each, row in zip(documents, rows, strict=True)]


class Interrupted(list):
    """Documents of which a part has been written when Ctrl-C is pressed."""

    def __getitem__(self, place):
        if isinstance(place, slice) and place.start:
            raise KeyboardInterrupt
        return super().__getitem__(place)


def in_graph(index):
    """What Chroma's own collection holds."""
    found = index._store.read(lambda session, graph: graph.nearest(vectors(TinyEmbedder(), "x"), 1000))
    return {key: round(score, 5) for key, score in found[0].pairs()}


@pytest.mark.parametrize("why", ["dimension", "twice", "interrupted"])
def test_a_write_that_does_not_come_to_its_end_changes_nothing(index, embedder, why, caplog, monkeypatch):
    """Documents go to Chroma in parts: the first of them is there by then."""
    monkeypatch.setattr(graph_module, "_AT_ONCE", 50)
    index.add(numbered(80))
    before = index.info().chroma_path, contents(index), in_graph(index)
    put = embedded(embedder, 120)
    error = pytest.raises(StoreError, match=r"Chroma refused .* whose files are whole")
    if why == "dimension":
        put[-1] = EmbeddedDocument(document=put[-1].document, vector=np.ones(3, np.float32))
    elif why == "twice":
        put.append(put[-1])
    else:
        put, error = Interrupted(put), pytest.raises(KeyboardInterrupt)
    with caplog.at_level(logging.WARNING), error:
        index._store.write(put=put, remove=["d00003"])
    assert (index.info().chroma_path, contents(index), in_graph(index)) == before
    assert index.add(numbered(81)) == 1
    assert not caplog.records, "nothing was built anew"


def test_a_graph_that_is_damaged_while_it_is_open_is_built_anew_once(tmp_path, whole, embedder, caplog):
    shutil.copytree(whole.path, tmp_path, dirs_exist_ok=True)
    with caplog.at_level(logging.WARNING), Index(tmp_path, embedder) as index:
        assert answers(index) == answers(whole)
        graph = index.info().chroma_path
        damage_sqlite(graph)
        cut_graph(graph)
        assert index.add(numbered(2105)) == 5
        assert index.search(vectors(embedder, "text number 2104"), k=1)[0][0].id == "d02104"
    assert caplog.text.count("Building the search graph") == 1


def test_the_graph_is_loaded_before_it_is_needed(tmp_path, whole, embedder):
    shutil.copytree(whole.path, tmp_path, dirs_exist_ok=True)
    with Index(tmp_path, embedder) as index:
        index.warm()
        index.warm()
        index._store._warming.join()
        assert index._store._graph.is_open
        assert answers(index) == answers(whole)
    cut_graph(tmp_path / whole.info().chroma_path.relative_to(whole.path))
    with Index(tmp_path, embedder) as index:
        index.warm()
        assert answers(index) == answers(whole), "what is damaged is built anew meanwhile"
    with Index(tmp_path, embedder) as index:
        index.warm()
    assert not index._store._warming.is_alive(), "closing waits for what is being loaded"


def test_indexes_of_one_process_see_each_other(tmp_path, embedder):
    first, second = Index(tmp_path, embedder), Index(tmp_path / "x" / "..", embedder)
    first.add(numbered(30))
    assert second.search(vectors(embedder, "text number 29"), k=1)[0][0].id == "d00029"
    second.delete(["d00029"])
    assert first.search(vectors(embedder, "text number 29"), k=1)[0][0].id != "d00029"
    first.close()
    second.add(numbered(40))
    assert len(second.search(vectors(embedder, "x"), k=50)[0]) == 40
    second.close()
    with Index(tmp_path, embedder) as again:
        assert len(again.search(vectors(embedder, "x"), k=50)[0]) == 40


def test_threads_share_an_index(tmp_path, embedder):
    index, failures = Index(tmp_path, embedder), []
    index.add(numbered(10))

    def search():
        try:
            for n in range(30):
                (hits,) = index.search(vectors(embedder, f"text number {n % 10}"), k=3)
                assert hits[0].id == f"d{n % 10:05d}"
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=search) for _ in range(4)]
    threads.append(threading.Thread(target=index.add, args=(numbered(200),), kwargs={"batch_size": 2}))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(index) == 200
    index.close()


@pytest.mark.long
def test_reading_while_another_process_adds(tmp_path, whole, embedder):
    """Chroma alone goes on with the graph that it read first, and writes it over the newer one."""
    shutil.copytree(whole.path, tmp_path, dirs_exist_ok=True)
    with Index(tmp_path, embedder) as index:
        assert len(index) == 2100
        process = worker(tmp_path, "add", 3300)
        seen = set()
        while process.is_alive():
            seen.add(count := len(index))
            (hits,) = index.search(vectors(embedder, f"text number {count - 1}"), k=1)
            assert hits[0].id == f"d{count - 1:05d}"
            assert hits[0].score > 0.999
        finish(process)
        assert len(seen) > 5, "readers have their turn"
        index.add(numbered(3400))
    with Index(tmp_path) as index:
        for number in range(0, 3400, 100):
            (hits,) = index.search(vectors(embedder, f"text number {number}"), k=1)
            assert hits[0].id == f"d{number:05d}"


@pytest.mark.long
def test_two_processes_that_add_the_same_end_as_one(tmp_path, embedder):
    processes = [worker(tmp_path / "both", "add", 600) for _ in range(2)]
    for process in processes:
        finish(process)
    with Index(tmp_path / "one", embedder) as one, Index(tmp_path / "both", embedder) as both:
        one.add(numbered(600))
        assert contents(both) == contents(one)
        assert answers(both) == answers(one)


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 6))])
def test_killed_at_any_point_and_run_again_ends_as_if_never_killed(tmp_path, whole, embedder, seed):
    chance = random.Random(seed)
    for _ in range(4):
        process = worker(tmp_path, "add", 2100)
        time.sleep(chance.random() * 0.7)
        process.kill()
        process.join()
    finish(worker(tmp_path, "add", 2100))
    with Index(tmp_path, embedder) as killed:
        assert contents(killed) == contents(whole)
        assert answers(killed) == answers(whole)
        assert answers(killed, where={"source": "f3"}) == answers(whole, where={"source": "f3"})


@pytest.mark.parametrize("stage", ["ledger", "graph"])
def test_a_write_that_died_between_ledger_and_graph_is_finished(tmp_path, embedder, stage):
    """The two states that a kill in the middle of a write leaves, made by hand."""
    with Index(tmp_path, embedder) as index:
        index.add(numbered(20))
        graph = index.info().chroma_path
        shutil.copytree(graph, tmp_path / "old")
        index.add(numbered(30))
        expected = contents(index), answers(index)
    with Ledger(tmp_path / "documents").session(write=True) as session, session.transaction():
        session.write_state(replace(session.state(), dirty=True))
    if stage == "ledger":
        shutil.rmtree(graph)
        shutil.copytree(tmp_path / "old", graph)
    with Index(tmp_path, embedder) as index:
        assert (contents(index), answers(index)) == expected
        assert sorted(hit.id for hit in index.search(vectors(embedder, "x"), k=50)[0]) == index.ids()


@pytest.mark.parametrize(
    "left", [[], ["lock.sqlite3"], ["lock.sqlite3", "turn.sqlite3", "documents.sqlite3"]]
)
def test_a_creation_that_was_cut_short_is_begun_again(tmp_path, embedder, left):
    (tmp_path / "documents").mkdir()
    for name in left:
        (tmp_path / "documents" / name).touch()
    with pytest.raises(IndexNotFoundError):
        Index(tmp_path)
    with Index(tmp_path, embedder) as index:
        assert index.add(numbered(3)) == 3


@pytest.mark.parametrize("create", [False, True])
def test_a_creation_that_was_cut_short_within_its_transaction_is_begun_again(tmp_path, embedder, create):
    """The file has content until SQLite takes back what the journal has; then nothing is left."""
    folder = tmp_path / "index" / "documents"
    folder.mkdir(parents=True)
    with closing(sqlite3.connect(tmp_path / "begun", isolation_level=None)) as begun:
        begun.execute("PRAGMA cache_size = 1")  # pages are written before the end of the transaction
        begun.execute("BEGIN")
        begun.execute("CREATE TABLE state (value BLOB)")
        begun.executemany("INSERT INTO state VALUES (?)", [(bytes(4096),)] * 50)
        for end in ("", "-journal"):
            shutil.copy(tmp_path / f"begun{end}", folder / f"documents.sqlite3{end}")
    assert (folder / "documents.sqlite3").stat().st_size > 0
    if not create:
        with pytest.raises(IndexNotFoundError):
            Index(tmp_path / "index")
        return
    with Index(tmp_path / "index", embedder) as index:
        assert index.add(numbered(3)) == 3


def test_the_progress_bar_shows_rate_and_time_left(tmp_path, embedder, capfd):
    with Index(tmp_path, embedder) as index:
        index.add(numbered(64), show_progress_bar=True, batch_size=1)
        shown = capfd.readouterr().err
        index.add(iter(numbered(70)), show_progress_bar=None)
        assert capfd.readouterr() == ("", "")
    assert "64/64" in shown
    assert "/s" in shown
