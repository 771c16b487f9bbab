"""Merge an adapter into the base that it was trained on."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from o1_retriever.engine.checkpoint import find_folder, first_line
from o1_retriever.engine.precision import nf4_config
from o1_retriever.engine.template import CONFIG_NAME, TemplateConfig, detect_layout
from o1_retriever.errors import CheckpointError
from o1_retriever.extras import require

logger = logging.getLogger(__name__)

QUANTISING = "Quantising to NF4"
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Merged:
    """A plain causal language model with its tokenizer and template config, ready for `save_embedder`."""

    model: Any
    tokenizer: Any
    config: TemplateConfig


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
) -> Merged:
    """The base with the adapter's changes added to its weights.

    `quantised` is for QLoRA: the base is quantised to NF4 and back first, because those rounded weights are
    what the adapter was trained on. Sums are made in float32 and then stored as `dtype`; "auto" is the type
    that the base is stored in. Raises `ModelNotFoundError` and `CheckpointError`.
    """
    from transformers import AutoTokenizer

    require("peft", extra="train", purpose="Merging an adapter")
    found = find_folder(base or base_of(folder))
    stored = _stored_dtype(found, dtype)
    has_tokenizer = (folder / "tokenizer.json").is_file()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder if has_tokenizer else found)
        model = _load_nf4(found, stored) if quantised else _load(found)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"{found} could not be loaded: {first_line(error)}.") from error
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    merged = _with_adapter(model, folder).to(stored).eval()
    merged.config.dtype = stored
    return Merged(model=merged, tokenizer=tokenizer, config=_config(folder, found, tokenizer))


def _load(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)


def _load_nf4(folder: Path, stored: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    # Quantised from the type that it was trained in: another rounding first would choose other codes.
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=stored,
        use_safetensors=True,
        quantization_config=nf4_config(stored, purpose=QUANTISING),
        device_map=_place(),
    )
    model = model.dequantize(dtype=torch.float32).float().cpu()  # type: ignore[no-untyped-call]
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    for name in ("hf_quantizer", "quantization_method", "is_loaded_in_4bit", "is_quantized"):
        model.__dict__.pop(name, None)
    return model


def _place() -> dict[str, str]:
    import torch

    return {"": "cuda" if torch.cuda.is_available() else "cpu"}


def _with_adapter(model: Any, folder: Path) -> Any:
    from peft import PeftModel
    from safetensors import SafetensorError

    try:
        adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=False)
        return adapted.merge_and_unload(safe_merge=True)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise CheckpointError(
            f"The adapter in {folder} does not fit its base: {first_line(error)}.",
            hint="Pass the base that it was trained on: --base FOLDER or --base user/name.",
        ) from error


def _stored_dtype(base: Path, wanted: Dtype) -> Any:
    import torch

    if wanted != "auto":
        return getattr(torch, wanted)
    values = json.loads((base / "config.json").read_text(encoding="utf-8"))
    name = values.get("dtype") or values.get("torch_dtype") or "float32"
    return getattr(torch, name if name in ("float32", "bfloat16", "float16") else "float32")


def _config(folder: Path, base: Path, tokenizer: Any) -> TemplateConfig:
    for place in (folder, base):
        if (place / CONFIG_NAME).is_file():
            return TemplateConfig.from_file(place / CONFIG_NAME)
    return TemplateConfig(layout=detect_layout(tokenizer))
