"""Which device is taken where none is named, and what the engine asks of one that is not here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from o1_retriever import ThinkingEmbedder, ThoughtSettings
from o1_retriever.engine.weights import device_named, dtype_named
from o1_retriever.errors import SettingsError
from tests.support.tiny import tiny_model


@pytest.mark.parametrize(
    ("cuda", "mps", "expected", "in_4bit"),
    [
        (True, True, "cuda", "cuda"),
        (True, False, "cuda", "cuda"),
        (False, True, "mps", "cpu"),
        (False, False, "cpu", "cpu"),
    ],
)
def test_cuda_then_mps_then_the_processor(
    cuda: bool, mps: bool, expected: str, in_4bit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert device_named(None) == expected
    assert device_named(None, in_4bit=True) == in_4bit
    for kind, there in (("cuda", cuda), ("mps", mps)):
        if there:
            assert device_named(kind) == kind
        else:
            with pytest.raises(SettingsError, match=f"there is no {kind.upper()} device here"):
                device_named(kind)


def test_number_formats_of_apples_gpus() -> None:
    assert dtype_named("auto", "mps") == (torch.float32, False)
    assert dtype_named("float16", "mps") == (torch.float16, False)
    # What a thinker is loaded with where nothing is said: only a processor has to try what is fastest.
    assert dtype_named("fastest", "mps") == dtype_named("auto", "mps")
    assert dtype_named("fastest", "cuda:1") == dtype_named("auto", "cuda:1")
    with pytest.raises(SettingsError, match="'int8' on a GPU"):
        dtype_named("int8", "mps")


class NoFloat64(TorchDispatchMode):
    """Apple's GPUs have no float64: whoever makes a tensor of it fails."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype == torch.float64:
            raise TypeError(f"{function} made a tensor of float64")
        return result


def test_thinking_and_embedding_need_no_float64_beside_the_draws() -> None:
    # The draws themselves are made on the processor for such a device; the likeliest token needs none.
    settings = ThoughtSettings(n_thoughts=2, temperature=0, max_new_tokens=8, budget_ms=60_000)
    embedder = ThinkingEmbedder.from_model(*tiny_model("llama"), settings=settings, cache=False)
    expected = embedder.encode_queries(["why?", "what is dew?"])
    with NoFloat64():
        found = embedder.encode_queries(["why?", "what is dew?"])
        embedder.encode_documents(["dew", "a longer text about dew"])
    assert abs(found - expected).max() < 1e-6
    with NoFloat64(), pytest.raises(TypeError, match="float64"):
        embedder.encode_queries(["why?"], settings=settings.with_changes(temperature=1.0))
