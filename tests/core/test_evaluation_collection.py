"""Collections on disk: sound and malformed ones, and corpus encoding that is killed and goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import o1_retriever.evaluation.collection as corpus_module
from o1_retriever.errors import CollectionError, SettingsError
from o1_retriever.evaluation import load_collection
from o1_retriever.evaluation.collection import CollectionReport, Corpus, encode_corpus, splits_of
from o1_retriever.evaluation.metrics import per_query
from o1_retriever.ranking.ranking import search_exactly, tie_order
from tests.core.evaluation_worker import Encoder, vector

DOCUMENTS = [
    {"_id": "d1", "title": "Rust", "text": "Iron oxidises in wet air."},
    {"_id": "d2", "title": "", "text": "Salt lowers the freezing point."},
    {"_id": "d3", "title": "Müll", "text": "Glas wird geschmolzen."},
]
QUERIES = [{"_id": "q1", "text": "Why do nails rust?"}, {"_id": "q2", "text": "Why salt roads?"}]
HEADER = "query-id\tcorpus-id\tscore\n"
QRELS = HEADER + "q1\td1\t2\nq1\td2\t0\nq2\td2\t1\n"


def lines(rows) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data" / "qrels").mkdir(parents=True)
    root = tmp_path / "data"
    (root / "corpus.jsonl").write_text(lines(DOCUMENTS), encoding="utf-8")
    (root / "queries.jsonl").write_text(lines(QUERIES), encoding="utf-8")
    (root / "qrels" / "test.tsv").write_text(QRELS, encoding="utf-8")
    return root


def test_a_sound_collection_is_read_as_it_is(folder: Path) -> None:
    collection = load_collection(folder, strict=True)
    assert list(collection.corpus.ids) == ["d1", "d2", "d3"]
    assert collection.corpus.texts(0, 2) == [
        "Rust Iron oxidises in wet air.",
        "Salt lowers the freezing point.",
    ]
    assert collection.corpus.texts(2, 3) == ["Müll Glas wird geschmolzen."]
    assert collection.queries == {"q1": "Why do nails rust?", "q2": "Why salt roads?"}
    assert collection.qrels == {"q1": {"d1": 2, "d2": 0}, "q2": {"d2": 1}}
    assert str(collection.report).endswith("no problems.")
    assert (collection.name, collection.split, splits_of(folder)) == ("data", "test", ["test"])


def test_queries_that_the_split_does_not_judge_are_left_out(folder: Path) -> None:
    (folder / "qrels" / "dev.tsv").write_text(HEADER + "q2\td2\t1\n")
    assert list(load_collection(folder, split="dev", strict=True).queries) == ["q2"]
    with pytest.raises(CollectionError, match=r"Splits of this collection: dev, test"):
        load_collection(folder, split="train")


def add(name: str, text: str):
    def change(root: Path) -> None:
        with (root / name).open("a", encoding="utf-8") as file:
            file.write(text)

    return change


def rewrite(name: str, change):
    return lambda root: (root / name).write_bytes(change((root / name).read_bytes()))


CORPUS, ASKED, JUDGED = "corpus.jsonl", "queries.jsonl", "qrels/test.tsv"
MALFORMED = {
    "duplicate document id": add(CORPUS, lines([{"_id": "d1", "text": "Another."}])),
    "duplicate query id": add(ASKED, lines([{"_id": "q1", "text": "Another?"}])),
    "empty document": add(CORPUS, lines([{"_id": "d4", "title": " ", "text": "\n"}])),
    "empty query": add(ASKED, lines([{"_id": "q3", "text": " "}])),
    "broken document": add(CORPUS, '{"_id": "d4", "text": "\\ud800"}\n'),
    "broken query": add(ASKED, '{"_id": "q4", "text": "\\ud800"}\n'),
    "judged document missing": add(JUDGED, "q2\tnowhere\t0\n"),
    "judged query missing": add(JUDGED, "q9\td1\t1\n"),
    "query without relevant document": lambda root: (
        add(ASKED, lines([{"_id": "q3", "text": "What?"}]))(root),
        add(JUDGED, "q3\td1\t0\n")(root),
    ),
    "duplicate judgment": add(JUDGED, "q1\td1\t0\n"),
    "wrong score": add(JUDGED, "q1\td3\thigh\n"),
    "wrong columns": add(JUDGED, "q1\td3\n"),
    "no header": rewrite(JUDGED, lambda data: data.removeprefix(HEADER.encode())),
    "wrong header": rewrite(JUDGED, lambda data: data.replace(b"query-id", b"qid")),
    "not JSON": add(CORPUS, '{"_id": "d4", \n'),
    "wrong fields": add(
        CORPUS, '["d4"]\n{"_id": "", "text": "x"}\n{"_id": "d5", "text": 3}\n{"text": "x"}\n'
    ),
    "not UTF-8": rewrite(ASKED, lambda data: data + b'{"_id": "q3", "text": "\xff\xfe"}\n'),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_collection_is_reported_and_refused_when_strict(kind: str, folder: Path) -> None:
    sound = load_collection(folder)
    MALFORMED[kind](folder)
    collection = load_collection(folder)
    assert collection.report.kinds == (kind,)
    # What was sound is still there, unchanged.
    assert list(collection.corpus.ids) == list(sound.corpus.ids)
    assert collection.corpus.texts(0, 3) == sound.corpus.texts(0, 3)
    assert sound.queries.items() <= collection.queries.items()
    assert all(sound.qrels[query].items() <= collection.qrels[query].items() for query in sound.qrels)
    with pytest.raises(CollectionError, match=kind) as caught:
        load_collection(folder, strict=True)
    assert "--strict" in (caught.value.hint or "")


@pytest.mark.parametrize("name", [CORPUS, ASKED, JUDGED])
def test_byte_order_marks_and_windows_line_ends_change_nothing(name: str, folder: Path) -> None:
    sound = load_collection(folder)
    texts = sound.corpus.texts(0, 3)
    rewrite(name, lambda data: b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n"))(folder)
    collection = load_collection(folder)
    assert set(collection.report.kinds) == {"byte order mark", "Windows line ends"}
    assert collection.corpus.texts(0, 3) == texts
    if name == CORPUS:
        with pytest.raises(CollectionError, match="has changed"):
            sound.corpus.texts(0, 3)
    assert collection.corpus.digest == sound.corpus.digest
    assert (collection.queries, collection.qrels) == (sound.queries, sound.qrels)
    with pytest.raises(CollectionError, match="byte order mark"):
        load_collection(folder, strict=True)


def test_trec_columns_and_numeric_ids_are_understood(folder: Path) -> None:
    (folder / CORPUS).write_text('{"_id": 7, "text": "Seven."}\n')
    (folder / JUDGED).write_text("q1 0 7 1\n")
    collection = load_collection(folder)
    assert collection.qrels == {"q1": {"7": 1}}
    assert list(collection.corpus.ids) == ["7"]


def test_an_id_without_its_underscore_is_understood(folder: Path) -> None:
    sound = load_collection(folder)
    texts = sound.corpus.texts(0, 2)
    for name, rows in ((CORPUS, DOCUMENTS), (ASKED, QUERIES)):
        (folder / name).write_text(
            lines({"id" if k == "_id" else k: v for k, v in row.items()} for row in rows)
        )
    renamed = load_collection(folder, strict=True)
    assert renamed.corpus.digest == sound.corpus.digest
    assert renamed.queries == sound.queries
    assert renamed.corpus.texts(0, 2) == texts


def test_the_report_counts_and_shows_the_first_places(folder: Path) -> None:
    add(CORPUS, lines([{"_id": "d1", "text": "Again."}] * 5))(folder)
    report = str(load_collection(folder).report)
    assert "duplicate document id: 5" in report
    assert "line 4" in report
    assert "line 7" not in report


def test_what_cannot_be_measured_is_an_error(folder: Path) -> None:
    (folder / JUDGED).write_text(HEADER + "q9\td1\t1\n")
    with pytest.raises(CollectionError, match="0 judged queries"):
        load_collection(folder)
    (folder / CORPUS).unlink()
    with pytest.raises(CollectionError, match=r"no file .*corpus\.jsonl"):
        load_collection(folder)


def test_other_wordings_of_the_queries_keep_their_judgments(folder: Path) -> None:
    other = load_collection(folder).with_queries({"q2": "WHY SALT?", "q8": "?"}, name="upper")
    assert (other.queries, other.qrels, other.name) == ({"q2": "WHY SALT?"}, {"q2": {"d2": 1}}, "upper")


@pytest.fixture
def longer(folder: Path) -> Path:
    words = [f"w{number}" for number in range(30)]
    texts = [" ".join(words[(3 * n + i) % 30] for i in range(5)) for n in range(22)]
    (folder / CORPUS).write_text(lines({"_id": f"d{n}", "text": text} for n, text in enumerate(texts)))
    return folder


@pytest.mark.parametrize(
    ("step", "count"),
    [("encode", 1), ("encode", 3), ("fsync", 3), ("fsync", 4), ("replace", 1), ("replace", 5)],
)
def test_a_killed_encoding_ends_as_if_never_killed(
    step: str, count: int, longer: Path, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_module, "BLOCK", 4)
    collection = load_collection(longer)
    whole = encode_corpus(Encoder(), collection.corpus, tmp_path / "whole")
    command = [sys.executable, "-m", "tests.core.evaluation_worker", longer, tmp_path / "killed", step, count]
    died = subprocess.run(list(map(str, command)), cwd=root, env=os.environ | {"PYTHONPATH": str(root)})
    assert died.returncode == -signal.SIGKILL
    encoder = Encoder()
    resumed = encode_corpus(encoder, collection.corpus, tmp_path / "killed")
    assert np.array_equal(whole.matrix, resumed.matrix)
    # Only what had not been counted was done again.
    assert (
        encoder.documents
        == 22 - 4 * {"encode": count - 1, "fsync": (count - 1) // 2, "replace": count - 1}[step]
    )
    assert _metrics(collection, whole.matrix) == _metrics(collection, resumed.matrix)


def _metrics(collection, matrix):
    ids = collection.corpus.ids
    queries = np.stack([vector(text) for text in collection.queries.values()])
    found = search_exactly(queries, matrix, 10, ties=tie_order(ids))
    run = {key: ranking.by_id(ids) for key, ranking in zip(collection.queries, found, strict=True)}
    return per_query(collection.qrels, run)


def _corpus(folder: Path, texts: dict[str, str]) -> Corpus:
    file = folder / "corpus.jsonl"
    file.write_text(lines({"_id": key, "text": text} for key, text in texts.items()), encoding="utf-8")
    return Corpus(file, CollectionReport(str(folder)))


def test_an_encoded_corpus_is_taken_from_disk_and_truncated_on_reading(tmp_path: Path) -> None:
    corpus = _corpus(tmp_path, {"a": "one two", "b": "three", "c": "four five"})
    first = encode_corpus(Encoder(), corpus, tmp_path)
    again = Encoder()
    short = encode_corpus(again, corpus, tmp_path, truncate_dim=3)
    assert again.calls == 0
    expected = first.matrix[:, :3] / np.linalg.norm(first.matrix[:, :3], axis=1, keepdims=True)
    assert short.matrix == pytest.approx(expected)
    other = Encoder()
    changed = _corpus(tmp_path, {"a": "one two", "b": "three!", "c": "four five"})
    encode_corpus(other, changed, tmp_path)
    assert other.documents == 3
    with pytest.raises(SettingsError, match="truncate_dim"):
        encode_corpus(again, corpus, tmp_path, truncate_dim=9)


def test_damaged_notes_mean_encoding_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    corpus = _corpus(tmp_path, {"a": "one two", "b": "three"})
    expected = np.array(encode_corpus(Encoder(), corpus, tmp_path).matrix)
    (note,) = tmp_path.glob("*.json")
    note.write_text("{")
    assert np.array_equal(encode_corpus(Encoder(), corpus, tmp_path).matrix, expected)
    assert "encoded anew" in caplog.text
    (vectors,) = tmp_path.glob("*.f32")
    os.truncate(vectors, 5)
    assert np.array_equal(encode_corpus(Encoder(), corpus, tmp_path).matrix, expected)
