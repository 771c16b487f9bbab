"""Tiny random models and tokenizers of real architectures, built in memory."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    Gemma2Config,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from o1_retriever.engine.template import MARKERS, Layout

POSITIONS = 160
_SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": POSITIONS,
    # Wider than usual, so that a random model has opinions and its vectors differ.
    "initializer_range": 0.3,
}
_GROUPED = {**_SHAPE, "num_key_value_heads": 1}
CONFIGS: dict[str, Any] = {
    "llama": lambda n: LlamaConfig(vocab_size=n, **_GROUPED),
    "qwen2": lambda n: Qwen2Config(vocab_size=n, **_GROUPED),
    "qwen3": lambda n: Qwen3Config(vocab_size=n, head_dim=16, **_GROUPED),
    "mistral": lambda n: MistralConfig(vocab_size=n, sliding_window=None, **_GROUPED),
    "mistral-window": lambda n: MistralConfig(vocab_size=n, sliding_window=12, **_GROUPED),
    "gemma": lambda n: GemmaConfig(vocab_size=n, head_dim=16, **_GROUPED),
    "gemma2": lambda n: Gemma2Config(vocab_size=n, head_dim=16, sliding_window=12, **_GROUPED),
    "phi": lambda n: PhiConfig(vocab_size=n, **_SHAPE),
    "phi3": lambda n: Phi3Config(vocab_size=n, pad_token_id=None, **_GROUPED),
    "bert": lambda n: BertConfig(vocab_size=n, is_decoder=True, **_SHAPE),
}


def byte_tokenizer(layout: Layout | None = "paper") -> PreTrainedTokenizerFast:
    """One token a byte, plus the markers of a layout (None: none): every text survives a round trip.

    The pad token is the one that transformers adds to whatever it loads as a Qwen2 tokenizer.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _with_markers(tokenizer, layout, eos_token="</s>", pad_token="<|endoftext|>")


def letter_tokenizer(layout: Layout = "paper") -> PreTrainedTokenizerFast:
    """BERT's kind of tokenizer over single letters, with [SEP] and no eos."""
    letters = [chr(c) for c in range(33, 127)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    model = models.WordPiece(vocab={p: i for i, p in enumerate(pieces)}, unk_token="[UNK]")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    named = {"unk_token": "[UNK]", "pad_token": "[PAD]", "sep_token": "[SEP]", "cls_token": "[CLS]"}
    return _with_markers(tokenizer, layout, **named)


def _with_markers(tokenizer: Tokenizer, layout: Layout | None, **named: str) -> PreTrainedTokenizerFast:
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)
    if layout is None:
        return fast
    fast.add_special_tokens({"additional_special_tokens": list(MARKERS[layout])}) if _v4(fast) else (
        fast.add_special_tokens({"extra_special_tokens": list(MARKERS[layout])})
    )
    return fast


def _v4(fast: PreTrainedTokenizerFast) -> bool:
    return "additional_special_tokens" in getattr(fast, "SPECIAL_TOKENS_ATTRIBUTES", [])


def tiny_model(
    architecture: str, layout: Layout = "paper", *, seed: int = 0, stops: int = 12
) -> tuple[Any, Any]:
    """A random (model, tokenizer); `stops` ids of its vocabulary end a thought, so that lengths vary."""
    tokenizer = (letter_tokenizer if architecture == "bert" else byte_tokenizer)(layout)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        CONFIGS[architecture](len(tokenizer)), dtype=torch.float32
    ).eval()
    model.generation_config.eos_token_id = list(range(40, 40 + stops))
    return model, tokenizer
