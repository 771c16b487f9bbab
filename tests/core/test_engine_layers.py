"""Layers of fewer operations compute what transformers' own do, and stay away where they would not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.nn import Linear
from transformers import AutoModelForCausalLM, SmolLM3Config

from o1_retriever.engine.layers import FusedLayer, lay_out
from o1_retriever.engine.load import LocalModel, assemble
from o1_retriever.engine.passes import last_states
from o1_retriever.engine.weights import PackedLinear, has_kernel
from o1_retriever.thought import ThoughtSettings
from tests.support.engine import TOLERANCE, assert_equal_to_slow, exact_model, gap, job_for, written_by
from tests.support.tiny import tiny_model

FAMILY = ("llama", "qwen2", "qwen3", "mistral", "mistral-window", "gemma", "phi3")
OTHERS = ("phi", "bert", "gemma2")
WARM = ThoughtSettings(temperature=1.0, top_p=0.95, max_new_tokens=16)
QUERIES = ["a", "why is the sky blue?", "z" * 40, "zwei", "x" * 30]
INSTRUCTION = "find what answers: "


def fused_layers(model: Any) -> int:
    return sum(isinstance(module, FusedLayer) for module in model.modules())


def fused_model(architecture: str, instruction: str = "") -> LocalModel:
    """The model of `exact_model`, laid out."""
    plain = exact_model(architecture, instruction, stops=3)
    model = copy.deepcopy(plain.model)
    lay_out(model)
    return assemble(architecture, model, plain.template.tokenizer, instruction=instruction, weights="same")


@pytest.mark.parametrize("architecture", FAMILY)
def test_a_pass_over_padded_texts_is_that_of_transformers(architecture: str) -> None:
    plain = exact_model(architecture, stops=3).model
    fused = fused_model(architecture).model
    assert fused_layers(fused) == 2
    ids = torch.randint(5, 200, (3, 21), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :9] = 0
    given = {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    with torch.inference_mode():
        found, expected = fused(input_ids=ids, **given).logits, plain(input_ids=ids, **given).logits
    assert ((found - expected).abs() * mask[..., None]).max() < 1e-4


@pytest.mark.parametrize("instruction", ["", INSTRUCTION])
@pytest.mark.parametrize("architecture", FAMILY)
def test_thoughts_of_fused_layers_are_those_of_plain_passes(architecture: str, instruction: str) -> None:
    """A shared beginning, rows that join and leave: against the slow way with the model as it was."""
    plain, fused = exact_model(architecture, instruction, stops=3), fused_model(architecture, instruction)
    jobs = [job_for(plain, query, range(2), room=5 + 4 * place) for place, query in enumerate(QUERIES)]
    assert_equal_to_slow(plain, jobs, written_by(fused, jobs, WARM, most=2), WARM)
    texts = [plain.template.document(ids) for ids in plain.template.text_ids(QUERIES)]
    assert gap(last_states(fused, texts), last_states(plain, texts)) < TOLERANCE


@pytest.mark.parametrize("architecture", OTHERS)
def test_layers_of_other_families_stay_as_they_are(architecture: str) -> None:
    model, _ = tiny_model(architecture)
    lay_out(model)
    assert not fused_layers(model)


def test_layers_that_do_not_turn_positions_stay_between_those_that_do() -> None:
    """SmolLM3 leaves the rotation out of every fourth layer, which nothing in its weights tells."""
    torch.manual_seed(0)
    config = SmolLM3Config(
        vocab_size=260, hidden_size=32, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=64, pad_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
    ids = torch.randint(5, 200, (2, 15))
    with torch.inference_mode():
        expected = model(input_ids=ids).logits
        lay_out(model)
        found = model(input_ids=ids).logits
    assert [isinstance(layer, FusedLayer) for layer in model.model.layers] == [True, True, True, False]
    assert torch.allclose(found, expected, atol=1e-4)


class Scaled(Linear):
    """A layer that does more than its product, as adapters do."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Twice the product."""
        return 2 * super().forward(states)


@pytest.mark.parametrize("name", ["self_attn.k_proj", "mlp.down_proj"])
def test_a_layer_with_a_product_of_another_kind_stays(name: str) -> None:
    model: Any = tiny_model("llama")[0].double()
    changed = model.get_submodule(f"model.layers.1.{name}")
    model.set_submodule(f"model.layers.1.{name}", Scaled(changed.in_features, changed.out_features).double())
    lay_out(model)
    assert [isinstance(layer, FusedLayer) for layer in model.model.layers] == [True, False]


def test_a_layer_that_gives_something_else_stays() -> None:
    """Here the activation is not the one that the configuration names."""
    model: Any = tiny_model("llama")[0]
    model.model.layers[0].mlp.act_fn = torch.nn.ReLU()
    lay_out(model)
    assert [isinstance(layer, FusedLayer) for layer in model.model.layers] == [False, True]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma"])
def test_half_precision_rounds_no_more_than_before(architecture: str, dtype: torch.dtype) -> None:
    exact, half, fused = (tiny_model(architecture) for _ in range(3))
    half[0].to(dtype)
    fused[0].to(dtype)
    lay_out(fused[0])
    assert fused_layers(fused[0]) == 2
    states = []
    for model, tokenizer in (exact, half, fused):
        local = assemble(architecture, model, tokenizer, weights="same")
        ids = [local.template.document(row) for row in local.template.text_ids(QUERIES)]
        states.append(last_states(local, ids))
    assert gap(states[2], states[0]) < 2 * gap(states[1], states[0])


@pytest.mark.skipif(not has_kernel(PackedLinear), reason="this machine has no kernels for packed weights")
def test_all_products_of_a_fused_layer_are_packed() -> None:
    model, _ = tiny_model("qwen2")
    lay_out(model)
    assert not any(type(module) is Linear for module in model.modules())
