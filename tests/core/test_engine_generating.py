"""A model that the engine cannot run thinks through transformers' own loop, which is said once."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, GPT2Config, MambaConfig, OPTConfig

from o1_retriever.engine.decode import steps_work, write_thoughts
from o1_retriever.engine.follow import Follower
from o1_retriever.engine.load import LocalModel, assemble_writer
from o1_retriever.engine.rows import Drafts, Job
from o1_retriever.query import as_queries
from o1_retriever.thinkers import LocalThinker
from o1_retriever.thought import ThoughtSettings
from tests.support.engine import slow_tokens
from tests.support.tiny import byte_tokenizer

WARM = ThoughtSettings(temperature=1.0, top_p=0.95, max_new_tokens=12, repetition_penalty=1.2)
PROMPTS = ((5, 6, 7, 8), (40,), (9, 10, 11, 12, 13, 14, 15))
# Alibi instead of positions, a state instead of keys, and positions that the outermost model never sees.
CONFIGS: dict[str, Any] = {
    "bloom": lambda n: BloomConfig(vocab_size=n, hidden_size=32, n_layer=2, n_head=2),
    "mamba": lambda n: MambaConfig(vocab_size=n, hidden_size=32, num_hidden_layers=2, state_size=8),
    "gpt2": lambda n: GPT2Config(vocab_size=n, n_embd=32, n_layer=2, n_head=2, n_positions=400),
    "opt": lambda n: OPTConfig(
        vocab_size=n, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, ffn_dim=64,
        word_embed_proj_dim=32, max_position_embeddings=400,
    ),
}  # fmt: skip
FOREIGN = ("bloom", "mamba", "opt")


def model_of(architecture: str) -> tuple[Any, Any]:
    tokenizer = byte_tokenizer(None)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[architecture](len(tokenizer)), dtype=torch.float64)
    model.generation_config.eos_token_id = list(range(40, 60))
    # What a model's own configuration asks of `generate` is not in the settings.
    model.generation_config.repetition_penalty = 3.0
    return model.eval(), tokenizer


def writer(architecture: str) -> LocalModel:
    model, tokenizer = model_of(architecture)
    return assemble_writer(architecture, model, tokenizer, weights="same")


def jobs() -> list[Job]:
    return [Job(prompt=prompt, indices=(1, 2), room=30) for prompt in PROMPTS]


def said_by_us(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("o1_retriever")]


def assert_slow_tokens(local: LocalModel, written: dict[int, Drafts], how: ThoughtSettings) -> None:
    for place, job in enumerate(jobs()):
        for index, draft in zip(job.indices, written[place].drafts, strict=True):
            assert (draft.token_ids, draft.finish) == slow_tokens(local, job, index, how)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("architecture", FOREIGN)
def test_thoughts_of_a_foreign_model_are_those_of_plain_passes(
    architecture: str, temperature: float, caplog: pytest.LogCaptureFixture
) -> None:
    local, how = writer(architecture), WARM.with_changes(temperature=temperature)
    with caplog.at_level(logging.WARNING, "o1_retriever"):
        written = dict(write_thoughts(local, jobs(), how))
        again = dict(write_thoughts(local, jobs(), how))
    assert_slow_tokens(local, written, how)
    assert_slow_tokens(local, again, how)
    [told] = said_by_us(caplog)
    assert type(local.model).__name__ in told
    assert "generate" in told


def test_a_model_that_no_test_has_seen_is_tried_and_goes_through_the_engine(
    caplog: pytest.LogCaptureFixture,
) -> None:
    local = writer("gpt2")
    assert steps_work(local)
    assert_slow_tokens(local, dict(write_thoughts(local, jobs(), WARM)), WARM)
    assert not said_by_us(caplog)


def test_a_foreign_models_thoughts_can_be_followed_and_let_go() -> None:
    local = writer("bloom")
    told: list[tuple[int, int, int]] = []

    class Listener(Follower):
        """Lets go of the second job after three tokens."""

        def written(self, place: int, index: int, token_ids: Any, finish: Any) -> None:
            """Keep them."""
            told.extend((place, index, token) for token in token_ids)

        def wanted(self, place: int) -> bool:
            """Not the second for long."""
            return place != 1 or sum(1 for at, index, _ in told if (at, index) == (1, 1)) < 3

    endless = WARM.with_changes(temperature=0.0)
    object.__setattr__(local, "stop_ids", ())
    written = dict(write_thoughts(local, jobs(), endless, follower=Listener()))
    assert sorted(written) == [0, 2]
    for place in (0, 2):
        for index, draft in zip((1, 2), written[place].drafts, strict=True):
            assert tuple(token for at, number, token in told if (at, number) == (place, index)) == (
                draft.token_ids
            )
    assert len([1 for place, *_ in told if place == 1]) == 6


def test_a_foreign_model_keeps_to_its_time() -> None:
    written = dict(write_thoughts(writer("bloom"), jobs(), WARM.with_changes(budget_ms=0.001)))
    for drafts in written.values():
        assert {draft.finish for draft in drafts.drafts} <= {"budget", "eos"}
        assert {len(draft.token_ids) for draft in drafts.drafts} == {1}


def test_a_thinker_of_a_foreign_model_thinks() -> None:
    model, tokenizer = model_of("mamba")
    thoughts = LocalThinker(model, tokenizer).think(as_queries(["why?"]), settings=WARM)
    assert len(thoughts[0]) == 3
