"""BRIGHT from a copy of its data set: the tasks of MTEB by name, without the Hub."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

pytest.importorskip("mteb", reason="needs the extra `eval`")
pytest.importorskip("bm25s", reason="needs the extra `index`")

import pyarrow as pa
import pyarrow.parquet as pq
from typer.testing import CliRunner

from o1_retriever.errors import CollectionError
from o1_retriever.evaluation.collection import load_collection
from o1_retriever.evaluation.comparison import evaluate
from o1_retriever.evaluation.sources import members, open_collection, write_collection
from o1_retriever.evaluation.systems import Lexical, bm25_over

DOMAINS = ("biology", "pony")
TASKS = ("BrightBiologyRetrieval", "BrightPonyRetrieval")


def rows(domain: str) -> dict[str, list[dict[str, object]]]:
    """One question a domain; the document that it was made of answers it best and is excluded."""
    documents = [
        {"id": f"{domain}/asked", "content": f"{domain} question about why leaves fall"},
        {"id": f"{domain}/right", "content": f"{domain} leaves fall as hormones change"},
        {"id": f"{domain}/other", "content": f"{domain} rivers run to the sea"},
    ]
    example = {
        "id": "0",
        "query": f"{domain} question about why leaves fall",
        "reasoning": "",
        "excluded_ids": [f"{domain}/asked"] if domain == "biology" else ["N/A"],
        "gold_ids": [f"{domain}/right"],
        "gold_ids_long": [f"{domain}/long"],
        "gold_answer": "",
    }
    long = [{"id": f"{domain}/long", "content": f"{domain} leaves fall"}]
    return {"documents": documents, "examples": [example], "long_documents": long}


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of the data set, as a snapshot of the Hub has them."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    folder = tmp_path / "BRIGHT"
    lines = ["---", "configs:"]
    for config in rows("biology"):
        lines += [f"- config_name: {config}", "  data_files:"]
        (folder / config).mkdir(parents=True)
        for domain in DOMAINS:
            name = f"{config}/{domain}-00000-of-00001.parquet"
            pq.write_table(pa.Table.from_pylist(rows(domain)[config]), folder / name)
            lines += [f"  - split: {domain}", f"    path: {config}/{domain}-*"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    return folder


def test_its_benchmark_is_its_current_tasks() -> None:
    found = members("mteb:BRIGHT(v1.1)@copy")
    assert len(found) == 20
    assert found[0] == "mteb:BrightBiologyRetrieval@copy"
    assert {f"mteb:{name}@copy" for name in TASKS} < set(found)
    for name in ("mteb:BrightBiologyRetrieval", "beir/scifact/test", "folder"):
        assert members(name) == [name]


def test_what_a_question_was_made_of_is_not_found_for_it(copy: Path, tmp_path: Path) -> None:
    collection = open_collection(f"mteb:{TASKS[0]}@{copy}", work=tmp_path, strict=True)
    assert (collection.name, collection.split) == (TASKS[0], "test")
    assert collection.excluded == {"0": frozenset({"biology/asked"})}
    system = Lexical(name="BM25", corpus=collection.corpus, index=bm25_over(collection.corpus))
    found = evaluate(collection, [system], depth=2)
    assert list(found["BM25"].run["0"]) == ["biology/right", "biology/other"]
    assert found["BM25"].means["nDCG@10"] == 1
    pony = open_collection(f"mteb:{TASKS[1]}@{copy}", work=tmp_path, strict=True)
    assert pony.excluded == {}
    system = Lexical(name="BM25", corpus=pony.corpus, index=bm25_over(pony.corpus))
    assert next(iter(evaluate(pony, [system])["BM25"].run["0"])) == "pony/asked"
    long = open_collection(f"mteb:BrightPonyLongRetrieval@{copy}", work=tmp_path, strict=True)
    assert long.corpus.ids == ["pony/long"]


def test_the_command_reports_each_domain(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from o1_retriever.cli.app import app
    from tests.support.tiny import tiny_model

    monkeypatch.setenv("COLUMNS", "240")
    model, tokenizer = tiny_model("llama")
    for each in (model, tokenizer):
        each.save_pretrained(tmp_path / "tiny")
    named = [part for task in TASKS for part in ("--data", f"mteb:{task}@{copy}")]
    options = ["--bm25", "-n", "never", "--work", str(tmp_path / "w"), "--report", str(tmp_path / "r")]
    done = CliRunner().invoke(app, ["eval", "--model", str(tmp_path / "tiny"), *named, *options])
    assert done.exit_code == 0, done.output
    lines = (tmp_path / "r" / "summary.md").read_text().splitlines()
    assert lines[2] == "| nDCG@10 | tiny, no thoughts | BM25 |"
    assert [line.split(" |")[0] for line in lines[4:]] == [f"| {name}" for name in (*TASKS, "mean")]
    values = [float(line.split(" | ")[2].removesuffix(" |")) for line in lines[4:]]
    assert values[2] == pytest.approx((values[0] + values[1]) / 2, abs=1e-4)
    assert (tmp_path / "r" / "BrightPonyRetrieval-test" / "report.md").is_file()


def test_a_name_that_mteb_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(CollectionError, match="knows no task 'BrightBotanyRetrieval'"):
        open_collection("mteb:BrightBotanyRetrieval", work=tmp_path)
    with pytest.raises(CollectionError, match="cannot be loaded"):
        open_collection(f"mteb:{TASKS[0]}@{tmp_path / 'nowhere'}", work=tmp_path)


def write(folder: Path, excluded: Sequence[tuple[str, str]]) -> Path:
    write_collection(
        folder,
        documents=[{"_id": name, "title": "", "text": f"text {name}"} for name in ("a", "b")],
        queries=[{"_id": "q", "text": "text"}],
        judgments=[("q", "a", 1)],
        excluded=excluded,
    )
    return folder


def test_exclusions_are_read_and_those_that_cannot_be_are_named(tmp_path: Path) -> None:
    assert load_collection(write(tmp_path / "none", [])).excluded == {}
    assert not (tmp_path / "none" / "excluded").exists()
    folder = write(tmp_path / "some", [("q", "b"), ("q", "c")])
    assert load_collection(folder, strict=True).excluded == {"q": frozenset({"b", "c"})}
    path = folder / "excluded" / "test.tsv"
    path.write_text(path.read_text() + "q\n", encoding="utf-8")
    found = load_collection(folder)
    assert found.excluded == {"q": frozenset({"b", "c"})}
    assert "wrong exclusion: 1" in str(found.report)
    with pytest.raises(CollectionError, match="wrong exclusion"):
        load_collection(folder, strict=True)


def test_mteb_leaves_the_same_out(tmp_path: Path) -> None:
    import mteb

    from mteb_o1_retriever import O1Model, as_task
    from tests.support.adapters import FAST, small_embedder

    for name, excluded, expected in (("one", [("q", "b")], 1.0), ("two", [], 0.0)):
        folder = tmp_path / name
        write_collection(
            folder,
            documents=[
                {"_id": each, "title": "", "text": text} for each, text in (("a", "far off"), ("b", "near"))
            ],
            queries=[{"_id": "q", "text": "near"}],
            judgments=[("q", "a", 1)],
            excluded=excluded,
        )
        task = as_task(load_collection(folder), name=f"excluded-{name}")
        done = mteb.evaluate(
            O1Model(small_embedder(), settings=FAST), task, cache=None, show_progress_bar=False
        )
        assert done.task_results[0].scores["test"][0]["ndcg_at_1"] == expected


def test_reports_in_one_folder_have_a_history(tmp_path: Path) -> None:
    from o1_retriever.evaluation.report import write_report

    collection = load_collection(write(tmp_path / "some", []))
    system = Lexical(name="BM25", corpus=collection.corpus, index=bm25_over(collection.corpus))
    target = write_report(evaluate(collection, [system]), tmp_path / "r")
    assert "run into this folder" not in (target / "report.html").read_text()
    path = target / "history.jsonl"
    before = json.loads(path.read_text())
    path.write_text(json.dumps({**before, "date": "2020-01-01T00:00:00+00:00", "nDCG@10": 0.25}) + "\n")
    write_report(evaluate(collection, [system]), tmp_path / "r")
    known = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["nDCG@10"] for row in known] == [0.25, before["nDCG@10"]]
    assert "nDCG@10 of 2 runs into this folder" in (target / "report.html").read_text()
    assert (target / "plots" / "history.svg").is_file()
