"""Weights: their type, device and quantisation, what adapters add, and a layout for matrix kernels.

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
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from o1_retriever.engine.checkpoint import first_line
from o1_retriever.errors import CheckpointError, ModelError, SettingsError, require
from o1_retriever.vectors import Precision

logger = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# For a processor only; int8 is quantised from float32 when the weights are there.
_FOR_CPU = ("int8", "fastest")
# The layout depends little on the rows of a batch; it is made for this many.
_ROWS = 64
# So many rows at most are multiplied by weights of 8 bits as they lie: the kernel takes them four at a time.
_FEW = 4


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

    def fuses(self, states: torch.Tensor) -> bool:
        """Whether what follows the product of these states is a part of its kernel."""
        return True

    def joined(self, states: torch.Tensor, other: torch.Tensor, how: str) -> torch.Tensor:
        """The product, to which `other` is added ("add") or by which it is multiplied ("mul")."""
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            states, other, self._packed, self.bias, how
        )
        return result


class Int8Weights(PackedLinear):
    """A bfloat16 layer whose weights are rounded to 8 bits, scaled by output; states stay as they are.

    A product of few rows costs the reading of its weights, and so they read 8 bits. For more rows there are
    the same weights in bfloat16, whose product costs no more then.
    """

    def __init__(self, linear: torch.nn.Linear) -> None:
        weight = linear.weight.detach().float()
        scales = (weight.abs().amax(1).clamp(min=1e-12) / 127).bfloat16()
        rounded = (weight / scales.float()[:, None]).round_().clamp_(-127, 127)
        rough = torch.nn.Linear(1, 1, bias=False)
        rough.in_features, rough.out_features = linear.in_features, linear.out_features
        rough.weight = torch.nn.Parameter((rounded * scales.float()[:, None]).bfloat16(), requires_grad=False)
        rough.bias = linear.bias
        super().__init__(rough)
        self._scales, self._rounded = scales, rounded.to(torch.int8)
        # The kernel reads whole vectors of inputs and blocks of outputs, and checks neither.
        fits = linear.in_features % 64 == 0 and linear.out_features % 16 == 0
        self._few = _FEW * linear.in_features if fits else 0

    def fuses(self, states: torch.Tensor) -> bool:
        """Whether what follows the product of these states is a part of its kernel."""
        return states.numel() > self._few

    def forward(self, states: torch.Tensor, then: tuple[str, str] = ("none", "")) -> torch.Tensor:
        """The layer's product; states (..., in) give (..., out). `then` only where it `fuses`."""
        if self.fuses(states):
            return super().forward(states, then)
        rows = states.reshape(-1, self.in_features).contiguous()
        product: torch.Tensor = torch.ops.aten._weight_int8pack_mm(rows, self._rounded, self._scales)
        if self.bias is not None:
            product = product + self.bias
        return product.view(*states.shape[:-1], self.out_features)


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
    if isinstance(layer, PackedLinear) and layer.fuses(states):
        return layer.forward(states, known.then)
    return known.function(layer(states))


def plus(layer: Any, states: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The product of a layer and the sum with other states (rows, out)."""
    if isinstance(layer, PackedLinear) and layer.fuses(states):
        return layer.joined(states, other, "add")
    product: torch.Tensor = layer(states)
    return product.add_(other)


def times(layer: Any, states: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The product of a layer, times other states (rows, out)."""
    if isinstance(layer, PackedLinear) and layer.fuses(states):
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
    layer, states = torch.nn.Linear(64, 64, dtype=dtype), torch.ones(2, 64, dtype=dtype)
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

    Of a float32 model weights and states become 8 bits then, of a bfloat16 model the weights alone.
    Layers that are quantised already stay as they are. Where the machine cannot, torch's own layers stay, and
    a warning says so once.
    """
    kind: Kind = PackedLinear
    if int8:
        kind = Int8Weights if model.dtype == torch.bfloat16 else Int8Linear
    if not int8 and not is_for_kernels(model):
        return
    if not has_kernel(kind, torch.float32 if kind is Int8Linear else model.dtype):
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


def fastest(*, width: int = 768, rows: int = 96) -> str:
    """The precision in which this processor multiplies fastest.

    "bfloat16" wherever it has the instructions and the kernels: it moves vectors a hundred times less than
    "int8", which is tried on one layer elsewhere, against "float32".
    """
    if has_bfloat16() and has_kernel(PackedLinear, torch.bfloat16):
        return "bfloat16"
    return "int8" if has_kernel(Int8Linear) and _int8_is_faster(width, rows) else "float32"


@functools.cache
@torch.inference_mode()
def _int8_is_faster(width: int, rows: int) -> bool:
    layer, states = torch.nn.Linear(width, width, bias=False), torch.randn(rows, width)
    plain, int8 = _prepared(layer), Int8Linear(layer)
    # In turns, so that what else the machine does meets both.
    times = [(_seconds(plain, states), _seconds(int8, states)) for _ in range(5)]
    return min(int8 for _, int8 in times) < _WORTH_IT * min(plain for plain, _ in times)


def _prepared(layer: torch.nn.Linear) -> torch.nn.Module:
    """The layer as a loaded model would have it."""
    return PackedLinear(layer) if has_kernel(PackedLinear, layer.weight.dtype) else layer


_WORTH_IT = 0.8


def _seconds(layer: torch.nn.Module, states: torch.Tensor) -> float:
    layer(states)
    return min(timeit.repeat(lambda: layer(states), repeat=5, number=1))


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


def dtype_named(name: str, device: str, *, writes: bool = False) -> tuple[torch.dtype, bool]:
    """The type that weights are loaded as, and whether they are quantised to 8 bits then.

    A model that only `writes` makes no vectors that could move, and is fastest with weights of 8 bits.
    """
    on_gpu = not device.startswith("cpu")
    if name == "auto" or (name == "fastest" and on_gpu):
        if not device.startswith("cuda"):
            return torch.float32, False
        return (torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16), False
    if name in _FOR_CPU:
        if on_gpu:
            raise SettingsError(
                f"dtype is {name!r} on a GPU; expected auto, float32, bfloat16 or float16 there.",
                hint="To save a GPU's memory pass load_in_4bit=True.",
            )
        if name == "fastest":
            name = fastest()
            if writes and name == "bfloat16" and has_kernel(Int8Weights, torch.bfloat16):
                return torch.bfloat16, True
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
    elif any(isinstance(module, Int8Linear | Int8Weights) for module in model.modules()):
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


def with_adapter(model: Any, folder: Path) -> Any:
    """A base with an adapter's changes added to its weights. Raises `CheckpointError` for a misfit."""
    require("peft", extra="local", purpose="An adapter")
    from peft import PeftModel
    from safetensors import SafetensorError

    try:
        with warnings.catch_warnings():  # peft asks transformers by a name that is going
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=False)
        return merged(adapted, dtype=torch.float32)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise CheckpointError(
            f"The adapter in {folder} does not fit its base: {first_line(error)}.",
            hint="Pass the base that it was trained on: --base FOLDER or --base user/name.",
        ) from error


def merged(model: Any, *, dtype: torch.dtype | None = None) -> Any:
    """The language model of a `PeftModel` with its low-rank matrices added to its weights; it is used up.

    QLoRA's matrices were trained beside dequantised NF4 weights, so these are what they are added to, in
    `dtype` (None: the type they had before): the model that is saved computes what the trained one did, and a
    new rounding to NF4 is another step. A model without an adapter comes back as it is. Raises `ValueError`
    for an adapter whose numbers are not finite.
    """
    if not hasattr(model, "merge_and_unload"):
        return model
    if getattr(model.get_base_model(), "is_quantized", False):
        _dequantise(model, dtype)
    return model.merge_and_unload(safe_merge=True)


def _dequantise(model: Any, dtype: torch.dtype | None) -> None:
    """Put floats in the place of a `PeftModel`'s NF4 weights, with their low-rank matrices added."""
    inner = model.get_base_model()
    for name, layer in list(inner.named_modules()):
        base = layer.base_layer if hasattr(layer, "lora_A") else layer
        if type(base).__name__ == "Linear4bit" and not name.endswith(".base_layer"):
            inner.set_submodule(name, _linear(base, None if layer is base else layer, dtype))
    for name in ("hf_quantizer", "quantization_method", "is_loaded_in_4bit", "is_quantized"):
        inner.__dict__.pop(name, None)
    del inner.config.quantization_config


def _linear(base: Any, adapted: Any, dtype: torch.dtype | None) -> Any:
    from bitsandbytes.functional import dequantize_4bit

    weight = dequantize_4bit(base.weight.data, base.weight.quant_state)
    dtype = dtype or weight.dtype
    weight = weight.float()
    if adapted is not None:
        (adapter,) = adapted.active_adapters
        weight = weight + adapted.get_delta_weight(adapter).float()
    if not weight.isfinite().all():
        raise ValueError("its numbers are not finite")
    plain = torch.nn.Linear(
        base.in_features, base.out_features, bias=base.bias is not None, device=weight.device
    )
    plain.weight = torch.nn.Parameter(weight.to(dtype), requires_grad=False)
    if base.bias is not None:
        plain.bias = torch.nn.Parameter(base.bias.data.to(dtype), requires_grad=False)
    return plain
