"""The shape of a model: counted on a model without memory, so that no weights are read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from o1_retriever.engine.template import MARKERS, Layout
from o1_retriever.errors import ModelNotFoundError, SettingsError
from o1_retriever_training.joint.recipe_changes import looks_local
from o1_retriever_training.joint.recipe_parts import ModelSection

_QWEN = {"model_type": "qwen2", "max_position_embeddings": 131072, "tokens": 151665}
_MISTRAL = {
    "model_type": "mistral",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
}


def _llama(vocabulary: int, shape: str, positions: int) -> dict[str, Any]:
    return {"model_type": "llama", "tokens": vocabulary, "max_position_embeddings": positions} | _sizes(
        shape, vocabulary
    )


def _sizes(shape: str, vocabulary: int, *, tied: bool = False) -> dict[str, Any]:
    """Width, layers, heads, heads of keys and values, and width of the inner layer."""
    names = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "intermediate_size",
    )
    found = dict(zip(names, map(int, shape.split()), strict=True))
    return found | {"vocab_size": vocabulary, "tie_word_embeddings": tied}


# The paper's backbones, so that their cost can be known before anything is downloaded. `tokens` is how many
# their tokenizers know: the tables of Qwen2.5 have rows to spare.
_KNOWN: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-0.5B": _QWEN | _sizes("896 24 14 2 4864", 151936, tied=True),
    "Qwen/Qwen2.5-1.5B": _QWEN | _sizes("1536 28 12 2 8960", 151936, tied=True),
    "Qwen/Qwen2.5-3B": _QWEN | _sizes("2048 36 16 2 11008", 151936, tied=True),
    "Qwen/Qwen2.5-7B": _QWEN | _sizes("3584 28 28 4 18944", 152064),
    "meta-llama/Llama-3.1-8B": _llama(128256, "4096 32 32 8 14336", 131072),
    "meta-llama/Llama-2-7b-hf": _llama(32000, "4096 32 32 32 11008", 4096),
    "mistralai/Mistral-7B-v0.1": _MISTRAL | {"vocab_size": 32000, "tokens": 32000},
    "mistralai/Mistral-7B-v0.3": _MISTRAL | {"vocab_size": 32768, "tokens": 32768},
}


@dataclass(frozen=True, slots=True)
class LinearLayer:
    """A matrix product: its name in its block, and its widths."""

    name: str
    inputs: int
    outputs: int

    @property
    def parameters(self) -> int:
        """Weights, without a bias."""
        return self.inputs * self.outputs

    def is_any_of(self, names: Sequence[str]) -> bool:
        """Whether it goes by one of these names, which may leave out the first parts of its own."""
        return any(f".{self.name}".endswith(f".{name}") for name in names)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a model consists of. `head` has the matrix products that make logits, `linear` all before them."""

    parameters: int
    layers: int
    width: int
    vocabulary: int
    heads: int
    query_width: int  # of all heads together
    inner: int
    gated: bool
    attention_dropout: bool
    linear: tuple[LinearLayer, ...]
    head: tuple[LinearLayer, ...]
    added: int  # markers that the base lacks
    known: bool  # from the table: nobody has looked at the model itself

    @cached_property
    def block(self) -> tuple[LinearLayer, ...]:
        """The matrix products of one layer."""
        return self.linear[: max(1, len(self.linear) // self.layers)]

    @property
    def linear_parameters(self) -> int:
        """Weights of all matrix products before the head."""
        return sum(layer.parameters for layer in self.linear)

    def adapted(self, model: ModelSection) -> list[LinearLayer]:
        """The layers that get low-rank matrices."""
        return [layer for layer in (*self.linear, *self.head) if layer.is_any_of(model.lora.targets)]

    def trained(self, model: ModelSection) -> int:
        """How many numbers the optimizer moves: with LoRA the matrices and the rows of the markers.

        Raises `SettingsError` when LoRA would adapt nothing.
        """
        if model.tuning == "full":
            return self.parameters
        rank, adapted = model.lora.rank, self.adapted(model)
        if not adapted:
            names = {layer.name.rpartition(".")[2] for layer in self.linear}
            raise SettingsError(
                f"model.lora.targets is {list(model.lora.targets)}; {model.base} has none of these.",
                hint=f"Its linear layers are {', '.join(sorted(names))}.",
            )
        matrices = sum(rank * (layer.inputs + layer.outputs) for layer in adapted)
        return matrices + len(MARKERS[model.layout]) * self.width


def shape_of(model: ModelSection) -> Shape:
    """The shape of a recipe's base with its markers added.

    Raises `ModelNotFoundError` when the base is neither here, nor well known, nor to be had from the Hub.
    """
    import torch
    from transformers import AutoModelForCausalLM

    known = None if looks_local(model.base) else _KNOWN.get(model.base)
    config, missing, tokens = _config(model.base, model.layout, known)
    with torch.device("meta"):
        empty: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
        if tokens + missing > empty.get_input_embeddings().num_embeddings:
            empty.resize_token_embeddings(tokens + missing, mean_resizing=False)
    return _measure(empty, missing, known is not None)


def _config(base: str, layout: Layout, known: dict[str, Any] | None) -> tuple[Any, int, int]:
    """The config, how many markers the tokenizer lacks, and how many tokens it has."""
    from transformers import AutoConfig, AutoTokenizer

    if known is not None:
        fields = {name: value for name, value in known.items() if name not in ("model_type", "tokens")}
        return AutoConfig.for_model(known["model_type"], **fields), len(MARKERS[layout]), known["tokens"]
    try:
        config = AutoConfig.from_pretrained(base)
        tokenizer = AutoTokenizer.from_pretrained(base)
    except (OSError, ValueError, KeyError) as error:
        said = str(error).strip().splitlines()[0]
        raise ModelNotFoundError(
            f"The shape of model.base {base!r} cannot be known: {said}",
            hint="Give a folder with config.json and a tokenizer, a Hub id while the Hub can be reached, "
            f"or one of {', '.join(_KNOWN)}.",
        ) from error
    vocabulary = tokenizer.get_vocab()
    missing = sum(marker not in vocabulary for marker in MARKERS[layout])
    return config, missing, len(tokenizer)


def _measure(empty: Any, missing: int, known: bool) -> Shape:
    from torch import nn

    text = empty.config.get_text_config()
    body = {id(part) for part in empty.base_model.modules()}
    linear: list[LinearLayer] = []
    head: list[LinearLayer] = []
    for name, part in empty.named_modules():
        if isinstance(part, nn.Linear):
            kind = linear if id(part) in body else head
            kind.append(LinearLayer(name, part.in_features, part.out_features))
    heads = text.num_attention_heads
    dropouts = (getattr(text, name, 0.0) for name in ("attention_dropout", "attention_probs_dropout_prob"))
    head_width = getattr(text, "head_dim", None) or text.hidden_size // heads
    inner = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    return Shape(
        parameters=_count(empty.parameters()),
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        vocabulary=empty.get_input_embeddings().num_embeddings,
        heads=heads,
        query_width=heads * head_width,
        inner=inner,
        gated=any(layer.name.endswith(("gate_proj", "up_proj")) for layer in linear),
        attention_dropout=any(dropouts),
        linear=tuple(linear),
        head=tuple(head),
        added=missing,
        known=known,
    )


def _count(parameters: Iterable[Any]) -> int:
    seen = {id(parameter): math.prod(parameter.shape) for parameter in parameters}
    return sum(seen.values())
