"""Chat templates that behave as those of well-known families, written anew, and a tokenizer for each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

# Words for the merges, so that tokens reach over the borders of messages as those of real models do.
WORDS = (
    "Why is ice cold? Ice is frozen water. How does a mirror fog up? user assistant system model "
    "Think of facts. Warm air meets cold glass and the water in it turns to drops.\n\n final "
    "analysis Current date: 2025-01-01 "
)


@dataclass(frozen=True)
class Family:
    """A template with its tokens: special ones, ordinary added ones, and what begins and ends a text."""

    template: str
    special: tuple[str, ...]
    eos: str
    added: tuple[str, ...] = ()
    bos: str | None = None
    ends: tuple[str, ...] = ()
    """What ends an assistant's words, where that is more than the end of a text."""


_CHATML = """\
{%- for m in messages -%}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor -%}"""
_NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
)
_TURNS = """\
{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"""

FAMILIES = {
    # A system message of its own where none is given.
    "smollm2": Family(
        "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful AI assistant.<|im_end|>\n"
        "{% endif %}" + _CHATML + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        special=("<|im_start|>", "<|im_end|>"),
        eos="<|im_end|>",
    ),
    # Reasons unless it is told not to; the reasoning of earlier turns is left out.
    "qwen3": Family(
        "{%- for m in messages -%}<|im_start|>{{ m.role }}\n"
        "{%- if m.role == 'assistant' and '</think>' in m.content %}\n"
        "{{ m.content.split('</think>')[-1].lstrip('\\n') }}"
        "{%- elif m.role == 'assistant' and loop.last %}\n<think>\n\n</think>\n\n{{ m.content }}"
        "{%- else %}\n{{ m.content }}{%- endif -%}<|im_end|>\n{% endfor -%}"
        "{%- if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif -%}"
        "{% endif %}",
        special=("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
        eos="<|im_end|>",
        added=("<think>", "</think>"),
    ),
    # The same switch, inside the system message, with the day.
    "smollm3": Family(
        "<|im_start|>system\n## Metadata\n\nToday Date: {{ strftime_now('%d %B %Y') }}\n"
        "Reasoning Mode: {{ '/think' if enable_thinking is not defined or enable_thinking else '/no_think' }}"
        "\n\n{% if messages[0].role == 'system' %}{{ messages[0].content }}"
        "{% set messages = messages[1:] %}{% endif %}"
        "<|im_end|>\n{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n{% endif %}"
        "{% endif %}",
        special=("<|im_start|>", "<|im_end|>"),
        eos="<|im_end|>",
        added=("<think>", "</think>"),
    ),
    # Reasons whatever is asked: its template opens the reasoning itself.
    "deepseek-r1": Family(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
        "{% elif m.role == 'user' %}<｜User｜>{{ m.content }}"
        "{% else %}<｜Assistant｜>{{ m.content.split('</think>')[-1] }}<｜end▁of▁sentence｜>{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}",
        special=("<｜User｜>", "<｜Assistant｜>", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
        bos="<｜begin▁of▁sentence｜>",
        eos="<｜end▁of▁sentence｜>",
        added=("<think>", "</think>"),
    ),
    # The same in its first form, which left the tag to the model.
    "deepseek-r1-first": Family(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
        "{% elif m.role == 'user' %}<｜User｜>{{ m.content }}"
        "{% else %}<｜Assistant｜>{{ m.content.split('</think>')[-1] }}<｜end▁of▁sentence｜>{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<｜Assistant｜>{% endif %}",
        special=("<｜User｜>", "<｜Assistant｜>", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
        bos="<｜begin▁of▁sentence｜>",
        eos="<｜end▁of▁sentence｜>",
        added=("<think>", "</think>"),
    ),
    # Channels instead of tags; the system message becomes the developer's.
    "gpt-oss": Family(
        "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\n"
        "Current date: {{ strftime_now('%Y-%m-%d') }}\n\nReasoning: {{ reasoning_effort or 'medium' }}\n\n"
        "# Valid channels: analysis, commentary, final.<|end|>"
        "{% if messages[0].role == 'system' %}<|start|>developer<|message|># Instructions\n\n"
        "{{ messages[0].content }}\n\n<|end|>{% set messages = messages[1:] %}{% endif %}"
        "{% for m in messages %}{% if m.role == 'user' %}<|start|>user<|message|>{{ m.content }}<|end|>"
        "{% else %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
        "{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant{% endif %}",
        special=("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>"),
        eos="<|return|>",
        ends=("<|end|>", "<|return|>"),
    ),
    # Refuses a system message and turns out of order, and trims; its turn ends before a text does.
    "gemma": Family(
        "{{ bos_token }}" + _NO_SYSTEM + _TURNS + "<start_of_turn>"
        "{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
        "{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        special=("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        bos="<bos>",
        eos="<eos>",
        ends=("<end_of_turn>",),
    ),
    # Knows users and assistants alone.
    "mistral-first": Family(
        "{{ bos_token }}" + _TURNS + "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
        special=("<s>", "</s>"),
        bos="<s>",
        eos="</s>",
    ),
    # Puts the system message into the last turn.
    "mistral": Family(
        "{%- if messages[0].role == 'system' %}{% set system = messages[0].content %}"
        "{% set messages = messages[1:] %}{% endif -%}{{ bos_token }}" + _TURNS + "{% if m.role == 'user' %}"
        "[INST] {% if loop.last and system is defined %}{{ system }}\n\n{% endif %}{{ m.content }}[/INST]"
        "{% else %} {{ m.content | trim }}{{ eos_token }}{% endif %}{% endfor %}",
        special=("<s>", "</s>", "[INST]", "[/INST]"),
        bos="<s>",
        eos="</s>",
    ),
    "phi": Family(
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
        special=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"),
        eos="<|endoftext|>",
        ends=("<|end|>",),
    ),
    "llama3": Family(
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
        "{{ m.content | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        special=(
            "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"
        ),
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
    ),
}  # fmt: skip


@cache
def _merges() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([WORDS], trainer)
    text: str = tokenizer.to_str()
    return text


def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    """A small byte-level tokenizer with merges, the family's tokens and its template."""
    family = FAMILIES[name]
    tokenizer = Tokenizer.from_str(_merges())
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in family.special])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in family.added])
    named: dict[str, Any] = {"eos_token": family.eos, "pad_token": family.eos}
    if family.bos:
        named["bos_token"] = family.bos
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)
    fast.chat_template = family.template
    return fast
