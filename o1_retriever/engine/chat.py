"""Prompts of a language model that was not trained by this method: through its own chat template."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from o1_retriever.endpoint.prompt import without_system
from o1_retriever.engine.template import PlainText

Messages = Sequence[Mapping[str, str]]

# Stands for a message while its chat template is rendered: characters that mean nothing to anybody.
_MARK = re.compile("\ue000([0-9]+)\ue001")


def _mark(place: int) -> str:
    return f"\ue000{place}\ue001"


class ChatTemplate(PlainText):
    """Turns chat messages into the ids that a model goes on from, in which the template alone is special.

    A model without a chat template (a base model) gets the messages as plain text, each user's behind
    `Question: ` and each assistant's behind `Answer: `, and stops at the end of its line. `reasons` lets a
    model that reasons before it answers do so, where its template has a switch for it. `shared` are messages
    that all prompts begin with (a system message and examples): the engine reads them once.
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
        self.is_chat = bool(getattr(tokenizer, "chat_template", None))
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

    def room(self, prompt: Sequence[int]) -> int:
        """How many tokens a thought may have after this prompt."""
        return self.positions - len(prompt) - 1

    def _chat(self, messages: Messages) -> list[int]:
        ids: list[int] = []
        for number, piece in enumerate(_MARK.split(self._rendered(messages, opens=True))):
            if number % 2:
                ids += self.text_ids([messages[int(piece)]["content"]])[0]
            elif piece:
                ids += self.tokenizer(piece, add_special_tokens=False)["input_ids"]
        return ids

    def _rendered(self, messages: Messages, *, opens: bool) -> str:
        marked = [{**message, "content": _mark(place)} for place, message in enumerate(messages)]
        text: str = self.tokenizer.apply_chat_template(
            marked, add_generation_prompt=opens, tokenize=False, enable_thinking=self.reasons
        )
        return text

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
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        behind = self._rendered(messages, opens=False).rpartition(_mark(1))[2]
        ids = self.tokenizer(behind, add_special_tokens=False)["input_ids"][:1] if behind else []
        return tuple(int(i) for i in ids if i in self._never)
