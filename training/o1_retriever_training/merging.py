"""From an adapter beside its base to a plain causal language model: after training, and from a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from o1_retriever.engine.checkpoint import find_folder, first_line
from o1_retriever.engine.load import LoadOptions, load_causal_lm
from o1_retriever.engine.template import CONFIG_NAME, TemplateConfig, detect_layout
from o1_retriever.engine.weights import quieten_bitsandbytes
from o1_retriever.errors import CheckpointError
from o1_retriever.extras import require

if TYPE_CHECKING:
    import torch

QUANTISING = "Quantising to NF4"
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


def base_of(folder: Path) -> str:
    """The base that an adapter's config names: a folder or a Hub id."""
    try:
        settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        base = settings["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        base = None
    if not isinstance(base, str) or not base:
        raise CheckpointError(
            f"{folder / 'adapter_config.json'} names no base; expected base_model_name_or_path, a folder or "
            "a Hub id.",
            hint="Pass it: --base FOLDER or --base user/name.",
        )
    return base


def merge_adapter(
    folder: Path, *, base: str | None = None, quantised: bool = False, dtype: Dtype = "auto"
) -> tuple[Any, Any, TemplateConfig]:
    """The base with the adapter's changes added to its weights: what `save_embedder` takes.

    These are a plain causal language model, its tokenizer and its template config.

    `quantised` is for QLoRA: the base is quantised to NF4 and back first, because those rounded weights are
    what the adapter was trained on. Sums are made in float32 and then stored as `dtype`; "auto" is the type
    that the base is stored in. Raises `ModelNotFoundError` and `CheckpointError`.
    """
    import torch

    quieten_bitsandbytes()  # which peft imports
    require("peft", extra="train", purpose="Merging an adapter")
    found = find_folder(base or base_of(folder))
    stored = stored_dtype(found) if dtype == "auto" else dtype
    # NF4 is made of the type that it was trained in: another rounding first would choose other codes.
    options = (
        LoadOptions(dtype=stored, load_in_4bit=True)
        if quantised
        else LoadOptions(device="cpu", dtype="float32")
    )
    own_tokenizer = folder if (folder / "tokenizer.json").is_file() else None
    loaded = load_causal_lm(found, options, tokenizer=own_tokenizer, purpose=QUANTISING)
    model, tokenizer = loaded.model, loaded.tokenizer
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    plain = _with_adapter(model, folder).cpu().to(getattr(torch, stored)).eval()
    plain.config.dtype = getattr(torch, stored)
    configs = [place / CONFIG_NAME for place in (folder, found) if (place / CONFIG_NAME).is_file()]
    config = (
        TemplateConfig.from_file(configs[0]) if configs else TemplateConfig(layout=detect_layout(tokenizer))
    )
    return plain, tokenizer, config


def _with_adapter(model: Any, folder: Path) -> Any:
    import torch
    from peft import PeftModel
    from safetensors import SafetensorError

    try:
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


def stored_dtype(folder: Path) -> str:
    """The type that a checkpoint's weights are stored in, float32 where its config names none of ours."""
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    name = values.get("dtype") or values.get("torch_dtype")
    return name if name in ("float32", "bfloat16", "float16") else "float32"
