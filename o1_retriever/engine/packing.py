"""Weights laid out once for the processor's matrix kernels.

torch's linear layers read weights row by row and leave the product to MKL, which on many processors uses half
of their vector units. oneDNN, which torch carries as well, wants the weights in blocks: laid out so once at
loading, products are about twice as fast (`python -m benchmarks.speed roofline` shows both rates).
"""

from __future__ import annotations

import platform
import time
import warnings
from typing import Any

import torch

from o1_retriever.errors import ModelError

# The layout depends little on the rows of a batch; it is made for this many.
_ROWS = 64


class _Prepared(torch.nn.Module):
    """A layer that can be run and nothing else."""

    def state_dict(self, *_args: Any, **_kwargs: Any) -> Any:
        """Raises `ModelError`: without it, the weights would be missing from what is saved, silently."""
        raise ModelError(
            "The model's weights are laid out for this processor and cannot be saved.",
            hint="Save the model as transformers or sentence-transformers loads it.",
        )


class PackedLinear(_Prepared):
    """A linear layer whose weights are laid out for oneDNN; it can be run and nothing else."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        # Not a parameter: it has no strides, and can neither be moved nor saved.
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """The layer's product; states (..., in) give (..., out)."""
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            states, self._packed, self.bias, "none", [], ""
        )
        return result


class Int8Linear(_Prepared):
    """A linear layer in 8 bits: weights scaled by output, inputs by batch as they come."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach().float()
        scales = weight.abs().amax(1).clamp(min=1e-12).double() / 127
        zeros = torch.zeros(len(scales), dtype=torch.long)
        with warnings.catch_warnings():
            # torch means to move such tensors to another package; until then this one has the kernels.
            warnings.filterwarnings("ignore", message=".*quantized tensor creation.*")
            quantized = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
        bias = None if linear.bias is None else linear.bias.detach().float()
        self._packed = torch.ops.quantized.linear_prepack(quantized, bias)
        # Without the instructions for it, sums of full 8-bit products overflow.
        self._reduce = not torch.cpu._is_vnni_supported()

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """The layer's product; states (..., in) give (..., out)."""
        result: torch.Tensor = torch.ops.quantized.linear_dynamic(states, self._packed, self._reduce)
        return result


def can_pack(model: Any) -> bool:
    """Whether this machine and this torch have the kernels, and the model is one they compute."""
    return (
        platform.machine() in ("x86_64", "AMD64")
        and model.device.type == "cpu"
        and model.dtype in (torch.float32, torch.bfloat16)
        and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )


def pack(model: Any, *, int8: bool = False) -> None:
    """Replace a model's linear layers by packed ones, in place, where the machine can; `int8` quantises them.

    Layers that are quantised already stay as they are.
    """
    kind: type[PackedLinear | Int8Linear] = Int8Linear if int8 else PackedLinear
    if not int8 and not can_pack(model):
        return
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is torch.nn.Linear:
                setattr(parent, name, kind(child))


@torch.inference_mode()
def fastest(*, width: int = 768, rows: int = 96) -> str:
    """The precision in which this processor multiplies fastest, tried on one layer.

    "bfloat16" before "int8" where both are faster than "float32": it moves vectors a hundred times less.
    """
    layer, states = torch.nn.Linear(width, width, bias=False), torch.randn(rows, width)
    plain = _seconds(PackedLinear(layer), states)
    if _seconds(PackedLinear(layer.bfloat16()), states.bfloat16()) < _WORTH_IT * plain:
        return "bfloat16"
    return "int8" if _seconds(Int8Linear(layer), states) < _WORTH_IT * plain else "float32"


_WORTH_IT = 0.8


def _seconds(layer: torch.nn.Module, states: torch.Tensor, *, times: int = 9) -> float:
    layer(states)
    lowest = float("inf")
    for _ in range(times):
        started = time.perf_counter()
        layer(states)
        lowest = min(lowest, time.perf_counter() - started)
    return lowest
