"""Low-rank adapters: small files beside a base model, added to its weights when it is loaded."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from o1_retriever.engine.checkpoint import first_line
from o1_retriever.errors import CheckpointError, require

if TYPE_CHECKING:
    import torch

ADAPTER = "adapter_config.json"


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and not a model."""
    return (folder / ADAPTER).is_file() and not (folder / "config.json").is_file()


def base_of(folder: Path) -> str:
    """The base that an adapter's config names: a folder or a Hub id."""
    try:
        settings = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
        base = settings["base_model_name_or_path"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        base = None
    if not isinstance(base, str) or not base:
        raise CheckpointError(
            f"{folder / 'adapter_config.json'} names no base; expected base_model_name_or_path, a folder or "
            "a Hub id.",
            hint="Pass it: --base FOLDER or --base user/name.",
        )
    return base


def with_adapter(model: Any, folder: Path) -> Any:
    """A base with an adapter's changes added to its weights. Raises `CheckpointError` for a misfit."""
    import torch

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
    import torch
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
