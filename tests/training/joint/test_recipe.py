"""Recipes: what they say, what they refuse, and that those of the project are what they claim to be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from o1_retriever.errors import SettingsError
from o1_retriever_training.joint.recipe import TrainRecipe, read_train_recipe
from o1_retriever_training.recipe import yaml_value

SMALL = {"model": {"base": "some/model"}, "data": {"train": "rows.jsonl"}, "output": "out"}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text('{"query": "q", "pos": ["p"]}\n')
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "model: {base: ./base}\ndata: {train: ./rows.jsonl}\n"
        "optimisation: {learning_rate: 1e-4, epochs: 2}\noutput: ./out\n"
    )
    return path


def refused(path: Path, *changes: str) -> str:
    with pytest.raises(SettingsError) as caught:
        read_train_recipe(path, changes)
    return str(caught.value)


def test_a_recipe_says_what_is_not_default(recipe: Path) -> None:
    found = read_train_recipe(recipe)
    assert found.optimisation.learning_rate == 1e-4
    assert found.data.train[0].title == "rows"
    assert found.losses.contrastive_weight == 0.8
    assert found.data.group == 16
    assert found.evaluation is None
    with pytest.raises(ValueError, match="frozen"):
        found.output = "elsewhere"


def test_paths_with_a_dot_are_taken_from_the_folder_of_the_recipe(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(recipe.parent.parent)
    found = read_train_recipe(Path(recipe.parent.name) / recipe.name, ["output=elsewhere"])
    assert found.data.train[0].path == str(recipe.parent / "rows.jsonl")
    assert found.model.base == str(recipe.parent / "base")
    assert found.output == "elsewhere"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("losses.tmperature=1", "losses.tmperature is no known field. Did you mean losses.temperature?"),
        ("learning_rate=1", "Did you mean optimisation.learning_rate?"),
        ("model.lora.rnk=1", "Did you mean model.lora.rank?"),
        ("data.train.0.pth=x", "data.train.0.pth is no known field. Did you mean data.train.0.path?"),
        ("data.group=0", "data.group is 0: Input should be greater than or equal to 1"),
        ("optimisation.chunk=0", "optimisation.chunk is 0"),
        ("optimisation.queries=true", "optimisation.queries is True: expected a number"),
        ("optimisation.learning_rate=.nan", "learning_rate is nan"),
        ("losses.thought_dropout=1.5", "losses.thought_dropout is 1.5"),
        ("losses.contrastive_weight=-0.1", "losses.contrastive_weight is -0.1"),
        ("data.max_length=34", "max_query_tokens is 32 and max_length, of the query with its thought, 34"),
        ("model.tuning=loar", "model.tuning is 'loar': Input should be 'lora', 'qlora' or 'full'"),
        ("optimisation={steps: 3, epochs: 1}", "steps is 3 and epochs 1.0; expected one of them"),
        ("optimisation.epochs=null", "steps is None and epochs None"),
        ("data.train=[{path: a.jsonl}, {path: b/a.jsonl}]", "two sources are called 'a'"),
        ("data.train=[]", "data.train is []"),
        ("data.train=nothing.jsonl", "data.train.0.path is 'nothing.jsonl'; there is no such file"),
        ("model.base=./nothing", "model.base is './nothing'; there is no folder with a config.json"),
        ("evaluation={collection: nowhere}", "evaluation.collection is 'nowhere'"),
        ("evaluation={collection: x, split: test}", "what was chosen on the test split cannot be measured"),
        ("evaluation={collection: x, split: ' TEST '}", "expected dev or another one"),
        ("evaluation={collection: x, metric: F1}", "expected one of nDCG@10"),
        ("stop.divergence=1", "stop.divergence is 1"),
        ("model={base: ./base, attention: flash_attention_2, dtype: float32}", "computes in bfloat16"),
        ("optimisation.seed=x y", "optimisation.seed is 'x y'"),
        ("model=3", "model is 3"),
        ("output=[1", "is no YAML"),
        ("seed", "A change of the recipe is 'seed'; expected SECTION.FIELD=VALUE"),
        ("data.train.7.path=x", "names '7' of a list of 1"),
        ("output.folder=x", "names a field of"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_place(recipe: Path, change: str, said: str) -> None:
    assert said in refused(recipe, change)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("losses.vectors=both", "model.layout=released"), "a query with a thought has no fast vector"),
        (("data.group=1", "losses.in_batch_negatives=false"), "no query has a negative"),
        (("losses.distillation_weight=0", "losses.contrastive_part_weight=0"), "one of them above 0"),
    ],
)
def test_what_contradicts_itself_is_refused(recipe: Path, changes: tuple[str, ...], said: str) -> None:
    assert said in refused(recipe, *changes)


def test_a_missing_section_and_a_missing_file_are_named(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    assert f"There is no file {path}" in refused(path)
    path.write_text("")
    assert "model is missing" in refused(path)
    path.write_text("- 1\n")
    assert "is a list; expected sections" in refused(path)
    path.write_text("model: [\n")
    assert "cannot be read" in refused(path)
    path.write_text("model: {base: a}\noutput: b\nmodel: {base: c}\n")
    assert "the key 'model' stands there twice" in refused(path)
    path.write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in refused(path)


def test_a_collection_without_the_split_names_those_it_has(recipe: Path) -> None:
    folder = recipe.parent / "collection"
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text("")
    (folder / "qrels" / "validation.tsv").write_text("")
    change = f"evaluation={{collection: {folder}}}"
    assert f"evaluation.split is 'dev'; {folder} has validation." in refused(recipe, change)
    assert read_train_recipe(recipe, [change, "evaluation.split=validation"]).evaluation is not None


def test_of_steps_and_epochs_the_changed_one_stays(recipe: Path) -> None:
    found = read_train_recipe(recipe, ["optimisation.steps=7"]).optimisation
    assert (found.steps, found.epochs) == (7, None)
    recipe.write_text(recipe.read_text().replace("epochs: 2", "steps: 9"))
    found = read_train_recipe(recipe, ["optimisation.epochs=0.5"]).optimisation
    assert (found.steps, found.epochs) == (None, 0.5)


def test_a_recipe_survives_the_round_trip_through_json(recipe: Path) -> None:
    for changes in ([], ["optimisation.steps=7"], ["optimisation.chunk=null", "stop.divergence=null"]):
        found = read_train_recipe(recipe, changes)
        assert TrainRecipe.of(json.loads(json.dumps(found.to_dict()))) == found


def test_the_fingerprint_stands_for_what_decides_the_weights(recipe: Path, tmp_path: Path) -> None:
    first = read_train_recipe(recipe)
    alike = ["output=elsewhere", "checkpoints.every=3", "stop.divergence=9", "hardware.processes=8"]
    for change in [*alike, "model.gradient_checkpointing=false"]:
        assert read_train_recipe(recipe, [change]).fingerprint == first.fingerprint, change
    others = ["optimisation.seed=1", "data.group=2", "losses.temperature=0.05", "model.lora.rank=8"]
    for change in [*others, "optimisation.epochs=3", "data.train.0.rows=1", "model.base=an/other"]:
        assert read_train_recipe(recipe, [change]).fingerprint != first.fingerprint, change
    relative = TrainRecipe.of({**first.to_dict(), "data": {"train": "rows.jsonl"}})
    assert relative.fingerprint == first.fingerprint


@given(st.floats(min_value=1e-12, max_value=1e12), st.sampled_from(["{:e}", "{:E}", "{!r}", "{:.0e}"]))
def test_numbers_are_numbers_however_they_are_written(value: float, form: str) -> None:
    text = form.format(value)
    assert yaml_value(text) == float(text)
    assert isinstance(yaml_value(text), int | float)


@pytest.mark.parametrize("text", ["e5", "1e", "1e5x", "abc", "1-4", "v1e5", "2026-01-01x"])
def test_texts_stay_texts(text: str) -> None:
    assert yaml_value(text) == text


def test_reading_a_recipe_loads_nothing_heavy(recipe: Path, root: Path) -> None:
    code = (
        "import sys; from o1_retriever_training.joint.recipe import read_train_recipe as r;"
        f"r({str(recipe)!r}); print(*{{'torch', 'transformers', 'peft', 'datasets'}} & set(sys.modules))"
    )
    environment = {"PYTHONPATH": f"{root}:{root / 'training'}", "PATH": ""}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert run.stdout.strip() == ""


def recipes(root: Path) -> list[Path]:
    return sorted((root / "training" / "recipes").glob("*.yaml"))


def test_every_recipe_of_the_project_is_valid(root: Path) -> None:
    names = {path.name for path in recipes(root)}
    assert {"paper.yaml", "one-gpu.yaml", "cpu-mini.yaml"} <= names
    for path in recipes(root):
        found = read_train_recipe(path, check_files=False)
        assert found.output
        text = path.read_text()
        assert all(f"[{origin}]" in text for origin in ("paper", "ours")), path.name
    mini = read_train_recipe(root / "training" / "recipes" / "cpu-mini.yaml", check_files=False)
    assert (Path(mini.model.base) / "model.safetensors").is_file()


def test_the_paper_is_reproduced_with_its_values(root: Path) -> None:
    found = read_train_recipe(root / "training" / "recipes" / "paper.yaml", check_files=False)
    assert found.model.tuning == "lora"
    assert (found.model.lora.rank, found.model.lora.alpha, found.model.lora.dropout) == (32, 64, 0.1)
    targets = {f"{part}_proj" for part in ("q", "k", "v", "o", "gate", "up", "down")}
    assert set(found.model.lora.targets) == targets
    assert (found.model.dtype, found.model.gradient_checkpointing) == ("bfloat16", True)
    optimisation = found.optimisation
    assert (optimisation.learning_rate, optimisation.warmup, optimisation.epochs) == (1e-4, 0.1, 1)
    assert (found.hardware.processes, optimisation.queries, found.data.group) == (8, 8, 16)
    data = found.data
    assert (data.max_query_tokens, data.max_document_tokens, data.max_length) == (32, 192, 256)
    losses = found.losses
    assert (losses.contrastive_weight, losses.temperature, losses.thought_dropout) == (0.8, 0.02, 0.1)
    assert (losses.distillation_weight, losses.contrastive_part_weight) == (1, 1)
    assert losses.in_batch_negatives
    assert losses.across_processes
    assert losses.vectors == "sampled"


def test_defaults_are_the_papers_where_nothing_is_said(root: Path) -> None:
    paper = read_train_recipe(root / "training" / "recipes" / "paper.yaml", check_files=False)
    plain = TrainRecipe.model_validate(SMALL)
    assert plain.losses == paper.losses
    assert plain.model.lora == paper.model.lora
    ours = {"queries": 64, "chunk": 16}
    assert plain.optimisation == paper.optimisation.model_copy(update=ours)


@pytest.mark.parametrize("name", ["ddp.yaml", "fsdp.yaml"])
def test_accelerate_reads_its_configurations(root: Path, name: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(root / "training" / "recipes" / "accelerate" / name))
    assert config.num_processes == 8
    assert config.mixed_precision == "no"
    if name == "fsdp.yaml":
        assert config.fsdp_config["fsdp_version"] == 2
