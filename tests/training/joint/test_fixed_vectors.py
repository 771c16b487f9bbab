"""Learning from vectors that do not change: a teacher's, an index's, and the words of plain documents.

The numbers of `ENGLISH` and `JOINT` are those of the loop that trained o1-embedder-22m before its stages
became recipes: the same model, rows, vectors and learning rate.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from o1_retriever.embedder import ThinkingEmbedder
from o1_retriever.encoders import CallableEncoder
from o1_retriever.errors import SettingsError
from o1_retriever_training.joint.batches import Budget, SameSourceBatches
from o1_retriever_training.joint.losses import index_loss
from o1_retriever_training.joint.recipe import TrainRecipe, read_train_recipe
from o1_retriever_training.joint.run import train
from o1_retriever_training.joint.sizes import sample
from o1_retriever_training.joint.trainer import TrainingError
from o1_retriever_training.rows import DataError
from tests.support.tiny import CONFIGS, letter_tokenizer

DOCUMENTS = [
    "a prism bends light", "rain falls from clouds", "iron rusts in wet air", "the tide follows the moon"
]  # fmt: skip
QUERIES = ["why is iron red", "what bends light", "who saw the tide"]
THOUGHTS = {
    "why does it rain": "clouds drop water",
    "what pulls the sea": "moon and tide",
    "what is rust": "iron and wet air",
    "where is a rainbow": "light in rain",
}
ANSWERS = {"why does it rain": [1], "what pulls the sea": [3, 0], "where is a rainbow": [0, 1]}
# (loss, 1 - cosine, similarities) and (loss, comparison, 1 - cosine), step by step
ENGLISH = [
    (43.6890, 1.00460, 2.24755),
    (42.1739, 0.99442, 1.90580),
    (41.2979, 0.98132, 1.79942),
    (40.6660, 0.96878, 1.75571),
    (40.1565, 0.95707, 1.73077),
    (39.7006, 0.94584, 1.70937),
]
JOINT = [
    (38.2596, 2.22392, 0.89340),
    (33.5395, 0.98156, 0.86200),
    (31.2748, 0.62241, 0.82441),
    (29.3704, 0.38816, 0.78629),
    (27.5524, 0.22996, 0.74307),
    (25.6653, 0.14456, 0.68999),
]


def vectors(texts: Sequence[str]) -> Any:
    """A random vector for each text, always the same one."""
    seeds = [
        int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little") for text in texts
    ]
    return np.stack([np.random.default_rng(seed).standard_normal(32).astype(np.float32) for seed in seeds])


TEACHER = CallableEncoder(vectors, name="random vectors")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tokenizer = letter_tokenizer("paper")
    config = CONFIGS["bert"](len(tokenizer))
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def write(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def recipe(base: Path, folder: Path, rows: Sequence[dict[str, Any]], **sections: Any) -> TrainRecipe:
    value: dict[str, Any] = {
        "model": {
            "base": str(base), "tuning": "full", "dtype": "float32", "gradient_checkpointing": False,
            "head_trains_embeddings": False,
        },
        "data": {
            "train": write(folder / "rows.jsonl", rows), "max_query_tokens": 96, "max_length": 128,
            "max_document_tokens": 128, "teacher": {"encoder": "random vectors"},
        },
        "losses": {
            "contrastive_weight": 0.5, "vectors": "both", "thought_dropout": 0.0, "teacher_weight": 30.0,
            "relation_weight": 3.0,
        },
        "optimisation": {
            "steps": 6, "queries": 16, "chunk": None, "learning_rate": 1e-3, "head_rate": 4.0, "beta2": 0.98,
            "schedule": "constant", "warmup": 0.0, "max_grad_norm": 15.0,
        },
        "output": str(folder / "out"),
    }  # fmt: skip
    for name, fields in sections.items():
        value[name] = {**value[name], **fields}
    return TrainRecipe.of(value)


def english() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{"kind": "document", "text": text} for text in DOCUMENTS]
    rows += [{"query": text} for text in QUERIES]
    return rows + [{"query": text, "thought": thought} for text, thought in THOUGHTS.items()]


def steps_of(made: TrainRecipe) -> list[dict[str, float]]:
    train(made, show_progress_bar=False, teacher=TEACHER)
    log = json.loads((Path(made.output) / "training.json").read_text())["log"]
    return [each for each in log if "loss" in each]


@pytest.mark.parametrize("attention", ["sdpa", "plain"])
@pytest.mark.parametrize("chunk", [None, 2])
def test_documents_queries_and_thoughts_are_learned_as_by_the_earlier_loop(
    base: Path, tmp_path: Path, attention: str, chunk: int | None
) -> None:
    made = recipe(base, tmp_path, english(), optimisation={"chunk": chunk}, model={"attention": attention})
    found = steps_of(made)
    # The earlier loop added 30, 3 and 1 parts; with a contrastive_weight of 0.5 the recipe has half of each.
    steps = [(2 * each["loss"], each["teacher"], each["relation"]) for each in found]
    assert steps == [pytest.approx(each, rel=2e-3) for each in ENGLISH]


def joint(base: Path, tmp_path: Path, **sections: Any) -> TrainRecipe:
    rows = [
        {"query": text, "thought": thought, "pos": [DOCUMENTS[n] for n in ANSWERS.get(text, [])]}
        for text, thought in THOUGHTS.items()
    ]
    corpus = write(tmp_path / "corpus.jsonl", [{"_id": text, "text": text} for text in DOCUMENTS])
    data = {
        "teacher": {"encoder": "random vectors", "thinking": False},
        "index": {"corpus": corpus, "vectors": "thinking"},
    }
    losses = {"contrastive_weight": 1 / 1.7, "temperature": 0.05, "index_weight": 3.0, "relation_weight": 0.0}
    optimisation = {"max_grad_norm": 30 / 1.7}
    together = {"data": data, "losses": losses, "optimisation": optimisation}
    changed = {name: {**fields, **sections.get(name, {})} for name, fields in together.items()}
    return recipe(base, tmp_path, rows, **changed)


@pytest.mark.parametrize("chunk", [None, 2])
def test_queries_are_compared_with_a_whole_index_as_by_the_earlier_loop(
    base: Path, tmp_path: Path, chunk: int | None
) -> None:
    found = steps_of(joint(base, tmp_path, optimisation={"chunk": chunk}))
    steps = [(1.7 * each["loss"], each["index"], each["teacher"]) for each in found]
    assert steps == [pytest.approx(each, rel=2e-3) for each in JOINT]


def test_the_loss_over_an_index_is_that_of_plain_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    queries = torch.nn.functional.normalize(torch.randn(4, 8, dtype=torch.double), dim=-1).requires_grad_()
    index = torch.nn.functional.normalize(torch.randn(9, 8, dtype=torch.double), dim=-1)
    answers = [(0, 3), (), (8,), (1, 2, 4)]
    table = torch.tensor([[*own, *[-1] * (3 - len(own))] for own in answers])
    wanted = []
    for row, own in enumerate(answers):
        scores = [float(queries[row].detach() @ each) / 0.05 for each in index]
        others = sum(torch.tensor(s, dtype=torch.double).exp() for n, s in enumerate(scores) if n not in own)
        terms = [
            -torch.log(torch.tensor(scores[p]).exp() / (torch.tensor(scores[p]).exp() + others)) for p in own
        ]
        wanted += [sum(terms) / len(terms)] if terms else []
    whole = index_loss(queries, table, index, temperature=0.05, count=3)
    assert float(whole.detach()) == pytest.approx(float(sum(wanted) / len(wanted)), rel=1e-5)
    monkeypatch.setattr("o1_retriever_training.joint.losses.BLOCK", 9)  # one query at a time
    parts = index_loss(queries, table, index, temperature=0.05, count=3)
    assert float(parts.detach()) == pytest.approx(float(whole.detach()))
    parts.backward()
    assert queries.grad is not None
    assert queries.grad[1].abs().sum() == 0, "a query without an answer learns from nothing"


def test_a_batch_without_answers_has_no_loss_and_a_graph() -> None:
    queries = torch.ones(2, 4, requires_grad=True)
    index_loss(queries, torch.full((2, 0), -1), torch.ones(3, 4), temperature=0.05, count=0).backward()
    assert queries.grad is not None


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(4, 40)), min_size=1, max_size=60), st.integers(0, 9))
def test_batches_by_tokens_have_every_row_once_and_none_is_too_large(
    rows: list[tuple[int, int]], seed: int
) -> None:
    sources, lengths = (np.array(column) for column in zip(*rows, strict=True))
    options: dict[str, Any] = {"size": 8, "budget": Budget(128, lengths)}
    count = len(SameSourceBatches(sources, steps=0, seed=seed, **options).epoch(0))
    batches = list(SameSourceBatches(sources, steps=count, seed=seed, **options))
    picked = [[row for row, _ in batch] for batch in batches]
    assert sorted(row for batch in picked for row in batch) == list(range(len(rows)))
    for batch in picked:
        assert len({int(sources[row]) for row in batch}) == 1
        assert len(batch) <= 8
        assert len(batch) == 1 or max(lengths[batch]) * len(batch) <= 128
    assert list(SameSourceBatches(sources, steps=count, seed=seed, **options)) == batches


def test_a_run_that_was_stopped_ends_as_one_that_was_not(base: Path, tmp_path: Path) -> None:
    sections: dict[str, Any] = {
        "optimisation": {"tokens": 80, "schedule": "plateau", "warmup": 0.2, "steps": 6}
    }
    whole = joint(base, tmp_path, **sections).model_copy(update={"output": str(tmp_path / "whole")})
    train(whole, show_progress_bar=False, teacher=TEACHER)
    kept = whole.model_copy(
        update={
            "output": str(tmp_path / "stopped"),
            "checkpoints": whole.checkpoints.model_copy(update={"every": 3, "keep": 9}),
        }
    )
    train(kept, show_progress_bar=False, teacher=TEACHER)
    stopped = tmp_path / "stopped"
    (stopped / "training.json").unlink()
    for later in (stopped / "training").glob("checkpoint-6"):
        (later / "complete.json").unlink()
    result = train(kept, show_progress_bar=False, teacher=TEACHER)
    assert result.resumed_from == 3
    ends = [load_file(folder / "model.safetensors") for folder in (tmp_path / "whole", stopped)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_thoughts_that_are_not_written_are_embedded_alone(base: Path, tmp_path: Path) -> None:
    made = joint(base, tmp_path)
    rows = made.data.train[0].model_copy(update={"written": False})
    made = made.model_copy(update={"data": made.data.model_copy(update={"train": (rows,)})})
    first, *_ = steps_of(made)
    assert first["generation"] == 0
    assert first["index"] == pytest.approx(JOINT[0][1], rel=2e-3)


def test_a_teacher_of_another_width_is_refused(base: Path, tmp_path: Path) -> None:
    wide = CallableEncoder(lambda texts: np.ones((len(texts), 48), np.float32), name="wide")
    with pytest.raises(TrainingError, match="vectors have 48 numbers and the model's 32"):
        train(recipe(base, tmp_path, english()), show_progress_bar=False, teacher=wide)


def test_what_cannot_be_learned_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="index has no encoder and there is no teacher"):
        joint(base, tmp_path, data={"teacher": None})
    with pytest.raises(SettingsError, match="head_trains_embeddings is off and tuning is lora"):
        recipe(base, tmp_path, english(), model={"tuning": "lora"})
    made = joint(base, tmp_path)
    (tmp_path / "corpus.jsonl").write_text('{"_id": "1"}\n')
    with pytest.raises(DataError, match=r"line 1: found .*expected an object with a 'text'"):
        train(made, show_progress_bar=False, teacher=TEACHER)


def test_the_recipes_of_the_small_model_run_to_their_end(base: Path, tmp_path: Path, root: Path) -> None:
    thoughts = [
        {"query": text, "thought": thought, "pos": [DOCUMENTS[n] for n in ANSWERS.get(text, [])]}
        for text, thought in THOUGHTS.items()
    ]
    documents = [{"text": text, "title": "weather"} for text in DOCUMENTS]
    small = [
        "data.max_length=128", "data.max_document_tokens=128", "data.max_query_tokens=96",
        "model.dtype=float32", "optimisation.steps=3",
    ]  # fmt: skip
    places = {
        "1-english": {"data.train.0.path": write(tmp_path / "english.jsonl", english())},
        "2-collections": {"data.train.0.path": write(tmp_path / "collections.jsonl", english())},
        "3-joint": {
            "data.train.0.path": write(tmp_path / "learned.jsonl", thoughts),
            "data.train.1.path": write(tmp_path / "searched.jsonl", thoughts[:2]),
            "data.train.2.path": write(tmp_path / "documents.jsonl", documents),
            "data.index.corpus": write(tmp_path / "corpus.jsonl", documents),
        },
    }
    model = base
    for name, files in places.items():
        before, model = model, tmp_path / name
        changes = [f"{place}={path}" for place, path in files.items()]
        changes += [f"model.base={before}", f"output={model}", *small]
        made = read_train_recipe(root / "training" / "recipes" / "o1-embedder-22m" / f"{name}.yaml", changes)
        assert train(made, show_progress_bar=False, teacher=TEACHER).steps == 3
    embedder = ThinkingEmbedder.from_pretrained(model)
    assert embedder.encode_documents(DOCUMENTS).shape == (4, 32)


def test_the_dry_run_knows_documents_and_batches_by_tokens(base: Path, tmp_path: Path) -> None:
    made = recipe(base, tmp_path, english(), optimisation={"tokens": 64, "epochs": 1.0, "steps": None})
    sampled = sample(made)
    assert sampled.rows == (11,)
    assert 1 < sampled.step.rows < 16
    assert sampled.step.documents
    assert sampled.step.queries
    compared = sample(joint(base, tmp_path))
    assert not compared.step.documents, "they are in the index already"
