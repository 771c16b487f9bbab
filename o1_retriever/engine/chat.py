"""Prompts of a language model that was not trained by this method: through its own chat template."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import takewhile
from typing import Any

from o1_retriever.endpoint.prompt import without_system
from o1_retriever.engine.template import PlainText

Messages = Sequence[Mapping[str, str]]

# Stands for a message while its chat template is rendered: characters that mean nothing to anybody.
_MARK = re.compile("\ue000([0-9]+)\ue001")
_OPEN, _CLOSE = "<think>", "</think>"


def _mark(place: int) -> str:
    return f"\ue000{place}\ue001"


class ChatTemplate(PlainText):
    """Turns chat messages into the ids that a model goes on from, in which the template alone is special.

    A model without a chat template (a base model) gets the messages as plain text, each user's behind
    `Question: ` and each assistant's behind `Answer: `, and stops at the end of its line. `shared` are
    messages that all prompts begin with (a system message and examples): the engine reads them once.

    `reasons` lets a model that reasons before it answers do so. Without it, such a model begins with its
    answer: its template's switch is turned (Qwen3), else the reasoning is closed before it is begun, with the
    tags that the template knows (DeepSeek-R1) or in its channel of answers (gpt-oss).
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        shared: Messages = (),
        reasons: bool = False,
        positions: int | None = None,
    ) -> None:
        super().__init__(tokenizer)
        self.reasons = reasons
        self.positions = positions or 1 << 20
        self.source = _source(tokenizer)
        self.is_chat = bool(self.source)
        self._opening: list[int] = []
        if shared:
            prompts = [self.prompt([*shared, {"role": "user", "content": text}]) for text in "ab"]
            same = takewhile(lambda pair: pair[0] == pair[1], zip(*prompts, strict=False))
            self._opening = [first for first, _ in same]
        self.stops = self._ends_of_turn()

    @property
    def opening(self) -> list[int]:
        """The ids that every prompt with the shared messages begins with."""
        return self._opening

    def prompt(self, messages: Messages) -> list[int]:
        """The ids of a chat, up to where the assistant begins to write."""
        if not self.is_chat:
            return self._plain(messages)
        try:
            return self._chat(messages)
        except Exception:  # a template may refuse a system message, each with an exception of its own
            return self._chat(without_system(messages))

    def around(self, messages: Messages) -> tuple[list[int], list[int]]:
        """The ids before and behind the words of the last message, where the chat template puts them."""
        marked = [*messages[:-1], {**messages[-1], "content": _mark(0)}]
        try:
            chat = self._rendered(marked, opens=True)
        except Exception:  # as in `prompt`
            chat = self._rendered(without_system(marked), opens=True)
        before, _, behind = self._begun(chat).partition(_mark(0))
        return self._tokens(before), self._tokens(behind)

    def room(self, prompt: Sequence[int]) -> int:
        """How many tokens a thought may have after this prompt."""
        return self.positions - len(prompt) - 1

    def _chat(self, messages: Messages) -> list[int]:
        if not any(token in message["content"] for message in messages for token in self._added):
            return self._tokens(self._begun(self._rendered(messages, opens=True)))
        # What spells a token of the template is rendered as a mark, and put there as plain text.
        marked = [{**message, "content": _mark(place)} for place, message in enumerate(messages)]
        ids: list[int] = []
        for number, piece in enumerate(_MARK.split(self._begun(self._rendered(marked, opens=True)))):
            if number % 2:
                ids += self.text_ids([messages[int(piece)]["content"]])[0]
            elif piece:
                ids += self._tokens(piece)
        return ids

    @cached_property
    def _added(self) -> list[str]:
        return list(self.tokenizer.get_added_vocab())

    def _tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _rendered(self, messages: Messages, *, opens: bool) -> str:
        # Two names of one switch: Qwen's and SmolLM's, and that of Granite and of DeepSeek since 3.1.
        text: str = self.tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            add_generation_prompt=opens,
            tokenize=False,
            enable_thinking=self.reasons,
            thinking=self.reasons,
        )
        return text

    def _begun(self, text: str) -> str:
        """A rendered chat with the beginning of the answer, where its template leaves that to the model."""
        if "<|channel|>" in self.source and text.endswith("<|start|>assistant"):
            return f"{text}<|channel|>{'analysis' if self.reasons else 'final'}<|message|>"
        if self.reasons or _CLOSE not in self.source or text.rstrip().endswith(_CLOSE):
            return text
        opened = text if text.rstrip().endswith(_OPEN) else f"{text}{_OPEN}\n"
        return f"{opened}\n{_CLOSE}\n\n"

    def _plain(self, messages: Messages) -> list[int]:
        names = {"system": "", "user": "Question: ", "assistant": "Answer: "}
        lines = [names[message["role"]] + " ".join(message["content"].split()) for message in messages]
        beginning = [] if self.tokenizer.bos_token_id is None else [int(self.tokenizer.bos_token_id)]
        return [*beginning, *(i for row in self.text_ids([f"{line}\n" for line in lines]) for i in row)] + (
            self.text_ids(["Answer:"])[0]
        )

    def _ends_of_turn(self) -> tuple[int, ...]:
        """The special tokens that the template puts behind an assistant's words, or the end of a line."""
        if not self.is_chat:
            return tuple({self.text_ids(["a\n"])[0][-1], self.text_ids(["a\n\n"])[0][-1]})
        roles = ("user", "assistant", "user", "assistant")
        messages = [{"role": role, "content": _mark(place)} for place, role in enumerate(roles)]
        rendered = self._rendered(messages, opens=False)
        # Behind the last words and behind earlier ones stand different tokens in some templates.
        behind = [rendered.partition(_mark(place))[2] for place in (1, 3)]
        ids = [self._tokens(text)[0] for text in behind if text]
        return tuple(sorted({int(i) for i in ids if i in self._never}))


def _source(tokenizer: Any) -> str:
    """The text of a tokenizer's chat template, of several the default one; empty where it has none."""
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, Mapping):
        template = template.get("default") or next(iter(template.values()), None)
    return template or ""
