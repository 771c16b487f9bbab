"""Random-weight models of the shapes that the speed figures are about, with a lossless tokenizer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config

from o1_retriever.engine.layers import lay_out
from o1_retriever.engine.load import LocalModel, assemble
from o1_retriever.engine.template import MARKERS


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The numbers of a Qwen2 model that decide its cost."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int = 8192
    tied: bool = True

    def config(self) -> Qwen2Config:
        """The shape as a configuration of transformers."""
        return Qwen2Config(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            intermediate_size=self.intermediate,
            max_position_embeddings=2048,
            tie_word_embeddings=self.tied,
        )


SHAPES = {
    "tiny": Shape(hidden=64, layers=2, heads=4, kv_heads=2, intermediate=128, vocabulary=1024),
    "16M": Shape(hidden=384, layers=6, heads=6, kv_heads=2, intermediate=1024, tied=False),
    "110M": Shape(hidden=576, layers=30, heads=9, kv_heads=3, intermediate=1536),
    # Qwen2.5-7B's published configuration.
    "7B": Shape(
        hidden=3584, layers=28, heads=28, kv_heads=4, intermediate=18944, vocabulary=152064, tied=False
    ),
}


# What transformers calls the padding of whatever it loads as a Qwen2 tokenizer.
_PAD = "<|endoftext|>"


def word_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """One token a word: what is decoded to text is tokenised to the same ids again.

    So both roads of a comparison work on sequences of the same length.
    """
    markers = ["</s>", _PAD, *MARKERS["paper"]]
    words = {marker: place for place, marker in enumerate(markers)}
    words.update({f"w{place}": place for place in range(len(markers), vocabulary)})
    tokenizer = Tokenizer(WordLevel(words, unk_token=_PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Sequence([])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token=_PAD)
    fast.add_special_tokens({"extra_special_tokens": list(MARKERS["paper"])})
    return fast


def random_model(
    name: str,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    packed: bool = True,
    quantization: str | None = None,
) -> LocalModel:
    """A model of a named shape that never ends a thought by itself, so that every thought has full length.

    `packed` prepares it as loading does; without, it is what transformers gives.
    """
    shape = SHAPES[name]
    torch.manual_seed(0)
    with torch.device(device):
        model: Any = AutoModelForCausalLM.from_config(shape.config(), dtype=dtype).eval()
    if packed:
        lay_out(model, int8=quantization == "int8")
    local = assemble(name, model, word_tokenizer(shape.vocabulary))
    return replace(local, stop_ids=())


def random_queries(count: int, vocabulary: int, *, words: tuple[int, int] = (8, 24)) -> list[str]:
    """Queries of different lengths, the same ones at every call."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(*words, (count,), generator=generator).tolist()
    return [
        " ".join(f"w{i}" for i in torch.randint(16, vocabulary, (length,), generator=generator).tolist())
        for length in lengths
    ]
