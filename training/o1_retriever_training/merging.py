"""From an adapter beside its base to a plain causal language model: after training, and from a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from o1_retriever.engine.adapters import base_of, with_adapter
from o1_retriever.engine.checkpoint import find_folder
from o1_retriever.engine.load import LoadOptions, load_causal_lm, read_template
from o1_retriever.engine.template import CONFIG_NAME, TemplateConfig
from o1_retriever.engine.weights import quieten_bitsandbytes

QUANTISING = "Quantising to NF4"


def merge_adapter(
    folder: Path, *, base: str | None = None, quantised: bool = False, dtype: str = "auto"
) -> tuple[Any, Any, TemplateConfig]:
    """The base with the adapter's changes added to its weights: what `save_embedder` takes.

    These are a plain causal language model, its tokenizer and its template config.

    `quantised` is for QLoRA: the base is quantised to NF4 and back first, because those rounded weights are
    what the adapter was trained on. Sums are made in float32 and then stored as `dtype`; "auto" is the type
    that the base is stored in. Raises `ModelNotFoundError` and `CheckpointError`.
    """
    import torch

    quieten_bitsandbytes()  # which peft imports
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
    plain = with_adapter(model, folder).cpu().to(getattr(torch, stored)).eval()
    plain.config.dtype = getattr(torch, stored)
    config = read_template(folder if (folder / CONFIG_NAME).is_file() else found, tokenizer)
    return plain, tokenizer, config


def stored_dtype(folder: Path) -> str:
    """The type that a checkpoint's weights are stored in, float32 where its config names none of ours."""
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    name = values.get("dtype") or values.get("torch_dtype")
    return name if name in ("float32", "bfloat16", "float16") else "float32"
