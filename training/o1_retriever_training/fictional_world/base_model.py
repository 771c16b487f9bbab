"""The base model of the fictional world: a decoder of Llama's shape, tiny and random."""

from __future__ import annotations

from typing import TYPE_CHECKING

from o1_retriever_training.fictional_world.settings import WorldSettings

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

POSITIONS = 128


def base_model(tokenizer: PreTrainedTokenizerFast, settings: WorldSettings) -> LlamaForCausalLM:
    """A model that knows nothing yet, drawn from the seed; torch's own generator is left as it was."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.width,
        intermediate_size=4 * settings.width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return LlamaForCausalLM(config)
