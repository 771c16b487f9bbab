"""From what was trained to a plain causal language model."""

from __future__ import annotations

from typing import Any

from torch import nn

from o1_retriever_training.joint.backbone import Backbone


def merged(backbone: Backbone) -> Any:
    """The language model with its low-rank matrices added to its weights; the backbone is used up.

    QLoRA's matrices were trained beside dequantised NF4 weights, so these are what they are added to: the
    model that is saved computes what the trained one did, and a new rounding to NF4 is another step.
    """
    if backbone.model is backbone.language_model:
        return backbone.language_model
    if getattr(backbone.language_model, "is_quantized", False):
        dequantise_adapted(backbone.model)
    return backbone.model.merge_and_unload()


def dequantise_adapted(model: Any) -> None:
    """Put floats in the place of a `PeftModel`'s NF4 weights, with their low-rank matrices added."""
    inner = model.get_base_model()
    for name, layer in list(inner.named_modules()):
        base = layer.base_layer if hasattr(layer, "lora_A") else layer
        if type(base).__name__ == "Linear4bit" and not name.endswith(".base_layer"):
            inner.set_submodule(name, _linear(base, None if layer is base else layer))
    inner.is_quantized = inner.is_loaded_in_4bit = False
    inner.hf_quantizer = None
    del inner.config.quantization_config


def _linear(base: Any, adapted: Any) -> nn.Linear:
    from bitsandbytes.functional import dequantize_4bit

    weight = dequantize_4bit(base.weight.data, base.weight.quant_state)
    if adapted is not None:
        (adapter,) = adapted.active_adapters
        weight = weight + adapted.get_delta_weight(adapter).to(weight.dtype)
    made = nn.Linear(base.in_features, base.out_features, bias=base.bias is not None, device=weight.device)
    made.weight = nn.Parameter(weight, requires_grad=False)
    if base.bias is not None:
        made.bias = nn.Parameter(base.bias.data, requires_grad=False)
    return made
