"""Rounds of self-improvement on a tiny model: what each reads and writes, where it stops and goes on."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from o1_retriever import ThinkingEmbedder
from o1_retriever.encoders import as_encoder
from o1_retriever.errors import SettingsError
from o1_retriever.evaluation.collection import load_collection
from o1_retriever_training.improve import OWN, Improvement, RewardRules, Round, _reward, _unseen, improve
from o1_retriever_training.joint.recipe import TrainRecipe
from o1_retriever_training.rows import DataError
from o1_retriever_training.synthesize import Options
from tests.support.adapters import bag_of_words
from tests.support.joint_runs import WORDS, dev_collection, recipe_of
from tests.support.small_collection import write_small
from tests.training.joint.test_thinkers import chat_base

PLAN = Improvement(rounds=2, samples=2, max_tokens=6, committee=("bm25",))
QUIET = Options(show=False)


@pytest.fixture
def recipe(tiny_recipe: Any, tmp_path: Path) -> TrainRecipe:
    folder = write_small(tmp_path / "collection")
    split = sorted(path.stem for path in (folder / "qrels").glob("*.tsv"))[0]
    if split == "test":
        (folder / "qrels" / "test.tsv").rename(folder / "qrels" / "dev.tsv")
    evaluation = {"collection": str(folder), "every": 2, "max_new_tokens": 4}
    return tiny_recipe(evaluation=evaluation)  # type: ignore[no-any-return]


def test_rounds_sample_vote_and_train_on_the_best_model_so_far(recipe: TrainRecipe, tmp_path: Path) -> None:
    said: list[str] = []
    out = tmp_path / "rounds"
    found = improve(recipe, recipe.data.train[0].path, out, plan=PLAN, options=QUIET, say=said.append)

    assert [each.number for each in found] == list(range(len(found)))
    assert found[0].model == recipe.model.base
    assert all(each.improved for each in found[:-1])
    assert len(said) == len(found)
    first = out / "round-1"
    thoughts = [json.loads(line) for line in (first / "thoughts.jsonl").read_text().splitlines()]
    assert {len(row["all_thought"]) for row in thoughts} == {2}
    summary = json.loads((first / "model" / "training.json").read_text())
    assert summary["recipe"]["model"]["base"] == recipe.model.base
    assert [source["name"] for source in summary["recipe"]["data"]["train"]] == [OWN, None]
    for before, after in itertools.pairwise(found):
        read = json.loads((Path(after.model) / "training.json").read_text())
        assert read["recipe"]["model"]["base"] == before.model
    ThinkingEmbedder.from_pretrained(found[-1].model, cache=False)

    # What is done is not done again: the same call says the same from what is there.
    stamp = (first / "thoughts.jsonl").stat().st_mtime_ns
    assert improve(recipe, recipe.data.train[0].path, out, plan=PLAN, options=QUIET) == found
    assert (first / "thoughts.jsonl").stat().st_mtime_ns == stamp
    assert json.loads((out / "rounds.json").read_text())[0]["model"] == recipe.model.base


def test_without_an_evaluation_nothing_is_begun(tiny_recipe: Any, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no evaluation") as caught:
        improve(tiny_recipe(), tmp_path / "rows.jsonl", tmp_path / "rounds", plan=PLAN)
    assert "evaluation:" in str(caught.value.hint)
    assert not (tmp_path / "rounds").exists()


@pytest.mark.parametrize("fields", [{"rounds": 0}, {"samples": 0}, {"most_copied": 1.2}])
def test_a_plan_out_of_range_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=next(iter(fields))):
        Improvement(**fields)


def thinker_recipe(base: Path, folder: Path) -> TrainRecipe:
    """Rows about the second half of the words; the dev questions are about all of them."""
    rows = [{"query": f"about {word}", "thought": f"{word} is it."} for word in WORDS[6:]]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = {
        "collection": str(dev_collection(folder / "dev")), "every": 2, "thoughts": 1, "max_new_tokens": 4,
        "encoder": "words",
    }  # fmt: skip
    return recipe_of(
        base,
        folder / "rows.jsonl",
        folder / "out",
        model={"layout": "chat", "tuning": "lora", "lora": {"rank": 4, "alpha": 8, "dropout": 0.0}},
        data={"max_query_tokens": 40, "max_length": 80},
        losses={"contrastive_weight": 0.0},
        optimisation={"chunk": None},
        evaluation=section,
    )


def test_a_thinker_learns_from_what_lifts_passages_of_questions_that_it_was_not_trained_on(
    tmp_path: Path,
) -> None:
    base = chat_base(tmp_path / "base")
    recipe, encoder = thinker_recipe(base, tmp_path), as_encoder(bag_of_words)
    pairs = [{"query": f"about {word}", "pos": [f"{n} {word}"]} for n, word in enumerate(WORDS)]
    pairs.append({"query": "0 of amber?", "pos": ["0 amber"]})
    asked = tmp_path / "pairs.jsonl"
    asked.write_text("".join(json.dumps(row) + "\n" for row in pairs))
    plan = Improvement(rounds=1, max_tokens=8, rewards=RewardRules(least=-9.0))
    said: list[str] = []
    arguments: dict[str, Any] = {"plan": plan, "options": QUIET, "encoder": encoder, "say": said.append}
    out = tmp_path / "rounds"
    none = improve(recipe, asked, out, **arguments)
    assert [each.number for each in none] == [0], "a model of random weights never ends by itself"
    assert said[-1] == "0 thoughts about 6 queries are worth learning"
    (out / "round-1" / "counts.json").write_text('{"rows": 1, "questions": 1}')
    (out / "round-1" / "train.jsonl").write_text('{"query": "about amber", "thought": "0 amber."}\n')
    found = improve(recipe, asked, out, **arguments)
    assert len(found) == 2
    rated = [json.loads(line) for line in (out / "round-1" / "rewards.jsonl").read_text().splitlines()]
    assert [row["query"] for row in rated] == [f"about {word}" for word in WORDS[:6]]
    assert {len(row["all_thought"]) for row in rated} == {8}
    summary = json.loads((Path(found[1].model) / "training.json").read_text())
    assert summary["recipe"]["data"]["train"][0]["name"] == OWN
    assert "nDCG@10 thinking" in found[0].figures
    with pytest.raises(DataError, match="that has a passage of"):
        improve(recipe, tmp_path / "rows.jsonl", tmp_path / "none", **arguments)


def test_what_a_round_learned_is_not_asked_again_and_the_rounds_end_where_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = thinker_recipe(tmp_path / "base", tmp_path)
    asked = tmp_path / "pairs.jsonl"
    pairs = [{"query": f"about {word}", "pos": [f"{n} {word}"]} for n, word in enumerate(WORDS[:6])]
    asked.write_text("".join(json.dumps(row) + "\n" for row in pairs))
    work = tmp_path / "rounds"
    for number, words in ((1, WORDS[:4]), (2, WORDS[4:6])):
        (work / f"round-{number}").mkdir(parents=True)
        rows = [{"query": f"About {word}?", "thought": f"{word}."} for word in words]
        (work / f"round-{number}" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr("o1_retriever_training.improve.LocalThinker", asks_nobody)
    before, options = Round(number=2, model="none", figures={}), Options(show=False)
    encoder = as_encoder(bag_of_words)
    found = _reward(recipe, asked, work / "round-3", before, PLAN, options, encoder)
    assert found["questions"] == found["rows"] == 0
    collection = load_collection(tmp_path / "dev", split="dev")
    second = _unseen(recipe, asked, collection, [work / "round-1" / "train.jsonl"])
    assert [*second] == [f"about {word}" for word in WORDS[4:6]]


def asks_nobody(model: str) -> None:
    raise AssertionError(f"Nothing is left to ask {model} about.")


def test_queries_that_a_collection_measures_by_are_not_learned_from(tmp_path: Path) -> None:
    recipe = thinker_recipe(tmp_path / "base", tmp_path)
    folder, passage = tmp_path / "dev", f"0 {WORDS[0]}"
    names = ("tested", "unjudged", "learned", "both")
    with (folder / "queries.jsonl").open("a") as file:
        file.writelines(json.dumps({"_id": name, "text": f"is it {name}?"}) + "\n" for name in names)
    document = load_collection(folder, split="dev").corpus.ids[0]
    for split, judged in (("test", ("tested", "both")), ("train", ("learned", "both"))):
        rows = "".join(f"{name}\t{document}\t1\n" for name in judged)
        (folder / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{rows}")
    asked = tmp_path / "pairs.jsonl"
    asked.write_text("".join(
        json.dumps({"query": f"Is it {name}?", "pos": [passage]}) + "\n" for name in (*names, "new")
    ))  # fmt: skip
    found = _unseen(recipe, asked, load_collection(folder, split="dev"))
    assert [*found] == ["Is it learned?", "Is it new?"]
