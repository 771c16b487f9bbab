"""The layouts that can be trained: those of a model that thinks and embeds, and the chat of a thinker.

A thinker writes beside an encoder that somebody else trained. It keeps the prompt of the chat model that it
was, and what it is trained on are the thoughts alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from o1_retriever.endpoint.chat import ChatPrompt
from o1_retriever.engine.template import MARKERS, ChatTemplate, PlainText, Template, TemplateConfig
from o1_retriever.errors import SettingsError
from o1_retriever.query import Query
from o1_retriever_training.joint.recipe import DataSection, TrainedLayout

# Without the system message that some models put into every chat: it would be a third of a short row.
_CHATML = (
    "{%- for message in messages -%}{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>\n' -}}{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}"
    "{%- endif -%}"
)
# The lines of a query's words begin and end where a token does in whatever vocabulary.
_QUESTIONS = (
    "{%- for message in messages -%}{%- if message['role'] == 'user' -%}{{- 'Question:\\n' -}}"
    "{%- elif message['role'] == 'assistant' -%}{{- 'Answer:\\n' -}}{%- endif -%}{{- message['content'] -}}"
    "{{- eos_token if message['role'] == 'assistant' else '\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'Answer:\\n' -}}{%- endif -%}"
)
_LEAST = 8  # tokens of a query


def markers_of(layout: TrainedLayout) -> tuple[str, ...]:
    """The special tokens that a layout adds to a tokenizer."""
    return () if layout == "chat" else MARKERS[layout]


def set_chat(tokenizer: Any) -> None:
    """Give a tokenizer the chat template that a thinker is trained with, and that is saved beside it.

    It is plain ChatML where the model knows it, else the model's own, else lines of questions and answers.
    """
    known = tokenizer.get_vocab()
    if "<|im_start|>" in known and "<|im_end|>" in known:
        tokenizer.chat_template = _CHATML
    elif not getattr(tokenizer, "chat_template", None):
        tokenizer.chat_template = _QUESTIONS


class WriterTemplate(PlainText):
    """A chat around the ids of a query and its thought, as a `LocalThinker` with the same prompt has it.

    The state at the end of the prompt stands for the query alone, that at the end of the turn for query and
    thought.
    """

    layout: TrainedLayout = "chat"
    embeds_documents = False
    tail = 1

    def __init__(
        self,
        tokenizer: Any,
        *,
        max_query_tokens: int,
        max_length: int,
        positions: int | None = None,
        instruction: str = "",
    ) -> None:
        super().__init__(tokenizer)
        self.instruction = instruction
        self.max_length = min(max_length, positions or max_length)
        chat = ChatTemplate(tokenizer, positions=positions)
        self._before, self._behind = chat.around(writer_prompt(instruction).messages(Query("?")))
        self.eos = next(iter(chat.stops), self.eos)
        self.fast_offset: int = -1
        around = len(self._before) + len(self._behind)
        self.max_query_text = min(max_query_tokens, self.max_length - self.tail - 1) - around
        if self.max_query_text < _LEAST:
            raise SettingsError(
                f"The chat around a query takes {around} of its {max_query_tokens} tokens; expected to leave "
                f"at least {_LEAST} for the query itself.",
                hint="Raise data.max_query_tokens, or shorten data.instruction.",
            )

    @property
    def max_document(self) -> int:
        """Tokens of a plain text beyond which it is truncated."""
        return self.max_length - 1

    def prompt(self, query: Sequence[int]) -> list[int]:
        """What precedes the thought."""
        return [*self._before, *query[: self.max_query_text], *self._behind]

    def fast_query(self, query: Sequence[int]) -> list[int]:
        """The query without a thought."""
        return self.prompt(query)

    def thinking_query(self, query: Sequence[int], thought: Sequence[int]) -> list[int]:
        """The query with one thought and the end of the turn."""
        prompt = self.prompt(query)
        return [*prompt, *thought[: self.room(prompt)], self.eos]

    def document(self, document: Sequence[int]) -> list[int]:
        """A plain text and its end."""
        return [*document[: self.max_document], self.eos]

    def room(self, prompt: Sequence[int]) -> int:
        """How many tokens a thought may have after this prompt."""
        return self.max_length - len(prompt) - self.tail


AnyTemplate: TypeAlias = Template | WriterTemplate


def writer_prompt(instruction: str) -> ChatPrompt:
    """The chat that a thinker is trained with: the query alone, behind the instruction where there is one."""
    return ChatPrompt(system=instruction.strip() or None)


def template_of(
    layout: TrainedLayout, tokenizer: Any, data: DataSection, *, positions: int | None
) -> AnyTemplate:
    """The template of training, with the recipe's limits; a chat's tokenizer gets its template here."""
    limits: dict[str, Any] = {"max_query_tokens": data.max_query_tokens, "max_length": data.max_length}
    if layout == "chat":
        set_chat(tokenizer)
        return WriterTemplate(tokenizer, **limits, positions=positions, instruction=data.instruction)
    config = TemplateConfig(layout=layout, **limits)
    return Template(tokenizer, config, positions=positions, instruction=data.instruction)
