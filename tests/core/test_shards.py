"""Many documents to shards: what is read of a source, resuming, the manifest, and what a check finds."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from o1_retriever import Index
from o1_retriever.documents import records
from o1_retriever.documents.records import Fields, Piece
from o1_retriever.errors import DocumentError, FingerprintError, IndexNotFoundError, SettingsError, StoreError
from o1_retriever.index import shards
from o1_retriever.index.foreign import load_shards, opened_for
from o1_retriever.index.ledger import digest_of
from o1_retriever.index.shards import Manifest, Plan, ShardOptions, check_shards, embed_shards, read_shard
from tests.support.index_worker import TinyEmbedder

arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

ROWS = [{"id": f"d{number}", "text": f"text {number}", "year": 2000 + number} for number in range(25)]
SMALL = ShardOptions(rows=4, batch_size=1)


def lines(folder: Path, rows=ROWS, name: str = "rows.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def kept(folder: Path) -> dict[str, tuple[str, dict, tuple]]:
    """All documents of a folder of shards by id; each stands there once."""
    found = {}
    for shard in Manifest.read(folder).shards:
        for page in read_shard(folder / shard.name):
            for each in page:
                assert each.document.id not in found
                found[each.document.id] = (
                    each.document.text,
                    each.document.metadata,
                    tuple(each.vector.tolist()),
                )
    return found


def test_every_document_is_embedded_once_and_in_order(tmp_path):
    embedder = TinyEmbedder()
    manifest = embed_shards(lines(tmp_path), tmp_path / "out", embedder, options=SMALL)
    assert (manifest.documents, len(manifest.shards), manifest.left_out) == (25, 7, {})
    assert sorted(embedder.texts) == sorted(row["text"] for row in ROWS)
    found = kept(tmp_path / "out")
    assert list(found) == [row["id"] for row in ROWS]
    text, metadata, vector = found["d7"]
    assert (text, metadata) == ("text 7", {"year": 2007})
    assert np.allclose(vector, embedder.vector("text 7"), atol=1e-6)
    table = parquet.read_table(tmp_path / "out" / "shard-000001.parquet")
    assert table.column_names == ["id", "text", "text_hash", "metadata", "vector"]
    assert table["text_hash"][0].as_py() == digest_of("text 4")


@pytest.mark.parametrize("numbers", ["float32", "float16", "int8"])
def test_the_number_format_keeps_the_direction(tmp_path, numbers):
    options = replace(SMALL, numbers=numbers)
    embed_shards(lines(tmp_path), tmp_path / "out", TinyEmbedder(), options=options)
    kind = parquet.read_schema(tmp_path / "out" / "shard-000000.parquet").field("vector").type
    assert str(kind.value_type) in (numbers, {"float32": "float", "float16": "halffloat"}.get(numbers))
    for text, _, vector in kept(tmp_path / "out").values():
        row = np.array(vector)
        assert row @ TinyEmbedder().vector(text) / np.linalg.norm(row) > 0.9995


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "hub", "folder"])
def test_any_source_gives_the_same_documents(tmp_path, kind):
    if kind == "parquet":
        source = str(tmp_path / "rows.parquet")
        parquet.write_table(arrow.Table.from_pylist(ROWS), source, row_group_size=7)
    elif kind == "hub":
        datasets = pytest.importorskip("datasets")
        (tmp_path / "data").mkdir()
        lines(tmp_path / "data")
        datasets.config.HF_DATASETS_CACHE = tmp_path / "cache"
        source = f"hub:{tmp_path / 'data'}:train"
    elif kind == "folder":
        (tmp_path / "data").mkdir()
        lines(tmp_path / "data", ROWS[:9], "a.jsonl")
        parquet.write_table(arrow.Table.from_pylist(ROWS[9:]), tmp_path / "data" / "b.parquet")
        source = str(tmp_path / "data")
    else:
        source = lines(tmp_path)
    embed_shards(source, tmp_path / "out", TinyEmbedder(), options=SMALL)
    found = kept(tmp_path / "out")
    assert {id: (text, metadata) for id, (text, metadata, _) in found.items()} == {
        row["id"]: (row["text"], {"year": row["year"]}) for row in ROWS
    }


@given(
    st.lists(st.one_of(st.just(""), st.text(st.characters(codec="utf-8"))), min_size=1, max_size=30),
    st.integers(1, 12),
)
def test_pieces_of_lines_give_each_row_once_whatever_is_in_it(tmp_path_factory, texts, rows):
    source = lines(tmp_path_factory.mktemp("rows"), [{"text": text} for text in texts])
    pieces = records.cut(source, rows)
    assert sum(piece.rows for piece in pieces) == len(texts)
    found = [each for piece in pieces for each in records.documents(piece, Fields())]
    assert [number for number, _ in found] == list(range(len(texts)))
    for (number, document), text in zip(found, texts, strict=True):
        if not isinstance(document, str):
            assert document.id == f"row-{number}"
            assert document.text.split() == text.replace("\0", " ").split()
        else:
            assert not text.replace("\0", " ").strip()


def test_pieces_of_a_table_begin_within_its_row_groups(tmp_path):
    path = tmp_path / "rows.parquet"
    parquet.write_table(arrow.Table.from_pylist(ROWS), path, row_group_size=6)
    for rows in (1, 4, 6, 11, 100):
        found = [
            document.id
            for piece in records.cut(str(path), rows)
            for _, document in records.documents(piece, Fields())
        ]
        assert found == [row["id"] for row in ROWS]


def test_rows_that_are_no_documents_are_counted_and_left_out(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "good"}\n\n{broken\n[1]\n{"text": ""}\n{"title": "only"}\n{"text": "last"}')
    manifest = embed_shards(str(path), tmp_path / "out", TinyEmbedder(), options=SMALL)
    assert manifest.left_out == {
        "no object": 1,
        "not JSON": 1,
        "without a text": 2,
        "without a text in 'text' or 'contents'": 1,
    }
    assert list(kept(tmp_path / "out")) == ["row-0", "row-6"]


def test_a_repeated_id_is_said_and_the_last_one_counts_in_a_store(tmp_path):
    rows = [{"id": "a", "text": "first"}, {"id": "b", "text": "other"}, {"id": "a", "text": "last"}]
    manifest = embed_shards(
        lines(tmp_path, rows), tmp_path / "out", TinyEmbedder(), options=replace(SMALL, rows=2)
    )
    assert (manifest.documents, manifest.repeated_ids) == (3, 1)
    pytest.importorskip("chromadb")
    with opened_for(str(tmp_path / "index"), "documents", tmp_path / "out") as index:
        load_shards(tmp_path / "out", index)
        assert [document.text for document in index.get(["a", "b"])] == ["last", "other"]


def test_the_fields_can_be_named(tmp_path):
    source = lines(tmp_path, [{"key": 7, "passage": "seven", "title": "Numbers"}])
    options = replace(SMALL, fields=Fields(text="passage", id="key"))
    embed_shards(source, tmp_path / "out", TinyEmbedder(), options=options)
    assert kept(tmp_path / "out")["7"][:2] == ("Numbers\nseven", {"title": "Numbers"})


def test_a_run_goes_on_where_it_stopped_and_ends_the_same(tmp_path):
    source = lines(tmp_path)
    whole = embed_shards(source, tmp_path / "whole", TinyEmbedder(), options=SMALL)

    class Stops(TinyEmbedder):
        def encode_documents(self, documents, **options):
            if len(self.texts) > 9:
                raise KeyboardInterrupt
            return super().encode_documents(documents, **options)

    with pytest.raises(KeyboardInterrupt):
        embed_shards(source, tmp_path / "out", Stops(), options=SMALL)
    assert not (tmp_path / "out" / shards.MANIFEST).exists()
    assert not list((tmp_path / "out").glob("*.new"))
    with pytest.raises(IndexNotFoundError, match="no complete folder"):
        Manifest.read(tmp_path / "out")
    rest = TinyEmbedder()
    again = embed_shards(source, tmp_path / "out", rest, options=SMALL)
    assert len(rest.texts) == 25 - 12
    assert replace(again, source="") == replace(whole, source="")
    for file in (tmp_path / "whole").glob("*.parquet"):
        assert file.read_bytes() == (tmp_path / "out" / file.name).read_bytes()
    idle = TinyEmbedder()
    assert embed_shards(source, tmp_path / "out", idle, options=SMALL) == again
    assert idle.texts == []


def test_a_full_disk_is_said_and_the_same_command_goes_on(tmp_path, monkeypatch):
    source = lines(tmp_path)

    def full(*arguments, **named):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(parquet.ParquetWriter, "write_batch", full)
        with pytest.raises(StoreError, match=r"No space left.* type the same"):
            embed_shards(source, tmp_path / "out", TinyEmbedder(), options=SMALL)
    assert embed_shards(source, tmp_path / "out", TinyEmbedder(), options=SMALL).documents == 25


def _embed(source: str, folder: str) -> None:
    embed_shards(source, Path(folder), TinyEmbedder(delay=0.005), options=SMALL)


@pytest.mark.long
def test_a_process_that_is_killed_anywhere_loses_a_shard_at_most(tmp_path):
    source = lines(tmp_path)
    whole = embed_shards(source, tmp_path / "whole", TinyEmbedder(), options=SMALL)
    for attempt in range(6):
        process = multiprocessing.get_context("spawn").Process(
            target=_embed, args=(source, str(tmp_path / "out"))
        )
        process.start()
        for _ in range(5000):
            if len(list((tmp_path / "out").glob("*.parquet"))) > attempt or not process.is_alive():
                break
            process.join(0.002)
        if process.is_alive():
            os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
    done = embed_shards(source, tmp_path / "out", TinyEmbedder(), options=SMALL)
    assert done.content == whole.content
    assert len(kept(tmp_path / "out")) == 25
    assert not check_shards(tmp_path / "out").problems


def test_another_source_model_or_format_is_refused(tmp_path):
    source = lines(tmp_path)
    embed_shards(source, tmp_path / "out", TinyEmbedder(), options=SMALL)
    with pytest.raises(FingerprintError, match="document space"):
        embed_shards(source, tmp_path / "out", TinyEmbedder(weights="other"), options=SMALL)
    with pytest.raises(StoreError, match=r"another plan .*options"):
        embed_shards(source, tmp_path / "out", TinyEmbedder(), options=replace(SMALL, numbers="int8"))
    lines(tmp_path, ROWS[:-1])
    with pytest.raises(StoreError, match=r"another plan .*identity"):
        embed_shards(source, tmp_path / "out", TinyEmbedder(), options=SMALL)


def test_what_cannot_be_read_is_named(tmp_path):
    for name, words in (
        ("none.jsonl", "no such file"),
        ("rows.jsonl.gz", "Unpack it"),
        ("a.txt", "expected"),
    ):
        if name != "none.jsonl":
            (tmp_path / name).write_bytes(b"x")
        with pytest.raises(DocumentError, match=words):
            embed_shards(str(tmp_path / name), tmp_path / "out", TinyEmbedder())
    (tmp_path / "wide.jsonl").write_text("{}", encoding="utf-16")
    with pytest.raises(DocumentError, match="UTF-16"):
        embed_shards(str(tmp_path / "wide.jsonl"), tmp_path / "out", TinyEmbedder())
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DocumentError, match="Parquet"):
        embed_shards(str(tmp_path / "bad.parquet"), tmp_path / "out", TinyEmbedder())
    with pytest.raises(SettingsError, match="float32, float16, int8"):
        ShardOptions(numbers="float64")


def test_two_processes_do_not_write_one_folder(tmp_path):
    with shards._alone(tmp_path / "out"), pytest.raises(StoreError, match="Another process"):
        embed_shards(lines(tmp_path), tmp_path / "out", TinyEmbedder(), options=SMALL)


def damage_vector(file: Path) -> None:
    content = bytearray(file.read_bytes())
    place = len(content) // 2
    content[place] ^= 0xFF
    file.write_bytes(content)


DAMAGES = {
    "missing": (lambda file: file.unlink(), "is missing"),
    "cut": (lambda file: file.write_bytes(file.read_bytes()[:-40]), "is damaged"),
    "flipped": (damage_vector, "damaged|another content|other hashes"),
    "another": (lambda file: file.write_bytes(file.with_name(shards.name_of(0)).read_bytes()), "another"),
    "more": (lambda file: (file.parent / "x.parquet").write_bytes(b""), "not in the manifest"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_check_finds_what_is_wrong(tmp_path, kind):
    embed_shards(lines(tmp_path), tmp_path / "out", TinyEmbedder(), options=SMALL)
    good = check_shards(tmp_path / "out")
    assert (good.documents, good.problems) == (25, ())
    damage, words = DAMAGES[kind]
    damage(tmp_path / "out" / "shard-000002.parquet")
    (problem,) = check_shards(tmp_path / "out").problems
    assert re.search(words, problem), problem


def test_a_damaged_shard_is_made_again(tmp_path):
    source = lines(tmp_path)
    whole = embed_shards(source, tmp_path / "out", TinyEmbedder(), options=SMALL)
    (tmp_path / "out" / "shard-000003.parquet").write_bytes(b"nothing")
    again = embed_shards(source, tmp_path / "out", TinyEmbedder(), options=SMALL)
    assert again == whole
    assert not check_shards(tmp_path / "out").problems


def test_shards_load_into_our_index_once_however_often(tmp_path):
    pytest.importorskip("chromadb")
    embedder = TinyEmbedder()
    embed_shards(lines(tmp_path), tmp_path / "out", embedder, options=SMALL)
    for _ in range(2):
        with opened_for(str(tmp_path / "index"), "documents", tmp_path / "out") as target:
            assert load_shards(tmp_path / "out", target) == 25
            assert target.count() == 25
    with Index(tmp_path / "direct", embedder) as direct, Index(tmp_path / "index", embedder) as loaded:
        direct.add(ROWS)
        vectors = [embedder.vector(f"text {number}") for number in (3, 20)]
        assert loaded.search(vectors, k=5) == direct.search(vectors, k=5)
        assert loaded.add(ROWS) == 0
    with pytest.raises(FingerprintError):
        Index(tmp_path / "index", TinyEmbedder(weights="other"))


def test_shards_without_texts_are_smaller_and_not_loaded(tmp_path):
    options = replace(SMALL, texts=False)
    embed_shards(lines(tmp_path), tmp_path / "out", TinyEmbedder(), options=options)
    assert not check_shards(tmp_path / "out").problems
    with pytest.raises(SettingsError, match="no texts"):
        opened_for(str(tmp_path / "index"), "documents", tmp_path / "out")


def test_a_plan_that_is_read_is_the_plan_that_was_written(tmp_path):
    embed_shards(lines(tmp_path), tmp_path / "out", TinyEmbedder(), options=SMALL)
    plan = Plan.read(tmp_path / "out")
    assert plan.digest == Manifest.read(tmp_path / "out").plan
    assert plan.pieces[1] == Piece(
        file=str(tmp_path / "rows.jsonl"), start=plan.pieces[1].start, rows=4, first=4
    )


def test_the_commands_embed_check_and_load(tmp_path):
    pytest.importorskip("chromadb")
    from tests.support.commands import ok, refused, save

    model, out = str(save(tmp_path / "model")), str(tmp_path / "out")
    source = lines(tmp_path)
    said = ok("embed", source, out, "--model", model, "--shard-rows", "10", "--numbers", "float16")
    assert "25 documents in 3 shards (float16, 32 numbers each)" in said
    assert "all as the manifest says" in ok("embed", "--check", out)
    assert "25 documents loaded, 25 in all" in ok("load", out, "--into", str(tmp_path / "index"))
    found = ok("search", "text 3", "--index", str(tmp_path / "index"), "--model", model, "--fast")
    assert "text" in found
    (tmp_path / "out" / "shard-000001.parquet").unlink()
    assert "1 problem" in refused("embed", "--check", out)
    assert "SOURCE or no DEST" in refused("embed", source)
    assert "without a cluster" in refused("embed", source, out, "--model", model, "--actors", "2")
