"""A tiny local thinker."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from o1_retriever.thinkers import ChatPrompt, LocalThinker
from tests.support.tiny import CONFIGS, byte_tokenizer

# The shapes of two families' templates: ChatML, and one that can switch a model's reasoning off (Qwen3).
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PROMPT = ChatPrompt(system="Think.", examples=(("Why is ice cold?", "Ice is frozen water."),))


def writer(architecture: str = "llama", template: str | None = CHATML, **options: Any) -> LocalThinker:
    """A random model of the architecture that writes bytes, prompted through a chat template."""
    tokenizer: PreTrainedTokenizerFast = byte_tokenizer(None)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    torch.manual_seed(0)
    config = CONFIGS[architecture](len(tokenizer))
    config.max_position_embeddings = 600
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    return LocalThinker(model, tokenizer, **{"prompt": PROMPT, **options})
