"""Where a model computes and how precisely."""

from __future__ import annotations

from typing import Any

import torch

from o1_retriever.engine.packing import Int8Linear, fastest
from o1_retriever.errors import SettingsError
from o1_retriever.extras import require
from o1_retriever.vectors import Precision

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# For a processor only; int8 is quantised from float32 when the weights are there.
_FOR_CPU = ("int8", "fastest")


def device_named(name: str | None) -> str:
    """A device to load to; None takes CUDA when there is one."""
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError as error:
        raise SettingsError(f"device is {name!r}; expected cpu, cuda or cuda:N.") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise SettingsError(f"device is {name!r} and there is no CUDA device here; expected cpu.")
    return name


def dtype_named(name: str, device: str) -> tuple[torch.dtype, bool]:
    """The type that weights are loaded as, and whether they are quantised to 8 bits then."""
    on_gpu = device.startswith("cuda")
    if name == "auto":
        if not on_gpu:
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
        quantization = str(
            values.get("bnb_4bit_quant_type" if values.get("load_in_4bit") else "quant_method")
        )
    elif any(isinstance(module, Int8Linear) for module in model.modules()):
        quantization = "int8"
    return Precision(
        dtype=str(model.dtype).removeprefix("torch."), quantization=quantization, device=model.device.type
    )


def nf4_config(dtype: torch.dtype, *, purpose: str = "Loading in 4 bits") -> Any:
    """How weights are quantised to 4 bits, everywhere alike: NF4 with double quantisation.

    They compute in `dtype`. Raises `MissingExtraError`, with the `purpose`, without the `4bit` extra.
    """
    require("bitsandbytes", extra="4bit", purpose=purpose)
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


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
