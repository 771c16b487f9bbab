"""From an index to a thinker for it, on a tiny model: stages, an end by a kill, and an honest judgment."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from o1_retriever import ThinkingEmbedder
from o1_retriever.documents import Document
from o1_retriever.encoders import CallableEncoder
from o1_retriever.errors import SettingsError
from o1_retriever.evaluation.collection import EncodedCorpus, load_collection
from o1_retriever.evaluation.controls import Verdict, judge
from o1_retriever.index.index import Index
from o1_retriever.thinkers import LocalThinker
from o1_retriever.thinkers.config import Correction
from o1_retriever.vectors import unit
from o1_retriever_training.adapt import (
    AdaptPlan,
    Workplace,
    _fields,
    adapt,
    correction_recipe,
    only_embeds,
    prepare,
    reward_recipe,
)
from o1_retriever_training.joint.recipe import TrainRecipe, read_train_recipe
from o1_retriever_training.ledger import OtherRecipeError
from o1_retriever_training.pages import ProgressPage
from o1_retriever_training.rows import DataError
from tests.support.tiny import CONFIGS, byte_tokenizer

WORDS = [
    "amber",
    "birch",
    "cedar",
    "delta",
    "ember",
    "fjord",
    "grove",
    "heron",
    "inlet",
    "jetty",
    "knoll",
    "larch",
    "maple",
    "north",
    "ocean",
    "pearl",
]
FACTS = [f"the {one} stands near an {other}" for one in WORDS for other in WORDS[:3] if one != other]


def letters(texts: list[str]) -> np.ndarray:
    pairs = [[text.count(a) + text.count(a + b) for a in "abcdefgh" for b in "aeiou"] for text in texts]
    return np.array(pairs, np.float32) + 0.01


ENCODER = CallableEncoder(letters, name="letters")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapt") / "base"
    tokenizer = byte_tokenizer(None)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIGS["llama"](len(tokenizer)), dtype=torch.float32).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    opened = Index(tmp_path_factory.mktemp("index"), only_embeds(ENCODER))
    opened.add([Document(id=f"d{place}", text=text) for place, text in enumerate(FACTS)])
    opened.add([Document(id="copy", text=FACTS[5])])
    return opened


def questions_of(path: Path, count: int = 45) -> Path:
    rows: list[dict[str, Any]] = [
        {"query": f"What stands near the {text.split()[1]} in {place}?", "pos": [text.upper()]}
        for place, text in enumerate(FACTS[:count])
    ]
    rows[0] = {"query": "By its id?", "pos_ids": ["d3", "gone"], "thought": "It has one."}
    rows += [{"query": "Nothing here?", "pos": ["unknown"], "thought": "Nothing."}, rows[1]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def workplace(
    folder: Path,
    index: Index,
    base: Path,
    *,
    writer: Any = None,
    said: list[str] | None = None,
    **changes: Any,
) -> Workplace:
    plan = replace(AdaptPlan(base=str(base), hours=1e-6, held_out=12), **changes)
    return Workplace(
        folder=folder,
        index=index,
        encoder=ENCODER,
        plan=plan,
        say=[].append if said is None else said.append,
        writer=writer,
    )


def test_the_whole_way_and_the_same_call_again(base: Path, index: Index, tmp_path: Path) -> None:
    questions = questions_of(tmp_path / "questions.jsonl")
    work = workplace(tmp_path / "work", index, base)
    verdict = adapt(work, questions=questions)
    assert verdict.queries == 12
    learned = [json.loads(line) for line in work.questions.read_text().splitlines()]
    collection = load_collection(work.held_out, split="dev")
    assert len(collection.corpus.ids) == len(FACTS) + 1
    copied = [{*judged} for judged in collection.qrels.values() if {"d5", "copy"} & {*judged}]
    assert copied == [{"d5", "copy"}], "a copy of the passage answers as well"
    assert not {*collection.queries.values()} & {row["query"] for row in learned}
    thoughts = {row["thought"] for row in map(json.loads, work.rows.read_text().splitlines())}
    assert "Nothing." in thoughts, "a thought without a passage is learned as well"
    assert (work.folder / "thinker").is_dir() == verdict.is_good
    assert verdict.sentence() in (work.folder / "verdict.md").read_text()
    page = (work.folder / "progress.html").read_text()
    assert verdict.sentence() in page
    assert "over the passages" in page
    assert "reload" not in page, "there is nothing more to come"
    stamps = {
        path: path.stat().st_mtime_ns for path in (work.questions, work.rows, work.folder / "recipe.yaml")
    }
    again = adapt(workplace(work.folder, index, base, hours=5.0), questions=questions)
    assert again.means == verdict.means
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}
    with pytest.raises(OtherRecipeError, match="was begun with questions"):
        adapt(workplace(work.folder, index, base))
    assert verdict.sentence() in (work.folder / "progress.html").read_text()
    trained = LocalThinker(work.folder / "training", dtype="float32")
    assert trained.prompt.system is None


def test_the_page_follows_a_training_and_says_that_it_stopped(tmp_path: Path) -> None:
    path, told = tmp_path / "progress.html", list[str]()
    losses: list[dict[str, float]] = [{"step": 10, "loss": 2.0}, {"step": 10, "eval_loss": 1.0}]
    page = ProgressPage(path, "A thinker for <x>", told.append)
    page.trained(10, 40, losses)  # as where a call goes on in the middle
    page.say("5 passages & more")
    page.trained(10, 40, losses)
    assert "step 10 of 40<" in path.read_text()
    page.trained(20, 40, [*losses, {"step": 20, "loss": 1.5}])
    shown = path.read_text()
    assert "step 20 of 40, about 1 min left" in shown
    assert "<svg" in shown
    assert "reload" in shown
    with path.with_suffix(".jsonl").open("a") as said:
        said.write('{"at": "now", "sa')
    with pytest.raises(RuntimeError), page:
        raise RuntimeError
    shown = path.read_text()
    assert told == ["5 passages & more"]
    assert "5 passages &amp; more" in shown
    assert "A thinker for &lt;x&gt;" in shown
    assert "Stopped by RuntimeError" in shown
    assert "reload" not in shown


def test_without_questions_the_base_writes_some_and_too_few_are_said(
    base: Path, index: Index, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"No query could be written|leads to its passage"):
        adapt(workplace(tmp_path / "work", index, base, asked=4))
    asked = workplace(tmp_path / "asked", index, base, asked=40, writer=lambda passages, k: [
        [f"Which {passage.split()[1]} and {passage.split()[-1]}?"] * k for passage in passages
    ], said=(said := []))  # fmt: skip
    prepare(asked, None)
    learned = [json.loads(line) for line in asked.questions.read_text().splitlines()]
    assert {row["pos"][0] for row in learned} <= {*FACTS}
    assert any("kept that lead to their passage" in line for line in said)
    questions = questions_of(tmp_path / "few.jsonl", count=15)
    with pytest.raises(DataError, match="Found 15 questions with a passage of the index"):
        prepare(workplace(tmp_path / "few", index, base), questions)
    for wrong in ({"hours": 0.0}, {"passes": 0}):
        with pytest.raises(SettingsError):
            AdaptPlan(**wrong)  # type: ignore[arg-type]


def test_the_recipes_of_the_repository_are_those_that_are_run(
    root: Path, base: Path, index: Index, tmp_path: Path
) -> None:
    work = workplace(tmp_path, index, base)
    words = TrainRecipe.of(_fields(work))
    runs = {
        "words": words,
        "reward": reward_recipe(work, words, tmp_path),
        "correction": correction_recipe(work, words, tmp_path, tmp_path / "own.jsonl"),
    }
    for name, made in runs.items():
        path = root / "training" / "recipes" / "index-thinker" / f"{name}.yaml"
        both = [read_train_recipe(path, check_files=False).to_dict(), made.to_dict()]
        for fields in both:
            del fields["output"], fields["model"]["base"]
            for source in fields["data"]["train"]:
                del source["path"]
            for section in (fields["evaluation"], fields["data"]["index"], fields["data"]["teacher"]):
                for key in ("collection", "encoder", "corpus"):
                    (section or {}).pop(key, None)
            if name != "words":  # the base's own adapter is trained further
                del fields["model"]["lora"]
        assert both[0] == both[1]


def judged(tmp_path: Path, index: Index, base: Path, thoughts: dict[str, list[str]]) -> Verdict:
    """What recorded thoughts are worth on the questions that are kept apart."""
    work = workplace(tmp_path / "work", index, base)
    prepare(work, questions_of(tmp_path / "questions.jsonl"))
    collection = load_collection(work.held_out, split="dev")
    answers = {
        text: [FACTS[int(next(iter(collection.qrels[name]))[1:])]]
        for name, text in collection.queries.items()
    }
    embedder = ThinkingEmbedder.from_parts(
        lambda queries, k: [(thoughts or answers).get(query, ["?"]) * k for query in queries],
        ENCODER,
        cache=False,
    )
    vectors = unit(index.vectors(collection.corpus.ids))
    return judge(embedder, collection, EncodedCorpus(matrix=vectors, seconds=0.0))


def test_thoughts_that_say_the_answer_help_and_those_about_another_question_do_not(
    base: Path, index: Index, tmp_path: Path
) -> None:
    verdict = judged(tmp_path, index, base, {})
    assert "bm25" in verdict.helped
    assert verdict.control["bm25"].difference > 0
    assert verdict.is_good
    assert verdict.sentence().startswith("It helped on 12 questions that it never saw")
    assert "| bm25 |" in verdict.table()


def test_thoughts_that_say_nothing_install_nothing(base: Path, index: Index, tmp_path: Path) -> None:
    verdict = judged(tmp_path, index, base, {"nobody asks": ["this"]})
    assert not verdict.is_good
    assert "nothing is installed" in verdict.sentence()


def test_a_correction_is_not_learned_from_questions_that_a_model_makes(
    base: Path, index: Index, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match="--questions FILE beside --correct"):
        adapt(workplace(tmp_path / "work", index, base, correct=True))
    assert not (tmp_path / "work").exists()


def test_rounds_and_a_correction_are_stages_of_their_own_and_are_not_repeated(
    base: Path, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("o1_retriever_training.adapt._LEAST_STEPS", 4)
    said: list[str] = []
    work = workplace(tmp_path / "work", index, base, said=said, rounds=1, correct=True)
    verdict = adapt(work, questions=questions_of(tmp_path / "questions.jsonl"))
    parts = [work.questions, work.rewarded]
    learned, rewarded = (
        {json.loads(line)["query"] for line in each.read_text().splitlines()} for each in parts
    )
    chosen, judged = (
        {*load_collection(each, split="dev").queries.values()} for each in (work.choosing, work.held_out)
    )
    assert len(learned | rewarded | chosen | judged) == sum(map(len, (learned, rewarded, chosen, judged)))
    assert min(map(len, (learned, rewarded, chosen))) >= 4
    assert any("are worth learning" in line for line in said)
    assert verdict.fast is not None
    assert "| fast, no thought |" in verdict.table()
    model = work.folder / "correction"
    matrix = Correction.beside(model)
    assert matrix is not None
    assert matrix.encoder == work.encoder.space.weights
    own = [json.loads(line) for line in (work.folder / "own-thoughts.jsonl").read_text().splitlines()]
    assert {row["query"] for row in own} <= learned | rewarded
    before = {path: path.stat().st_mtime_ns for path in work.folder.rglob("*.safetensors")}
    assert adapt(work, questions=tmp_path / "questions.jsonl") == verdict
    assert {path: path.stat().st_mtime_ns for path in work.folder.rglob("*.safetensors")} == before
