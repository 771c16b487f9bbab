"""Weights laid out once for the processor's matrix kernels.

torch's linear layers read weights row by row and leave the product to MKL, which on many processors uses half
of their vector units. oneDNN, which torch carries as well, wants the weights in blocks: laid out so once at
loading, products are about twice as fast (`python -m benchmarks.speed roofline` shows both rates).
"""

from __future__ import annotations

import platform
from typing import Any

import torch

# The layout depends little on the rows of a batch; it is made for this many.
_ROWS = 64


class PackedLinear(torch.nn.Module):
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


def pack(model: Any) -> None:
    """Replace a model's linear layers by packed ones, in place; quantised layers stay as they are."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is torch.nn.Linear:
                setattr(parent, name, PackedLinear(child))
