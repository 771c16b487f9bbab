"""Weights: in which type, on which device, quantised how, and laid out for the processor's matrix kernels.

torch's linear layers read weights row by row and leave the product to MKL, which on many processors uses half
of their vector units. oneDNN, which torch carries as well, wants the weights in blocks: laid out so once at
loading, products are about twice as fast (`python -m benchmarks.speed roofline` shows both rates).
"""

from __future__ import annotations

import functools
import logging
import platform
import timeit
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from o1_retriever.errors import ModelError, SettingsError
from o1_retriever.extras import require
from o1_retriever.vectors import Precision

logger = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# For a processor only; int8 is quantised from float32 when the weights are there.
_FOR_CPU = ("int8", "fastest")
# The layout depends little on the rows of a batch; it is made for this many.
_ROWS = 64


class _Prepared(torch.nn.Module):
    """A linear layer that can be run and nothing else."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def state_dict(self, *_args: Any, **_kwargs: Any) -> Any:
        """Raises `ModelError`: without it, the weights would be missing from what is saved, silently."""
        raise ModelError(
            "The model's weights are laid out for this processor and cannot be saved.",
            hint="Save the model as transformers or sentence-transformers loads it.",
        )


class PackedLinear(_Prepared):
    """A linear layer whose weights are laid out for oneDNN; it can be run and nothing else."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__(linear)
        self.bias = linear.bias
        # Not a parameter: it has no strides, and can neither be moved nor saved.
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS)

    def forward(self, states: torch.Tensor, then: tuple[str, str] = ("none", "")) -> torch.Tensor:
        """The layer's product; states (..., in) give (..., out). `then` is oneDNN's name of what follows."""
        name, algorithm = then
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            states, self._packed, self.bias, name, [], algorithm
        )
        return result

    def joined(self, states: torch.Tensor, other: torch.Tensor, how: str) -> torch.Tensor:
        """The product, to which `other` is added ("add") or by which it is multiplied ("mul")."""
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            states, other, self._packed, self.bias, how
        )
        return result


class Int8Linear(_Prepared):
    """A linear layer in 8 bits: weights scaled by output, inputs by batch as they come."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__(linear)
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
        self._reduce = not _has("vnni")

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """The layer's product; states (..., in) give (..., out)."""
        result: torch.Tensor = torch.ops.quantized.linear_dynamic(states, self._packed, self._reduce)
        return result


@dataclass(frozen=True, slots=True)
class _Activation:
    """A function, and what oneDNN calls it."""

    function: Callable[[torch.Tensor], torch.Tensor]
    then: tuple[str, str]


# By transformers' names.
ACTIVATIONS = {
    "silu": _Activation(functional.silu, ("swish", "")),
    "gelu": _Activation(functional.gelu, ("gelu", "none")),
    "gelu_pytorch_tanh": _Activation(
        functools.partial(functional.gelu, approximate="tanh"), ("gelu", "tanh")
    ),
}


def activated(layer: Any, states: torch.Tensor, activation: str) -> torch.Tensor:
    """The product of a layer and what the activation makes of it: one kernel where there is one for both."""
    known = ACTIVATIONS[activation]
    if type(layer) is PackedLinear:
        return layer.forward(states, known.then)
    return known.function(layer(states))


def plus(layer: Any, states: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The product of a layer and the sum with other states (rows, out)."""
    if type(layer) is PackedLinear:
        return layer.joined(states, other, "add")
    product: torch.Tensor = layer(states)
    return product.add_(other)


def times(layer: Any, states: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The product of a layer, times other states (rows, out)."""
    if type(layer) is PackedLinear:
        return layer.joined(states, other, "mul")
    product: torch.Tensor = layer(states)
    return product.mul_(other)


Kind = Callable[[torch.nn.Linear], torch.nn.Module]


def _has(instructions: str) -> bool:
    # Functions that torch does not promise: where one is missing, the safe way is taken.
    known = getattr(torch.cpu, f"_is_{instructions}_supported", None)
    return known is not None and bool(known())


def has_bfloat16() -> bool:
    """Whether this processor multiplies in bfloat16, and does not only emulate it."""
    return _has("avx512_bf16") or _has("amx_tile")


@functools.cache
def has_kernel(kind: Kind, dtype: torch.dtype = torch.float32) -> bool:
    """Whether this processor and this torch can run a kind of layer: tried once, on a small one.

    The kernels for bfloat16 need AVX-512 or newer, and some builds of torch have none of them.
    """
    layer, states = torch.nn.Linear(16, 16, dtype=dtype), torch.ones(2, 16, dtype=dtype)
    try:
        with torch.inference_mode():
            kind(layer)(states)
    except (AttributeError, NotImplementedError, RuntimeError) as error:
        logger.debug("No kernel for %s in %s: %s", kind, dtype, error)
        return False
    return True


def is_for_kernels(model: Any) -> bool:
    """Whether a model is one that the packed kernels compute."""
    return (
        platform.machine() in ("x86_64", "AMD64")
        and model.device.type == "cpu"
        and model.dtype in (torch.float32, torch.bfloat16)
    )


def pack(model: Any, *, int8: bool = False) -> None:
    """Replace a model's linear layers by packed ones, in place, where the machine can; `int8` quantises them.

    Layers that are quantised already stay as they are. Where the machine cannot, torch's own layers stay, and
    a warning says so once.
    """
    kind: Kind = Int8Linear if int8 else PackedLinear
    if not int8 and not is_for_kernels(model):
        return
    if not has_kernel(kind, torch.float32 if int8 else model.dtype):
        _warn_once("int8" if int8 else str(model.dtype).removeprefix("torch."))
        return
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is torch.nn.Linear:
                setattr(parent, name, kind(child))


_INSTEAD = {
    "float32": "torch's own linear layers are used",
    "bfloat16": "torch's own linear layers are used, and float32 may be faster",
    "int8": "the model computes in float32",
}


@functools.cache
def _warn_once(dtype: str) -> None:
    logger.warning("This processor has no fast kernels for %s: %s.", dtype, _INSTEAD[dtype])


@torch.inference_mode()
def fastest(*, width: int = 768, rows: int = 96) -> str:
    """The precision in which this processor multiplies fastest, tried on one layer.

    "bfloat16" before "int8" where both are faster than "float32": it moves vectors a hundred times less.
    """
    layer, states = torch.nn.Linear(width, width, bias=False), torch.randn(rows, width)
    plain = _seconds(_prepared(layer), states)
    if _seconds(_prepared(layer.bfloat16()), states.bfloat16()) < _WORTH_IT * plain:
        return "bfloat16"
    if has_kernel(Int8Linear) and _seconds(Int8Linear(layer), states) < _WORTH_IT * plain:
        return "int8"
    return "float32"


def _prepared(layer: torch.nn.Linear) -> torch.nn.Module:
    """The layer as a loaded model would have it."""
    return PackedLinear(layer) if has_kernel(PackedLinear, layer.weight.dtype) else layer


_WORTH_IT = 0.8


def _seconds(layer: torch.nn.Module, states: torch.Tensor) -> float:
    layer(states)
    return min(timeit.repeat(lambda: layer(states), repeat=9, number=1))


def device_named(name: str | None, *, in_4bit: bool = False) -> str:
    """A device to load to; None takes CUDA when there is one, then Apple's MPS, then the processor.

    Layers of 4 bits (bitsandbytes) are not for MPS.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name is None:
        return next(
            (kind for kind, found in there.items() if found and not (in_4bit and kind == "mps")), "cpu"
        )
    try:
        kind = torch.device(name).type
    except RuntimeError as error:
        raise SettingsError(f"device is {name!r}; expected cpu, cuda, cuda:N or mps.") from error
    if not there.get(kind, True):
        raise SettingsError(f"device is {name!r} and there is no {kind.upper()} device here; expected cpu.")
    return name


def dtype_named(name: str, device: str) -> tuple[torch.dtype, bool]:
    """The type that weights are loaded as, and whether they are quantised to 8 bits then."""
    on_gpu = not device.startswith("cpu")
    if name == "auto":
        if not device.startswith("cuda"):
            return torch.float32, False
        return (torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16), False
    if name in _FOR_CPU:
        if on_gpu:
            raise SettingsError(
                f"dtype is {name!r} on a GPU; expected auto, float32, bfloat16 or float16 there.",
                hint="To save a GPU's memory pass load_in_4bit=True.",
            )
        name = fastest() if name == "fastest" else name
        return (torch.float32, True) if name == "int8" else (_DTYPES[name], False)
    if name not in _DTYPES:
        raise SettingsError(f"dtype is {name!r}; expected one of {['auto', *_DTYPES, *_FOR_CPU]}.")
    return _DTYPES[name], False


def precision_of(model: Any) -> Precision:
    """How a loaded model computes."""
    config = getattr(model.config, "quantization_config", None)
    quantization = None
    if config is not None:
        values = config if isinstance(config, dict) else config.to_dict()
        name = "bnb_4bit_quant_type" if values.get("load_in_4bit") else "quant_method"
        quantization = str(values.get(name))
    elif any(isinstance(module, Int8Linear) for module in model.modules()):
        quantization = "int8"
    return Precision(
        dtype=str(model.dtype).removeprefix("torch."), quantization=quantization, device=model.device.type
    )


def nf4_config(*, purpose: str = "Loading in 4 bits") -> Any:
    """How weights are quantised to 4 bits, everywhere alike: NF4, double quantisation, computed in bfloat16.

    Where the rest of the model has another type, `keep_float32` lets the quantised layers compute in that one
    after loading; what is written beside saved weights says bfloat16. Raises `MissingExtraError`, with the
    `purpose`, without the `4bit` extra.
    """
    require("bitsandbytes", extra="4bit", purpose=purpose)
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def quieten_bitsandbytes() -> None:
    """Keep back what bitsandbytes says on its import about a kernel for bfloat16 that it would download."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_no_missing_kernel)


def _is_no_missing_kernel(record: logging.LogRecord) -> bool:
    return "gemm_4bit_forward" not in str(record.msg)


def keep_float32(model: Any) -> None:
    """Let quantised layers compute in the type that the rest of the model has, float32 above all.

    A checkpoint that was saved quantised names a type of its own, which was right where it was made. On
    processors with AVX512-BF16, bitsandbytes computes 4-bit layers in bfloat16 whatever was asked for; the
    vectors of one checkpoint would then differ from machine to machine by a hundredth.
    """
    in_float32 = model.device.type == "cpu" and model.dtype == torch.float32
    for module in model.modules():
        if hasattr(module, "compute_type_is_set"):
            module.compute_dtype, module.compute_type_is_set = model.dtype, True
        if in_float32 and hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
