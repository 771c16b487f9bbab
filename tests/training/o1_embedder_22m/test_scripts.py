"""What the scripts that make o1-embedder-22m are built of."""

from __future__ import annotations

import json
import random
import runpy
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.support.commands import ok

RECIPES = Path(__file__).resolve().parents[3] / "training" / "recipes" / "o1-embedder-22m"


def test_a_telegram_keeps_the_words_that_carry_meaning_in_their_order() -> None:
    from telegrams import telegram

    said = telegram("A prism is a kind of object that refracts White light.")
    assert said == "prism object refracts white light"
    assert telegram("the cat saw the other cat") == "cat saw"
    assert telegram(" ".join(f"word{n}" for n in range(40))).split() == [f"word{n}" for n in range(14)]
    assert telegram("it is what it is") == ""


@given(st.text(max_size=200))
def test_a_telegram_of_a_telegram_is_itself(text: str) -> None:
    from telegrams import telegram

    once = telegram(text)
    assert telegram(once) == once


def test_the_loss_over_the_bank_is_that_of_plain_loops() -> None:
    from joint import bank_loss

    torch.manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(4, 8, dtype=torch.double), dim=-1).requires_grad_()
    bank = torch.nn.functional.normalize(torch.randn(9, 8, dtype=torch.double), dim=-1)
    positives = [(0, 3), (), (8,), (1, 2, 4)]
    found = bank_loss(vectors, positives, bank, 0.05)
    wanted = []
    for row, own in enumerate(positives):
        scores = [float(vectors[row].detach() @ each) / 0.05 for each in bank]
        others = sum(torch.tensor(s, dtype=torch.double).exp() for n, s in enumerate(scores) if n not in own)
        terms = [
            -torch.log(torch.tensor(scores[p]).exp() / (torch.tensor(scores[p]).exp() + others)) for p in own
        ]
        wanted += [sum(terms) / len(terms)] if terms else []
    assert float(found.detach()) == pytest.approx(float(sum(wanted) / len(wanted)), rel=1e-5)
    found.backward()
    assert vectors.grad is not None
    assert vectors.grad[1].abs().sum() == 0, "a question without positives learns from nothing"


def test_a_batch_without_positives_has_no_loss_and_a_graph() -> None:
    from joint import bank_loss

    vectors = torch.ones(2, 4, requires_grad=True)
    bank_loss(vectors, [(), ()], torch.ones(3, 4), 0.05).backward()
    assert vectors.grad is not None


def test_questions_stand_in_the_papers_layout_and_only_elected_thoughts_are_written() -> None:
    from batches import Markers
    from questions import Question, collate

    m = Markers(query=1, emb=2, thought=3, doc=4, eos=5, pad=0)
    rows = [
        Question([10, 11], [20], (7,), True, 0),
        Question([12], [21, 22], (), False, 1),
    ]
    batch = collate(rows, torch.eye(2).numpy(), m)
    assert batch.batch.ids.tolist() == [[1, 10, 11, 2, 3, 20, 5, 2], [1, 12, 2, 3, 21, 22, 5, 2]]
    assert batch.thinking.tolist() == [7, 7]
    assert batch.batch.vector_columns.tolist() == [3, 2]
    targets = batch.batch.thought_targets
    assert (batch.batch.ids.reshape(-1)[targets + 1]).tolist() == [20, 5], (
        "its tokens and eos, of the first alone"
    )
    assert batch.positives == [(7,), ()]


def test_a_thought_that_repeats_its_passage_is_written_and_never_searched_with(tmp_path: Path) -> None:
    from model import load_tokenizer
    from questions import Bank, load_questions

    passage = "a prism refracts white light into colors"
    said = ["rainbow drops sunlight", "prism refracts white light", "white light colors"]
    row = {
        "query": "What did he use?",
        "pos": [passage],
        "votes": {},
        "all_thought": said,
        "thought": said[1],
    }
    path = tmp_path / "voted.jsonl"
    path.write_text(json.dumps(row) + "\n")
    tokenizer = load_tokenizer(RECIPES.parents[2] / "models" / "o1-embedder-22m")
    found, vectors = load_questions([path], Bank(torch.zeros(1, 384), {passage: 0}), tokenizer)
    assert vectors.shape == (1, 384)
    assert [(len(each.positives), each.written) for each in found] == [(1, False), (0, True)]


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=60), st.integers(0, 9)
)
def test_every_question_is_in_one_batch_and_none_is_too_large(
    sizes: list[tuple[int, int]], seed: int
) -> None:
    from questions import Question, batches_of

    rows = [Question([1] * query, [1] * thought, (), False, 0) for query, thought in sizes]
    found = batches_of(rows, 128, seed)
    assert sorted(row for batch in found for row in batch) == list(range(len(rows)))
    for batch in found:
        longest = max(sum(sizes[row]) + 5 for row in batch)
        assert len(batch) == 1 or longest * len(batch) <= 128
    assert batches_of(rows, 128, seed) == found


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


def test_a_recipe_becomes_the_commands_that_it_says(tmp_path: Path) -> None:
    from stages import command

    places = {"data": "D", "work": "W"}
    step = {
        "run": "train",
        "with": {"work": "{work}/a", "steps": 4, "on": True, "off": False},
        "quick": {"steps": 1},
    }
    words = command(step, places, quick=False)
    assert words[0] == sys.executable
    assert words[1].endswith("train.py")
    assert words[2:] == ["--work", "W/a", "--steps", "4", "--on"]
    assert command(step, places, quick=True)[2:] == ["--work", "W/a", "--steps", "1", "--on"]
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


def test_the_recipes_name_options_that_their_scripts_have(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from stages import HERE

    recipes = [yaml.safe_load(path.read_text()) for path in sorted(RECIPES.glob("*.yaml"))]
    assert len(recipes) == 3
    wanted: dict[str, set[str]] = {}
    for step in (step for recipe in recipes for step in recipe["steps"]):
        options = {**step.get("with", {}), **step.get("quick", {})}
        wanted.setdefault(step["run"], set()).update(options)
    for name, options in wanted.items():
        shown = help_of(name, HERE, monkeypatch, capsys)
        missing = [option for option in options if f"--{option}" not in shown]
        assert not missing, f"{name} has no {missing}"


def test_a_step_is_run_once_and_a_failure_names_it(tmp_path: Path) -> None:
    from stages import run

    recipe = tmp_path / "one.yaml"
    recipe.write_text("steps: [{run: info, with: {help: true}}, {run: no-such-command}]")
    places = {"data": "D", "work": str(tmp_path)}
    with pytest.raises(SystemExit, match="step 2 of 2: no-such-command failed"):
        run(recipe, places, quick=False)
    assert len(list((tmp_path / "done").iterdir())) == 1
