"""A thinker that corrects an encoder's vectors of queries: the loss over the index, the fast path, files."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from o1_retriever import ThinkingEmbedder, ThoughtSettings
from o1_retriever.encoders import CallableEncoder, as_encoder
from o1_retriever.errors import CheckpointError, SettingsError
from o1_retriever.evaluation.collection import EncodedCorpus, load_collection
from o1_retriever.evaluation.controls import thinking_systems
from o1_retriever.thinkers import LocalThinker
from o1_retriever.thinkers.config import MATRIX, Correction
from o1_retriever.thought import Thought
from o1_retriever.vectors import unit
from o1_retriever_training.joint.batches import Collator, DrawnRows, unit_vectors
from o1_retriever_training.joint.losses import corrected_queries
from o1_retriever_training.joint.model import open_backbone
from o1_retriever_training.joint.recipe import TrainRecipe
from o1_retriever_training.joint.rows import open_rows
from o1_retriever_training.joint.run import train
from o1_retriever_training.joint.steps import How, joint_step
from o1_retriever_training.joint.trainer import TrainingError, joint_model
from tests.support.adapters import bag_of_words
from tests.support.joint_runs import WORDS, dev_collection, recipe_of
from tests.training.joint.test_thinkers import chat_base

ENCODER = as_encoder(bag_of_words)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_base(tmp_path_factory.mktemp("chat") / "base")


def recipe(base: Path, folder: Path, **sections: dict[str, Any]) -> TrainRecipe:
    """Questions of which the encoder knows no word, with thoughts of another document's words."""
    folder.mkdir(exist_ok=True)
    rows = [
        {"query": f"which {n}?", "thought": f"it is {word}.", "pos": [f"{n} {word}"]}
        for n, word in enumerate(WORDS)
    ]
    rows.append({"query": "which of all?", "pos": [f"0 {WORDS[0]}", f"1 {WORDS[1]}"]})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = dev_collection(folder / "dev") / "corpus.jsonl"
    fields: dict[str, dict[str, Any]] = {
        "model": {
            "layout": "chat",
            "tuning": "lora",
            "lora": {"rank": 4, "alpha": 8, "dropout": 0.0},
            "correction": {"rank": 6},
        },
        "data": {
            "max_query_tokens": 40,
            "max_length": 80,
            "teacher": {"encoder": "words"},
            "index": {"corpus": str(corpus)},
        },
        "losses": {"contrastive_weight": 0.5, "vectors": "both", "thought_dropout": 0.0},
        "optimisation": {"chunk": None, "learning_rate": 1e-2, "steps": 4, "queries": 12},
    }
    for name, more in sections.items():
        fields[name] = {**fields.get(name, {}), **more}
    return recipe_of(base, folder / "rows.jsonl", folder / "out", **fields)


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = recipe(base, tmp_path_factory.mktemp("trained"), optimisation={"steps": 30})
    return train(made, show_progress_bar=False, teacher=ENCODER).output


def step(made: TrainRecipe, work: Path) -> tuple[dict[str, float], dict[str, Any], Any]:
    """(Parts of the loss of a batch of all rows, the batch, the model with its gradient)."""
    backbone = open_backbone(made.model, made.data, seed=7, device=torch.device("cpu"))
    rows = open_rows(made.data, backbone.template, work, show=False, teacher=ENCODER)
    assert rows.index is not None
    drawn = DrawnRows(rows, made)
    batch = Collator(rows, backbone.template, made)([drawn[row, 0] for row in range(len(rows))])
    model = joint_model(backbone, made, rows).train()
    parts = joint_step(model, batch, made.losses, How(tokens=made.chunk_tokens), unit_vectors(rows.index))
    return {name: float(value) for name, value in parts.items()}, batch, model


@pytest.mark.parametrize("chunk", [None, 2])
def test_training_begins_at_the_encoders_own_vectors(base: Path, tmp_path: Path, chunk: int | None) -> None:
    parts, batch, model = step(recipe(base, tmp_path, optimisation={"chunk": chunk}), tmp_path / "data")
    thinking = batch["alone"] >= 0
    assert int(thinking.sum()) == len(WORDS), "every query with a thought has a partner without"
    own = unit(bag_of_words([f"which {n}?" for n in range(len(WORDS))]))
    with_thought = unit(bag_of_words([f"which {n}? it is {word}." for n, word in enumerate(WORDS)]))
    expected = unit(own + with_thought)
    found = corrected_queries(batch["encoded"], torch.zeros_like(batch["encoded"]), batch["alone"])
    assert (found[thinking].numpy() @ expected.T).max(axis=1).min() > 0.9999
    index = unit(bag_of_words([f"{n} {word}" for n, word in enumerate(WORDS)]))
    every = np.concatenate([expected, own, unit(bag_of_words(["which of all?"]))])
    answers = [*range(len(WORDS)), *range(len(WORDS))]
    scores = every @ index.T / made_temperature(tmp_path)
    surprise = [np.logaddexp.reduce(row) - row[n] for row, n in zip(scores, answers, strict=False)]
    both = [
        np.logaddexp.reduce([*np.delete(scores[-1], [0, 1]), scores[-1][n]]) - scores[-1][n] for n in (0, 1)
    ]
    assert parts["index"] == pytest.approx(np.mean([*surprise, np.mean(both)]), rel=5e-3)
    assert parts["fast"] == pytest.approx(float(np.mean(1 - (own * expected).sum(axis=1))), rel=1e-2)
    gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    assert gradients["correction.up"].abs().max() > 0
    assert gradients["correction.down"].abs().max() == 0, "nothing moves it while the other is zero"


def test_thoughts_of_rows_without_an_answer_are_no_vectors_to_learn_from(base: Path, tmp_path: Path) -> None:
    made = recipe(base, tmp_path)
    known = [step(made, tmp_path / "data")]
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"query": "words", "thought": "a passage of the index."}\n')
    known.append(step(made, tmp_path / "more"))
    (before, first, _), (after, second, _) = known
    assert second["labels"].shape[1] > first["labels"].shape[1], "it is learned to be written"
    assert len(second["encoded"]) == len(first["encoded"])
    assert (after["fast"], after["index"]) == pytest.approx((before["fast"], before["index"]), rel=1e-4)


def made_temperature(folder: Path) -> float:
    return 0.1  # as `recipe_of` has it


def test_what_is_trained_is_what_is_served(base: Path, trained: Path) -> None:
    matrix = Correction.beside(trained)
    assert matrix is not None
    assert (matrix.down.shape, matrix.up.shape) == ((6, 32), (ENCODER.space.dimension, 6))
    assert np.abs(matrix.up).max() > 0.05
    thinker = LocalThinker(trained, dtype="float32")
    assert thinker.correction is not None
    embedder = ThinkingEmbedder.from_parts(thinker, ENCODER, cache=False)
    pairs = [("which 3?", Thought(text="it is delta.")), ("which 3?", None)]
    plain = embedder.backend.uncorrected  # type: ignore[attr-defined]
    before, after = (
        np.stack([row for _, row in sorted(each.embed_queries(pairs, batch_size=None), key=lambda p: p[0])])
        for each in (plain, embedder.backend)
    )
    backbone = open_backbone(
        recipe(base, trained.parent).model,
        recipe(base, trained.parent).data,
        seed=7,
        device=torch.device("cpu"),
    )
    template = backbone.template
    fast = template.fast_query(template.text_ids(["which 3?"])[0])
    with torch.no_grad():
        state = thinker.local.model.base_model(input_ids=torch.tensor([fast])).last_hidden_state[:, -1]
    expected = unit(before)
    expected[1] += matrix.of(state.numpy())[0]
    np.testing.assert_allclose(after, expected, atol=1e-4)
    assert embedder.backend.encoder_identity != plain.encoder_identity


def test_the_fast_path_learns_what_the_thought_says(base: Path, trained: Path, tmp_path: Path) -> None:
    collection = load_collection(dev_collection(tmp_path / "dev"), split="dev")
    questions = {f"q{n}": f"which {n}?" for n in range(len(WORDS))}
    embedder = ThinkingEmbedder.from_parts(LocalThinker(trained, dtype="float32"), ENCODER, cache=False)
    encoded = unit(bag_of_words(collection.corpus.texts(0, len(WORDS))))
    never = ThoughtSettings(thinking="never", n_thoughts=1, max_new_tokens=4)
    found = embedder.encode_queries(list(questions.values()), settings=never)
    scores = np.asarray(found) @ encoded.T
    own = unit(bag_of_words(list(questions.values()))) @ encoded.T
    margin, before = (np.diag(each).mean() - each.mean() for each in (scores, own))
    assert margin > before + 0.01
    plain = thinking_systems(
        embedder,
        list(questions.values()),
        collection.corpus,
        EncodedCorpus(matrix=encoded, seconds=0.0),
        never,
    )[0]
    assert plain.embedder is not embedder, "without thinking is without the thinker"


def test_a_correction_is_trained_further_beside_the_same_encoder(trained: Path, tmp_path: Path) -> None:
    more = train(recipe(trained, tmp_path), show_progress_bar=False, teacher=ENCODER).output
    before, after = (load_file(each / MATRIX) for each in (trained, more))
    assert not torch.equal(before["up"], after["up"])
    torch.testing.assert_close(before["up"], after["up"], atol=0.05, rtol=0)
    wider = CallableEncoder(lambda texts: np.pad(bag_of_words(texts), ((0, 0), (0, 8))), name="wider")
    with pytest.raises(TrainingError, match="The base corrects vectors of"):
        train(recipe(trained, tmp_path / "wider"), show_progress_bar=False, teacher=wider)


def test_a_thinker_that_is_trained_further_to_write_keeps_its_matrix(trained: Path, tmp_path: Path) -> None:
    alone = {"data": {"teacher": None, "index": None}, "losses": {"contrastive_weight": 0.0}}
    made = recipe(trained, tmp_path, model={"correction": None}, optimisation={"steps": 1}, **alone)
    kept = Correction.beside(train(made, show_progress_bar=False).output)
    before = Correction.beside(trained)
    assert before is not None
    assert kept is not None
    assert kept.identity == before.identity


def test_a_matrix_for_another_encoder_corrects_nothing(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(trained, tmp_path / "thinker", ignore=shutil.ignore_patterns("training"))
    matrix = Correction.beside(trained)
    assert matrix is not None
    assert matrix.encoder is None
    backends = {}
    for encoder in (ENCODER.space.weights, "another"):
        replace(matrix, encoder=encoder).save(tmp_path / "thinker")
        thinker = LocalThinker(tmp_path / "thinker", dtype="float32")
        backends[encoder] = ThinkingEmbedder.from_parts(thinker, ENCODER, cache=False).backend
    own, other = backends.values()
    assert own.correction.identity == matrix.identity  # type: ignore[attr-defined]
    assert (other.correction, other.encoder_identity) == (None, other.uncorrected.encoder_identity)  # type: ignore[attr-defined]
    assert caplog.messages == [
        "The thinker has a matrix for the vectors of another encoder: those of this one are not corrected."
    ]


def test_a_matrix_that_does_not_fit_says_so(trained: Path, tmp_path: Path) -> None:
    thinker = LocalThinker(trained, dtype="float32")
    narrow = CallableEncoder(lambda texts: np.ones((len(texts), 3), np.float32), name="narrow")
    with pytest.raises(SettingsError, match="expected the encoder that it was trained beside"):
        ThinkingEmbedder.from_parts(thinker, narrow, cache=False)
    (tmp_path / MATRIX).write_bytes(b"{}")
    with pytest.raises(CheckpointError, match="Expected the matrices down"):
        Correction.beside(tmp_path)


@pytest.mark.parametrize(
    "sections",
    [
        {"model": {"layout": "paper"}},
        {"losses": {"vectors": "sampled"}},
        {"losses": {"contrastive_weight": 0.0}},
        {"data": {"index": None}},
        {"data": {"teacher": {"encoder": "words", "thinking": False}}},
    ],
)
def test_recipes_from_which_no_correction_is_learned(
    base: Path, tmp_path: Path, sections: dict[str, Any]
) -> None:
    with pytest.raises(SettingsError, match="correction"):
        recipe(base, tmp_path, **sections)
