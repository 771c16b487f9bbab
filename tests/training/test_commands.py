"""The commands that make training data, as a user types them."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from o1_retriever.errors import O1RetrieverError
from o1_retriever_training import commands
from o1_retriever_training.negatives import MiningRules, mine_negatives
from o1_retriever_training.quality_page import examine, write_page
from tests.support.chat_server import chat_server, completion

FACTS = {
    "kitchen": "Warm, damp air gives up its water as tiny drops where it meets a cold surface.",
    "lake": "Pumped storage lifts water into a high lake when power is cheap and drops it later.",
    "kettle": "Bubbles of steam collapse in the colder water above them, which is why kettles sing.",
    "bread": "Yeast eats the sugar in dough and gives off carbon dioxide, whose bubbles make bread rise.",
    "moon": "The moon always shows the same face because it turns once for every orbit.",
    "rust": "Iron turns to rust where oxygen and water reach it, and salt makes that go faster.",
    "bees": "Bees tell each other the way to flowers by a dance whose angle stands for the sun.",
    "glass": "Glass is sand that was melted with soda and lime and cooled before crystals grew.",
}


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
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"_id": k, "text": v}) + "\n" for k, v in FACTS.items()))
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


def test_negatives_are_no_positives_and_no_twins_of_them(tmp_path: Path, corpus: Path) -> None:
    extra = [
        {"_id": "twin", "text": FACTS["rust"].upper() + " Always."},
        {
            "_id": "other",
            "text": "Salt in sea water makes a ship's iron hull rust, which paint prevents for a while.",
        },
    ]
    with corpus.open("a") as file:
        file.write("".join(json.dumps(one) + "\n" for one in extra))
    rows = tmp_path / "rows.jsonl"
    row = {"query": "why does iron rust in salt water", "pos": [FACTS["rust"]], "all_thought": ["x"]}
    rows.write_text(json.dumps(row) + "\n" + json.dumps({"query": "nothing", "pos": []}) + "\n")
    rules = MiningRules(count=3, skip=0)
    out = tmp_path / "out.jsonl"
    found = mine_negatives(rows, out, corpus=corpus, rules=rules, teacher=lengths)
    one, two = rows_of(out)
    assert FACTS["rust"] not in one["neg"]
    assert not any("ALWAYS" in text.upper() for text in one["neg"])
    assert one["neg"][0] == extra[1]["text"]
    assert one["neg_scores"] == [float(len(text)) for text in one["neg"]]
    assert one["pos_scores"] == [float(len(FACTS["rust"]))]
    assert two["neg"] == []
    assert found["without_positive"] == 1
    skipped = tmp_path / "skipped.jsonl"
    mine_negatives(rows, skipped, corpus=corpus, rules=MiningRules(count=3, skip=2))
    assert extra[1]["text"] not in rows_of(skipped)[0]["neg"]


def lengths(texts: list[str], queries: list[str]) -> list[float]:
    return [float(len(text)) for text in texts]


def test_what_scores_above_the_positive_is_no_negative(tmp_path: Path, corpus: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"query": "why does bread rise with yeast", "pos": [FACTS["moon"]]}) + "\n")
    mine_negatives(rows, tmp_path / "a.jsonl", corpus=corpus, rules=MiningRules(count=8, skip=0))
    assert FACTS["bread"] not in rows_of(tmp_path / "a.jsonl")[0]["neg"]


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


def test_a_report_shows_twenty_rows_whatever_is_in_them(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    odd = {"query": "<script>alert(1)</script>", "pos": ["p"], "all_thought": [None, "same", "same"]}
    path.write_text("".join(json.dumps({**odd, "id": number}) + "\n" for number in range(100)))
    text = write_page(path, tmp_path / "page.html").read_text()
    assert text.count('class="row"') == 20
    assert "<script>" not in text
    found = examine(path)
    assert found.counts["candidates equal to another of their row"] == 100
    assert found.counts["candidates that failed"] == 100


def test_every_command_is_declared(root: Path) -> None:
    import tomllib

    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    for name, value in project["entry-points"]["o1_retriever.commands"].items():
        module, _, function = value.split(" ")[0].partition(":")
        assert module == commands.__name__
        assert callable(getattr(commands, function)), name
