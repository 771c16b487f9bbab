"""Weights laid out for the processor's kernels multiply as torch's own layers do."""

from __future__ import annotations

import logging
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import Linear

from o1_retriever import ThinkingEmbedder, ThoughtSettings
from o1_retriever.engine import weights
from o1_retriever.engine.layers import lay_out
from o1_retriever.engine.load import LoadOptions, LocalModel, assemble, load_model
from o1_retriever.engine.passes import last_states
from o1_retriever.engine.weights import (
    Int8Linear,
    Int8Weights,
    PackedLinear,
    dtype_named,
    fastest,
    has_bfloat16,
    has_kernel,
    pack,
)
from o1_retriever.errors import ModelError
from o1_retriever.thinkers import LocalThinker
from tests.support.caches import EXAMPLES
from tests.support.engine import TOLERANCE, can_pack, gap, job_for, written_by
from tests.support.tiny import tiny_model

TEXTS = ["a", "why is the sky blue?", "z" * 70, "and <emb> in between", "x" * 150]
SHORT = ThoughtSettings(temperature=1.0, top_p=0.95, max_new_tokens=16)
packable = pytest.mark.skipif(
    not can_pack(tiny_model("llama")[0]), reason="this machine has no kernels for packed weights"
)


@st.composite
def layers(
    draw: st.DrawFn, *, widest: int = 130, steps: tuple[int, int] = (1, 1)
) -> tuple[Linear, torch.Tensor]:
    """A layer of any shape in `steps`, with or without bias, and states for it, contiguous or not."""
    inputs, outputs = (step * draw(st.integers(1, widest // step)) for step in steps)
    leading = draw(st.sampled_from([(), (1,), (3,), (1, 5)]))
    rows = draw(st.integers(1, 200))
    torch.manual_seed(draw(st.integers(0, 99)))
    layer = Linear(inputs, outputs, bias=draw(st.booleans()))
    if draw(st.booleans()):
        # A view of something larger, as layers are that were cut from one fused matrix.
        whole = torch.randn(outputs, inputs + 3)
        layer.weight = torch.nn.Parameter(whole[:, 2:-1])
        assert layer.weight.is_contiguous() == (outputs == 1)
    states = torch.randn(*leading, rows, inputs)
    if draw(st.booleans()):
        states = torch.randn(*leading, inputs, rows).transpose(-1, -2)
    return layer, states


@packable
@settings(EXAMPLES)
@given(layers())
def test_a_packed_layer_multiplies_as_the_layer(drawn: tuple[Linear, torch.Tensor]) -> None:
    layer, states = drawn
    with torch.inference_mode():
        found, expected = PackedLinear(layer)(states), layer(states)
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert torch.allclose(found, expected, atol=1e-5 * layer.in_features**0.5, rtol=1e-5)


@settings(EXAMPLES)
@given(layers(), st.floats(0.01, 100.0))
def test_a_layer_in_8_bits_is_within_what_rounding_allows(
    drawn: tuple[Linear, torch.Tensor], scale: float
) -> None:
    layer, states = drawn
    states = states * scale
    with torch.inference_mode():
        found, expected = Int8Linear(layer)(states), layer(states)
        # Half a step of each factor, times the other, summed over the inputs; without the instructions for
        # it, inputs have seven bits.
        reach = states.max().clamp(min=0) - states.min().clamp(max=0)
        by_input = reach / 127 * layer.weight.abs().sum(1)
        by_weight = layer.weight.abs().amax(1) / 254 * states.abs().sum(-1, keepdim=True)
    assert found.shape == expected.shape
    assert (found - expected).abs().le(1.01 * (by_input + by_weight) + 1e-5).all()


@settings(EXAMPLES)
@given(layers())
def test_a_weight_in_8_bits_is_off_by_half_a_step_of_its_own_output(
    drawn: tuple[Linear, torch.Tensor],
) -> None:
    layer, _ = drawn
    with torch.inference_mode():
        # Ones and zeros are what they are in 8 bits too.
        ones = torch.eye(layer.in_features)
        error = (Int8Linear(layer)(ones) - layer(ones)).abs()
        half_a_step = layer.weight.abs().amax(1) / 254
    assert (error <= 1.01 * half_a_step + 1e-6).all()


@pytest.mark.skipif(not has_kernel(Int8Weights, torch.bfloat16), reason="this machine has no such kernel")
@settings(EXAMPLES)
@given(layers() | layers(steps=(64, 16)), st.integers(0, 9))
def test_weights_in_8_bits_are_within_what_rounding_allows_for_few_rows_and_many(
    drawn: tuple[Linear, torch.Tensor], few: int
) -> None:
    layer, states = drawn
    states = states.reshape(-1, layer.in_features)[: few or None].bfloat16()
    exact = layer.bfloat16()
    small = Int8Weights(exact)
    with torch.inference_mode():
        found, expected = small(states), exact.float()(states.float())
        # Half a step of each weight, its scale's rounding, and that of bfloat16 in weights and product.
        largest = exact.weight.float().abs().amax(1)
        reach = largest * (0.5 / 127 + 2**-8) * states.float().abs().sum(-1, keepdim=True)
        assert (found.float() - expected).abs().le(reach + 2**-7 * expected.abs() + 1e-5).all()
        # Alone or among others, a row is the same up to bfloat16's rounding.
        alone = torch.cat([small(row[None]) for row in states])
        assert (found.float() - alone.float()).abs().le(2**-8 * reach * 127 + 2**-6 * expected.abs()).all()


def two_of(architecture: str, *, int8: bool = False) -> tuple[LocalModel, LocalModel]:
    """The same weights as torch lays them out, and packed."""
    found = []
    for change in (False, True):
        model, tokenizer = tiny_model(architecture)
        if change:
            pack(model, int8=int8)
            kind = Int8Linear if int8 else PackedLinear
            assert any(type(module) is kind for module in model.modules())
            assert not any(type(module) is Linear for module in model.modules())
        found.append(assemble(architecture, model, tokenizer, weights="same"))
    return found[0], found[1]


def documents(local: LocalModel) -> np.ndarray:
    return last_states(local, [local.template.document(ids) for ids in local.template.text_ids(TEXTS)])


@packable
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "mistral-window", "gemma2"])
def test_a_packed_model_thinks_and_embeds_as_the_model(architecture: str) -> None:
    plain, packed = two_of(architecture)
    assert gap(documents(packed), documents(plain)) < TOLERANCE
    jobs = [job_for(plain, text, range(2)) for text in TEXTS]
    for one, other in zip(
        written_by(plain, jobs, SHORT), written_by(packed, jobs, SHORT, most=2), strict=True
    ):
        for a, b in zip(one.drafts, other.drafts, strict=True):
            assert a.token_ids == b.token_ids
            assert gap(a.state, b.state) < TOLERANCE


@packable
def test_a_head_that_shares_the_embedding_is_packed_and_the_embedding_stays() -> None:
    model, tokenizer = tiny_model("gemma2")
    assert model.lm_head.weight is model.get_input_embeddings().weight
    before = model.get_input_embeddings().weight.clone()
    rows = torch.arange(5)[None]
    with torch.inference_mode():
        expected = model(input_ids=rows).logits
        pack(model)
        found = model(input_ids=rows).logits
    assert type(model.lm_head) is PackedLinear
    assert torch.equal(model.get_input_embeddings().weight, before)
    assert torch.allclose(found, expected, atol=1e-4)
    assert assemble("tied", model, tokenizer).vocabulary == found.shape[-1]


def test_8_bits_stay_close() -> None:
    plain, packed = two_of("qwen2", int8=True)
    a, b = documents(plain), documents(packed)
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cosines.min() > 0.97
    assert gap(a, b) > 1e-3, "quantised weights must be at work"
    assert packed.precision.quantization == "int8"


def test_8_bit_thoughts_are_embedded_as_a_second_pass_would() -> None:
    """Inputs are scaled by batch, so that a batch moves them by a rounding: near, and not more."""
    _, packed = two_of("qwen2", int8=True)
    jobs = [job_for(packed, text, [0]) for text in TEXTS]
    for job, drafts in zip(jobs, written_by(packed, jobs, SHORT), strict=True):
        ids = [*job.prompt, *drafts.drafts[0].token_ids, packed.template.eos, packed.template.emb]
        again = last_states(packed, [ids])[0]
        state = drafts.drafts[0].state
        assert float(state @ again / np.linalg.norm(state) / np.linalg.norm(again)) > 0.97


@pytest.mark.skipif(not has_kernel(Int8Weights, torch.bfloat16), reason="this machine has no such kernel")
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2"])
def test_a_model_with_weights_in_8_bits_gives_nearly_the_same_for_few_rows_and_many(
    architecture: str,
) -> None:
    model, tokenizer = tiny_model(architecture)
    small = tiny_model(architecture)[0].bfloat16()
    lay_out(small, int8=True)
    kinds = {type(module) for module in small.modules()}
    assert Int8Weights in kinds
    assert Linear not in kinds
    local = assemble(architecture, small, tokenizer)
    assert local.precision.format == "int8, computing in bfloat16"
    with torch.inference_mode():
        for rows in (1, 3, 40):
            ids = torch.arange(5, 5 + rows)[:, None]
            exact, found = model(input_ids=ids).logits, small(input_ids=ids).logits.float()
            assert float((found - exact).norm() / exact.norm()) < 0.05


def test_what_only_writes_has_weights_in_8_bits_where_that_is_fastest(tmp_path: Path) -> None:
    if has_bfloat16() and has_kernel(Int8Weights, torch.bfloat16):
        thinker = LocalThinker(saved(tmp_path), device="cpu")
        assert thinker.precision.format == "int8, computing in bfloat16"
        assert dtype_named("fastest", "cpu", writes=True) == (torch.bfloat16, True)
        assert dtype_named("fastest", "cpu") == (torch.bfloat16, False)
    assert dtype_named("bfloat16", "cpu", writes=True) == (torch.bfloat16, False)
    assert dtype_named("int8", "cpu", writes=True) == (torch.float32, True)


def saved(folder: Path) -> Path:
    model, tokenizer = tiny_model("llama")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", ["float32", "int8", "bfloat16"])
def test_a_checkpoint_is_packed_as_it_is_loaded(tmp_path: Path, dtype: str) -> None:
    local = load_model(saved(tmp_path), LoadOptions(device="cpu", dtype=dtype))
    kinds = {type(module) for module in local.model.modules()}
    if dtype == "int8":
        assert Int8Linear in kinds
    elif can_pack(local.model):
        assert PackedLinear in kinds
        assert Linear not in kinds
    assert local.precision.quantization == ("int8" if dtype == "int8" else None)
    model, tokenizer = tiny_model("llama")
    expected = documents(assemble("plain", model, tokenizer))
    bound = {"float32": TOLERANCE, "int8": 0.2, "bfloat16": 0.1}[dtype]
    assert gap(documents(local), expected) < bound


def test_8_bits_are_a_precision_of_their_own_for_the_cache(tmp_path: Path) -> None:
    """The same document space, and vectors that are not mixed up."""
    folder = saved(tmp_path)
    full, small = (
        ThinkingEmbedder.from_pretrained(folder, device="cpu", dtype=dtype, cache=False)
        for dtype in ("float32", "int8")
    )
    assert full.space == small.space
    assert full.backend.encoder_identity != small.backend.encoder_identity


def test_what_cannot_be_packed_stays_as_it_is() -> None:
    double, half = tiny_model("llama")[0].double(), tiny_model("llama")[0].half()
    for model in (double, half):
        assert not can_pack(model)
        before = [type(module) for module in model.modules()]
        pack(model)
        assert [type(module) for module in model.modules()] == before


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A processor that has the named kernels only."""

    def only(*names: tuple[type, torch.dtype]) -> None:
        def answer(kind: type, dtype: torch.dtype = torch.float32) -> bool:
            return (kind, dtype) in names

        monkeypatch.setattr(weights, "has_kernel", answer)
        weights._warn_once.cache_clear()

    return only


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "fastest"])
def test_a_processor_without_kernels_computes_as_torch_does_and_says_so_once(
    tmp_path: Path, dtype: str, processor: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    processor()
    if dtype == "fastest":
        assert fastest(width=64, rows=8) in ("float32", "bfloat16")
    with caplog.at_level(logging.WARNING, "o1_retriever"):
        for _ in range(2):
            local = load_model(saved(tmp_path), LoadOptions(device="cpu", dtype=dtype))
    kinds = {type(module) for module in local.model.modules()}
    assert Linear in kinds
    assert not kinds & {PackedLinear, Int8Linear}
    assert local.precision.quantization is None
    assert np.isfinite(documents(local)).all()
    told = [line for line in caplog.messages if "no fast kernels" in line]
    assert len(told) == (1 if platform.machine() in ("x86_64", "AMD64") or dtype == "int8" else 0)


def test_the_fastest_precision_is_never_one_without_a_kernel(processor: Callable[..., None]) -> None:
    processor((PackedLinear, torch.float32))
    assert fastest(width=64, rows=8) != "int8"


def test_a_kernel_is_tried_and_not_assumed() -> None:
    class Broken(PackedLinear):
        """A layer whose kernel this processor lacks."""

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            """Raises what torch raises."""
            raise RuntimeError("bf16 path needs the cpu support avx512bw")

    assert not has_kernel(Broken)
    assert has_kernel(Int8Linear) or not hasattr(torch.ops.quantized, "linear_dynamic")


OLDER = """
import logging, sys
logging.basicConfig(format="%(message)s")
import torch
from o1_retriever.engine.weights import PackedLinear, has_kernel
from o1_retriever.engine.passes import last_states
from o1_retriever.engine.load import LoadOptions, load_model
for dtype in ("bfloat16", "bfloat16", "int8", "fastest"):
    local = load_model(sys.argv[1], LoadOptions(device="cpu", dtype=dtype))
    assert abs(last_states(local, [[1, 2, 3]])).max() > 0, dtype
print("packs bfloat16:", has_kernel(PackedLinear, torch.bfloat16))
"""


@packable
def test_a_processor_without_avx_512_loads_every_precision(tmp_path: Path) -> None:
    """A process of its own, in which torch and oneDNN see no more than AVX2."""
    older = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    done = subprocess.run(
        [sys.executable, "-c", OLDER, str(saved(tmp_path))],
        env={**os.environ, **older, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    assert "packs bfloat16: False" in done.stdout
    assert done.stderr.count("no fast kernels for bfloat16") == 1


class Scaled(Linear):
    """A layer that does more than its product, as adapters do."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Twice the product."""
        return 2 * super().forward(states)


def test_layers_of_another_kind_are_left_alone() -> None:
    model: Any = tiny_model("llama")[0]
    layer = model.model.layers[0].mlp
    layer.up_proj = Scaled(layer.up_proj.in_features, layer.up_proj.out_features)
    pack(model)
    assert type(layer.up_proj) is Scaled


def test_the_fastest_precision_is_one_that_a_checkpoint_can_be_loaded_in(tmp_path: Path) -> None:
    assert fastest(width=64, rows=8) in ("float32", "bfloat16", "int8")
    local = load_model(saved(tmp_path), LoadOptions(device="cpu", dtype="fastest"))
    assert np.isfinite(documents(local)).all()


@pytest.mark.parametrize("int8", [False, True])
def test_a_packed_model_refuses_to_be_saved_without_its_weights(tmp_path: Path, int8: bool) -> None:
    model, _ = tiny_model("qwen2")
    pack(model, int8=int8)
    if not any(isinstance(module, PackedLinear | Int8Linear) for module in model.modules()):
        pytest.skip("this machine packs nothing")
    with pytest.raises(ModelError, match="cannot be saved"):
        model.save_pretrained(tmp_path)
