"""The commands that make training data, as a user types them."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from o1_retriever.cli.app import OWN
from o1_retriever.errors import O1RetrieverError
from o1_retriever_training.pages import examine, write_page
from tests.support.chat_server import chat_server, completion, refusal
from tests.support.facts import FACTS


def run(name: str, *arguments: str):
    point = EntryPoint(name=name, value=f"o1_retriever_training.commands:{name.replace('-', '_')}", group="g")
    app = typer.Typer()
    app.command(name)(point.load())
    return CliRunner().invoke(app, list(arguments))


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        "".join(json.dumps({"query": f"what about {k}?", "pos": [v]}) + "\n" for k, v in FACTS.items())
    )
    return path


@pytest.fixture
def server():
    def answer(body, number: int):
        asked = body["messages"][-1]["content"]
        if "You are given a passage" in body["messages"][0]["content"]:
            return completion("Which text says: " + " ".join(asked.split()[:6]) + "?")
        return completion(f"It is about {asked.rsplit('Query: ')[-1][:60]} {body['seed'] % 7}")

    with chat_server() as running:
        running.answer = answer
        yield running


def test_pairs_become_voted_rows(tmp_path: Path, pairs: Path, server) -> None:
    thoughts, voted, page = (tmp_path / name for name in ("thoughts.jsonl", "voted.jsonl", "report.html"))
    arguments = ["--pairs", str(pairs), "--out", str(thoughts), "--expert", server.url, "--expert-model", "m"]
    first = run("synthesize", *arguments, "-n", "2", "--prices", "1,2")
    assert first.exit_code == 0, first.output
    assert "8 rows written" in first.output
    assert "$" in first.output
    second = run("synthesize", *arguments, "-n", "2")
    assert "0 rows written, 8 were there" in second.output
    done = run(
        "vote", "--in", str(thoughts), "--out", str(voted), "--committee", "bm25", "--report", str(page)
    )
    assert done.exit_code == 0, done.output
    assert "8 of 8 rows voted" in done.output
    assert {row["thought"] is not None for row in rows_of(voted)} == {True}
    text = page.read_text()
    assert text.count('class="row"') == 8
    assert "<svg" in text
    assert "http" not in text.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "https://matplotlib.org", ""
    ).replace("http://creativecommons.org", "")


def test_another_n_is_refused_with_the_way_out(tmp_path: Path, pairs: Path, server) -> None:
    arguments = ["--pairs", str(pairs), "--out", str(tmp_path / "t.jsonl"), "--expert", server.url]
    assert run("synthesize", *arguments, "--expert-model", "m").exit_code == 0
    again = run("synthesize", *arguments, "--expert-model", "m", "-n", "5")
    assert isinstance(again.exception, O1RetrieverError)
    assert "another --out" in str(again.exception)


def test_a_folder_becomes_a_training_file(tmp_path: Path, server) -> None:
    folder, out = tmp_path / "notes", tmp_path / "data"
    folder.mkdir()
    for name, text in FACTS.items():
        (folder / f"{name}.md").write_text(f"# About {name}\n\n{text}\n")
    arguments = [str(folder), "--out", str(out), "--expert", server.url, "--expert-model", "m"]
    done = run("make-data", *arguments, "--committee", "bm25", "-n", "2")
    assert done.exit_code == 0, (done.output, done.exception)
    assert "8 passages" in done.output
    rows = rows_of(out / "train.jsonl")
    assert len(rows) == 8
    for row in rows:
        assert row["thought"]
        assert row["neg"]
        assert row["pos"][0] not in row["neg"]
    assert (out / "report.html").is_file()
    asked = len(server.bodies)
    before = (out / "train.jsonl").read_bytes()
    assert run("make-data", *arguments, "--committee", "bm25", "-n", "2").exit_code == 0
    assert len(server.bodies) == asked
    assert (out / "train.jsonl").read_bytes() == before


def test_retried_failures_of_a_folder_reach_the_training_file(tmp_path: Path, server) -> None:
    folder, out = tmp_path / "notes", tmp_path / "data"
    folder.mkdir()
    for name, text in FACTS.items():
        (folder / f"{name}.md").write_text(f"# About {name}\n\n{text}\n")
    (folder / "broken.pdf").write_bytes(b"no pdf")
    good = server.answer

    def partly(body, number: int):
        asked = body["messages"][-1]["content"]
        thinks = "You are given" not in body["messages"][0]["content"]
        return refusal(400, "I will not") if thinks and "Iron turns" in asked[-60:] else good(body, number)

    server.answer = partly
    arguments = [str(folder), "--out", str(out), "--expert", server.url, "--expert-model", "m"]
    arguments += ["--committee", "bm25", "-n", "2", "--queries", "1"]
    done = run("make-data", *arguments)
    assert done.exit_code == 0, (done.output, done.exception)
    assert "1 file could not be read: " in done.output
    assert "broken.pdf" in done.output
    assert [row["query"] for row in rows_of(out / "train.jsonl") if row["thought"] is None]
    server.answer = good
    asked = len(server.bodies)
    done = run("make-data", *arguments, "--retry-failed")
    assert done.exit_code == 0, (done.output, done.exception)
    assert len(server.bodies) == asked + 2
    assert all(row["thought"] and row["neg"] for row in rows_of(out / "train.jsonl"))


def test_examples_show_what_questions_people_ask(tmp_path: Path, pairs: Path, server) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "new.md").write_text("# Clouds\n\n" + "Clouds are drops of water that hang in rising air. " * 3)
    arguments = [str(folder), "--out", str(tmp_path / "data"), "--expert", server.url, "--expert-model", "m"]
    done = run("make-data", *arguments, "--committee", "bm25", "--query-examples", str(pairs))
    assert "Try --within 3" in str(done.exception), (
        "there is one passage, and these are no questions about it"
    )
    shown = server.bodies[0]["messages"][-1]["content"]
    assert shown.count("\nQuestion: what about ") == 3
    assert shown.rpartition("Passage: ")[2].endswith("\nQuestion:")


def test_an_ensemble_is_typed_with_names(tmp_path: Path, pairs: Path, server) -> None:
    recipe, book, out = (tmp_path / name for name in ("recipe.yaml", "book.jsonl", "out.jsonl"))
    recipe.write_text("contributors: [{expert: big, n: 1}, {expert: book, n: 1}]\n")
    book.write_text("".join(json.dumps({"query": f"what about {k}?", "thoughts": [k]}) + "\n" for k in FACTS))
    arguments = ["--pairs", str(pairs), "--out", str(out), "--recipe", str(recipe)]
    experts = ["--expert", f"big={server.url}", "--expert-model", "big=m", "--expert", f"book={book}"]
    done = run("synthesize", *arguments, *experts, "--report", str(tmp_path / "page.html"))
    assert done.exit_code == 0, (done.output, done.exception)
    assert [row["all_thought"][1] for row in rows_of(out)] == list(FACTS)
    assert {row["writers"][0] for row in rows_of(out)} == {"m"}
    assert (tmp_path / "page.html").is_file()
    refused = run("synthesize", *arguments, "--expert", server.url, "--expert", str(book))
    assert "a name of its own" in str(refused.exception)


def test_weights_are_typed_as_member_and_number(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"query": "q", "pos": ["a b"], "all_thought": ["a", "b"]}) + "\n")
    arguments = ["--in", str(rows), "--out", str(tmp_path / "out.jsonl"), "--committee", "bm25"]
    assert run("vote", *arguments, "--rule", "soft", "--weight", "bm25=2.5").exit_code == 0
    manifest = json.loads((tmp_path / "out.jsonl.manifest.json").read_text())
    assert manifest["recipe"]["weights"] == {"bm25": 2.5}
    assert run("vote", *arguments, "--weight", "bm25").exit_code == 2
    assert "weight for ['other']" in str(run("vote", *arguments, "--weight", "other=1").exception)


def test_a_file_without_rows_is_no_success(tmp_path: Path, server) -> None:
    (nothing := tmp_path / "nothing.jsonl").write_text("")
    to = ("--out", str(tmp_path / "out.jsonl"))
    expert = ("--expert", server.url, "--expert-model", "m")
    (corpus := tmp_path / "corpus.jsonl").write_text('{"_id": "1", "text": "Steam condenses."}\n')
    for name, arguments in {
        "synthesize": ("--pairs", str(nothing), *expert, *to),
        "vote": ("--in", str(nothing), "--committee", "bm25", "--out", str(tmp_path / "voted.jsonl")),
        "negatives": ("--in", str(nothing), "--corpus", str(corpus), "--out", str(tmp_path / "n.jsonl")),
    }.items():
        refused = run(name, *arguments)
        assert isinstance(refused.exception, O1RetrieverError), name
        assert "nothing.jsonl has no usable row" in str(refused.exception)


def test_one_row_is_a_row(tmp_path: Path) -> None:
    rows, recorded, corpus = (tmp_path / name for name in ("rows.jsonl", "recorded.jsonl", "corpus.jsonl"))
    rows.write_text(json.dumps({"query": "q", "pos": ["a b"]}) + "\n")
    recorded.write_text(json.dumps({"query": "q", "thoughts": ["a"]}) + "\n")
    corpus.write_text(json.dumps({"text": "a b"}) + "\n")
    thoughts, voted, train = (tmp_path / name for name in ("thoughts.jsonl", "voted.jsonl", "train.jsonl"))
    arguments = ["--pairs", str(rows), "--expert", str(recorded), "-n", "1", "--out", str(thoughts)]
    assert "1 row written; 0 tokens, 0 failed" in run("synthesize", *arguments).output
    assert "0 rows written, 1 was there" in run("synthesize", *arguments).output
    page = tmp_path / "page.html"
    arguments = ["--in", str(thoughts), "--committee", "bm25", "--out", str(voted), "--report", str(page)]
    assert "1 of 1 row voted" in run("vote", *arguments).output
    assert "<h2>1 random row</h2>" in page.read_text()
    done = run("negatives", "--in", str(voted), "--corpus", str(corpus), "--out", str(train))
    assert "1 row, 0 negatives; 1 row with fewer than 15" in done.output


def test_a_report_shows_twenty_rows_whatever_is_in_them(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    odd = {"query": "<script>alert(1)</script>", "pos": ["p"], "all_thought": [None, "same", "same"]}
    path.write_text("".join(json.dumps({**odd, "id": number}) + "\n" for number in range(100)))
    text = write_page(path, tmp_path / "page.html").read_text()
    assert text.count('class="row"') == 20
    assert "<script>" not in text
    found = examine(path)
    assert found.counts["candidates that repeat one of their row"] == 100
    assert found.counts["candidates that failed"] == 100


def test_every_command_of_the_table_is_there() -> None:
    training = {name: value for name, (value, _) in OWN.items() if "[train]" in value}
    assert len(training) >= 7
    for name, value in training.items():
        assert callable(EntryPoint(name=name, value=value, group="g").load()), name
