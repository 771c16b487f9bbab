"""What the scripts that make o1-embedder-22m are built of."""

from __future__ import annotations

import json
import random
import runpy
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from o1_retriever_training.joint.recipe import read_train_recipe
from tests.support.commands import ok

RECIPES = Path(__file__).resolve().parents[3] / "training" / "recipes" / "o1-embedder-22m"


def test_a_telegram_keeps_the_words_that_carry_meaning_in_their_order() -> None:
    from sources import telegram

    said = telegram("A prism is a kind of object that refracts White light.")
    assert said == "prism object refracts white light"
    assert telegram("the cat saw the other cat") == "cat saw"
    assert telegram(" ".join(f"word{n}" for n in range(40))).split() == [f"word{n}" for n in range(14)]
    assert telegram("it is what it is") == ""


@given(st.text(max_size=200))
def test_a_telegram_of_a_telegram_is_itself(text: str) -> None:
    from sources import telegram

    once = telegram(text)
    assert telegram(once) == once


def test_a_thought_that_repeats_its_passage_is_written_and_never_searched_with() -> None:
    from questions import question_rows

    passage = "a prism refracts white light into colors"
    said = ["rainbow drops sunlight", "prism refracts white light", "white light colors"]
    query = {"query": "What did he use?", "pos": [passage]}
    assert list(question_rows([query | {"votes": {}, "all_thought": said, "thought": said[1]}])) == [
        (False, {"query": "What did he use?", "thought": said[0], "pos": [passage]}),
        (True, {"query": "What did he use?", "thought": said[1], "pos": []}),
    ]
    expert = list(question_rows([query | {"all_thought": said[:1]}]))
    assert expert == [(True, {"query": "What did he use?", "thought": said[0], "pos": [passage]})]
    alone = {"query": "What did he use?", "pos": [], "thought": said[1]}
    assert list(question_rows([alone])) == [(True, alone)]


def test_short_rows_are_used_twice_and_a_share_of_the_long_ones(tmp_path: Path) -> None:
    from argparse import Namespace

    from data import chosen
    from sources import Row

    rows = [Row("query", "short"), Row("document", "middle"), Row("thinking", "long", "thought")] * 50
    options = Namespace(seed=0, short_repeat=2, long_share=0.3)
    found = list(chosen(rows, [40, 64, 65] * 50, options))
    assert found.count({"query": "short"}) == 100
    assert found.count({"kind": "document", "text": "middle"}) == 50
    assert 5 < found.count({"query": "long", "thought": "thought"}) < 25
    assert list(chosen(rows, [40, 64, 65] * 50, options)) == found


def test_documents_become_queries_thoughts_and_themselves(tmp_path: Path) -> None:
    from documents import COLLECTIONS, document_rows

    texts = {name: [("", f"{name} fact about a thing {n} and ice") for n in range(8)] for name in COLLECTIONS}
    texts["hotpotqa_1k"] = [
        ("Anna Berg", "Anna Berg is a painter from the small town of Oslo Bay. She won a prize in 1990."),
        ("Oslo Bay (town)", "Oslo Bay is a town in the north of the country. It has two old churches there."),
    ]
    for name, rows in texts.items():
        folder = tmp_path / "eval" / name
        folder.mkdir(parents=True)
        lines = [json.dumps({"title": title, "text": said}) + "\n" for title, said in rows]
        (folder / "corpus.jsonl").write_text("".join(lines))
    found = list(document_rows(tmp_path, random.Random(0)))
    hops = [row for row in found if row.kind == "thinking" and "painter" in row.text]
    assert [row.thought for row in hops] == [texts["hotpotqa_1k"][1][1]], (
        "a sentence that names another title"
    )
    facts = {text for _, text in texts["qasc_2hop"]}
    near = [row for row in found if row.kind == "thinking" and row.text in facts]
    assert len(near) == len(facts)
    assert all(row.thought in facts - {row.text} for row in near)


def test_a_step_becomes_the_command_that_it_says() -> None:
    from stages import command

    places = {"data": "D", "work": "W"}
    step = {
        "run": "data",
        "files": ["{work}/x"],
        "with": {"work": "{work}/a", "steps": 4, "on": True, "off": False, "set": ["a=1", "b={work}"]},
        "quick": {"steps": 1, "set": "c=2"},
    }
    words = command(step, places, quick=False)
    assert words[0] == sys.executable
    assert words[1].endswith("data.py")
    plain = ["W/x", "--work", "W/a", "--steps", "4", "--on", "--set", "a=1", "--set", "b=W"]
    assert words[2:] == plain
    assert command(step, places, quick=True)[2:] == [*plain, "--steps", "1", "--set", "c=2"]
    assert command({"run": "vote", "with": {"in": "{work}/x"}}, places, quick=False)[1:] == [
        "-m", "o1_retriever", "vote", "--in", "W/x",
    ]  # fmt: skip


def help_of(name: str, folder: Path, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What `--help` of a step's script or command prints; all in this process, which knows torch already."""
    script = folder / f"{name}.py"
    if not script.is_file():
        return ok(name, "--help")
    patch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert not ended.value.code, name
    return capsys.readouterr().out


def test_the_steps_name_options_that_their_commands_have(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from stages import HERE

    steps = yaml.safe_load((HERE / "stages.yaml").read_text())["steps"]
    wanted: dict[str, set[str]] = {}
    for step in steps:
        options = {**step.get("with", {}), **step.get("quick", {})}
        wanted.setdefault(step["run"], set()).update(options)
    for name, options in wanted.items():
        shown = help_of(name, HERE, monkeypatch, capsys)
        missing = [option for option in options if f"--{option}" not in shown]
        assert not missing, f"{name} has no {missing}"


def test_what_a_step_changes_in_a_recipe_stands_in_it() -> None:
    from stages import HERE, command

    places = {"data": "D", "work": "build/o1-embedder-22m", "recipes": str(RECIPES)}
    steps = yaml.safe_load((HERE / "stages.yaml").read_text())["steps"]
    trained = [step for step in steps if step["run"] == "train"]
    assert [Path(step["files"][0]).name for step in trained] == [
        path.name for path in sorted(RECIPES.iterdir())
    ]
    for step in trained:
        words = command(step, places, quick=False)
        recipe, changes = words[4], [words[at + 1] for at, word in enumerate(words) if word == "--set"]
        changes += [f"output={words[words.index('--output') + 1]}"]
        as_written = read_train_recipe(recipe, check_files=False)
        assert read_train_recipe(recipe, changes, check_files=False) == as_written


def test_a_step_is_run_once_and_a_failure_names_it(tmp_path: Path) -> None:
    from stages import run

    recipe = tmp_path / "one.yaml"
    recipe.write_text("steps: [{run: info, with: {help: true}}, {run: no-such-command}]")
    places = {"data": "D", "work": str(tmp_path)}
    with pytest.raises(SystemExit, match="step 2 of 2: no-such-command failed"):
        run(recipe, places, quick=False)
    assert len(list((tmp_path / "done").iterdir())) == 1
