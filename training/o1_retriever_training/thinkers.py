"""Save a trained thinker: its adapter alone where it has one, so that the base is not copied."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from o1_retriever.thinkers.config import ThinkerConfig

_CHAT = "chat_template.jinja"


def save_thinker(folder: Path, model: Any, tokenizer: Any, config: ThinkerConfig, *, base: str) -> Path:
    """Write what `LocalThinker(folder)` loads, and return the folder.

    Of a `PeftModel` these are its low-rank matrices in bfloat16, and `base`, the name of what they lie upon;
    of another model its weights and its tokenizer. The chat template and our config stand beside both.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if hasattr(model, "peft_config"):
        _save_adapter(folder, model, base)
        (folder / _CHAT).write_text(tokenizer.chat_template, encoding="utf-8")
    else:
        with _using_its_cache(model.config):
            model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    config.save(folder)
    return folder


def _save_adapter(folder: Path, model: Any, base: str) -> None:
    from peft import get_peft_model_state_dict

    matrices = get_peft_model_state_dict(model)
    half = {name: value.detach().to("cpu", torch.bfloat16).contiguous() for name, value in matrices.items()}
    weights = folder / "adapter_model.safetensors"
    save_file(half, weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # the library lets nobody else read it
    (settings,) = model.peft_config.values()
    before = settings.base_model_name_or_path, settings.inference_mode
    settings.base_model_name_or_path, settings.inference_mode = base, True
    try:
        settings.save_pretrained(str(folder))
    finally:
        settings.base_model_name_or_path, settings.inference_mode = before


@contextlib.contextmanager
def _using_its_cache(config: Any) -> Any:
    """Training turns the cache off, which whoever loads the model wants."""
    config.use_cache = True
    try:
        yield
    finally:
        config.use_cache = False
