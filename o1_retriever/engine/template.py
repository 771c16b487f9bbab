"""Prompts: the layouts of a thinking embedder, and the chat templates of all other models.

A layout says which ids stand around a query, a thought and a document. Two exist (arXiv 2502.07555 and the
checkpoint released with it); `q`, `t`, `d` are the ids of plain text and `eos` is the tokenizer's own
end-of-sequence token:

```
                  paper                                   released
fast query        <query> q <emb>                         <query> q </query> <thought> eos <emb>
thinking query    <query> q <emb> <thought> t eos <emb>   <query> q </query> <thought> t eos <emb>
document          <doc> d <emb>                           d <emb>
```

Training and inference both read this file, and nothing else knows the layouts. A language model that was not
trained by this method is asked through its own chat template.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, get_args

from o1_retriever.endpoint.chat import without_system
from o1_retriever.errors import CheckpointError

Layout = Literal["paper", "released"]
CONFIG_NAME = "o1_embedder.json"
MARKERS: dict[Layout, tuple[str, ...]] = {
    "paper": ("<query>", "<emb>", "<thought>", "<doc>"),
    "released": ("<query>", "</query>", "<thought>", "<emb>"),
}
_TAIL = 2  # eos and <emb>, after every thought


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateConfig:
    """A checkpoint's own small config file, `o1_embedder.json`.

    `max_query_tokens` bounds a query's prompt and `max_length` a document or a query with its thought,
    markers included (256 and 512 in the released checkpoint). `instruction` is what it was trained to find
    between `<query>` and every query. `settings` are the checkpoint's preferred
    `ThoughtSettings`; what is missing there falls back to the library's defaults.
    """

    layout: Layout = "paper"
    max_query_tokens: int = 256
    max_length: int = 512
    instruction: str = ""
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_file(cls, path: Path) -> TemplateConfig:
        """Read and validate the file; raise `CheckpointError` naming what is wrong with it."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} cannot be read as JSON: {error}.") from None
        if not isinstance(data, dict) or data.get("layout") not in get_args(Layout):
            found = data.get("layout") if isinstance(data, dict) else data
            raise CheckpointError(f"{path} has layout {found!r}; expected one of {get_args(Layout)}.")
        values = {each.name: data[each.name] for each in fields(cls) if each.name in data}
        for name in ("max_query_tokens", "max_length"):
            value = values.get(name, 8)
            if not isinstance(value, int) or isinstance(value, bool) or value < 8:
                raise CheckpointError(f"{path} has {name} {value!r}; expected a whole number from 8 up.")
        if not isinstance(values.get("instruction", ""), str):
            raise CheckpointError(f"{path} has instruction {values['instruction']!r}; expected a text.")
        if not isinstance(values.get("settings", {}), dict):
            raise CheckpointError(f"{path} has settings {values['settings']!r}; expected an object.")
        return cls(**values)

    def save(self, folder: Path) -> None:
        """Write the file into a checkpoint's folder."""
        data = {"format_version": 1, "pooling": "emb", **asdict(self)}
        (folder / CONFIG_NAME).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def detect_layout(tokenizer: Any) -> Layout:
    """The layout whose special tokens the tokenizer has; the released one has `</query>`."""
    vocabulary = tokenizer.get_vocab()
    order: tuple[Layout, ...] = ("released", "paper")
    for layout in order:
        if all(marker in vocabulary for marker in MARKERS[layout]):
            return layout
    found = sorted({m for marks in MARKERS.values() for m in marks} & set(vocabulary))
    raise CheckpointError(
        f"The tokenizer has the special tokens {found or 'of no known layout'}; expected "
        f"{' '.join(MARKERS['paper'])} or {' '.join(MARKERS['released'])}.",
        hint="Load a checkpoint that was trained to think and embed, such as models/o1-embedder-22m, or join "
        "an ordinary encoder with any thinker: ThinkingEmbedder.from_parts(thinker, encoder).",
    )


class PlainText:
    """Turns plain text into ids that are never special, whatever it spells, and knows the special ones.

    `emb` is the id whose state embeds, None for a model that writes and does not embed; `fast_offset` is
    where the fast vector's `<emb>` stands in a prompt, from its end, None if it is not in there; `stops` are
    further ids that end what a model writes.
    """

    emb: int | None = None
    fast_offset: int | None = None
    stops: tuple[int, ...] = ()

    def __init__(self, tokenizer: Any, markers: Iterable[int] = ()) -> None:
        self.tokenizer = tokenizer
        # BERT has no eos; its separator closes a text in pre-training and serves as one.
        eos = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
        if eos is None:
            raise CheckpointError(
                "The tokenizer has neither an eos nor a separator token; a thought needs an end."
            )
        self.eos = int(eos)
        added = [i for i, token in tokenizer.added_tokens_decoder.items() if token.special]
        special = {*added, *tokenizer.all_special_ids} - {tokenizer.unk_token_id}
        self._never = {*map(int, special), *markers}

    @property
    def opening(self) -> list[int]:
        """What every prompt begins with."""
        return []

    def text_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of plain texts: no markers, no truncation, and no special token whatever the text spells."""
        if not texts:
            return []
        encoded = self.tokenizer(
            list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False
        )
        rows: list[list[int]] = [list(row) for row in encoded["input_ids"]]
        for place, row in enumerate(rows):
            if not self._never.isdisjoint(row):
                rows[place] = self._spelled_out(texts[place])
        return rows

    def _spelled_out(self, text: str) -> list[int]:
        # Tokenizers that ignore `split_special_tokens`: cut every spelled token after its first character.
        pieces = [text]
        for token in self.tokenizer.get_added_vocab():
            pieces = [part for piece in pieces for part in _cut(piece, token)]
        rows = self.tokenizer(pieces, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [i for row in rows for i in row if i not in self._never]

    def suppressed(self, vocabulary_size: int) -> list[int]:
        """Ids that a thought may not contain: special tokens that do not end it, and rows without a token."""
        unknown = {self.tokenizer.unk_token_id} - {None}
        beyond = set(range(len(self.tokenizer), vocabulary_size))
        return sorted((self._never | unknown | beyond) - {self.eos, *self.stops})


class Template(PlainText):
    """Puts the markers of one layout around the ids of plain text.

    Text never becomes a marker: `<emb>` or `</s>` written by a user or a model is tokenised as plain
    text. Text is truncated, markers and the instruction never are. `positions` is how many positions the
    model has (None: no limit); an `instruction` follows `<query>` in every query (None: the checkpoint's).
    `tail` tokens follow a thought.
    """

    embeds_documents = True
    tail = _TAIL

    def __init__(
        self,
        tokenizer: Any,
        config: TemplateConfig,
        *,
        positions: int | None = None,
        instruction: str | None = None,
    ) -> None:
        self.config = config
        self.instruction = config.instruction if instruction is None else instruction
        vocabulary = tokenizer.get_vocab()
        missing = [marker for marker in MARKERS[config.layout] if marker not in vocabulary]
        if missing:
            raise CheckpointError(
                f"The tokenizer lacks {' '.join(missing)}; the {config.layout} layout needs "
                f"{' '.join(MARKERS[config.layout])}."
            )
        self._marker = {marker: int(vocabulary[marker]) for marker in MARKERS[config.layout]}
        super().__init__(tokenizer, self._marker.values())
        self.emb: int = self._marker["<emb>"]
        self.fast_offset = -2 if config.layout == "paper" else None
        self.max_length = min(config.max_length, positions or config.max_length)
        self.max_query = min(config.max_query_tokens, self.max_length - _TAIL - 1)
        self._instruction = self.text_ids([self.instruction])[0] if self.instruction.strip() else []
        if self.max_query - len(self._instruction) < 8:
            raise CheckpointError(
                f"The instruction takes {len(self._instruction)} of the {self.max_query} tokens of a query; "
                "expected to leave at least 8 for the query itself.",
                hint="Shorten the instruction.",
            )

    def prompt(self, query: Sequence[int]) -> list[int]:
        """What precedes the thought: the model goes on from here."""
        closing = self._marker["<emb>" if self.config.layout == "paper" else "</query>"]
        return [*self._opened(query), closing, self._marker["<thought>"]]

    def fast_query(self, query: Sequence[int]) -> list[int]:
        """The query without a thought, ending in `<emb>`."""
        if self.config.layout == "paper":
            return [*self._opened(query), self.emb]
        return [*self.prompt(query), self.eos, self.emb]

    def thinking_query(self, query: Sequence[int], thought: Sequence[int]) -> list[int]:
        """The query with one thought (ids without eos), ending in `<emb>`."""
        prompt = self.prompt(query)
        return [*prompt, *thought[: self.room(prompt)], self.eos, self.emb]

    def document(self, document: Sequence[int]) -> list[int]:
        """A document, ending in `<emb>`."""
        opening = [self._marker["<doc>"]] if self.config.layout == "paper" else []
        return [*opening, *document[: self.max_document], self.emb]

    def room(self, prompt: Sequence[int]) -> int:
        """How many tokens a thought may have after this prompt."""
        return self.max_length - len(prompt) - _TAIL

    @property
    def layout(self) -> Layout:
        """Which ids stand around a text."""
        return self.config.layout

    @property
    def opening(self) -> list[int]:
        """What every prompt begins with: the opening marker and the instruction."""
        return self._opened(())

    @property
    def max_query_text(self) -> int:
        """Tokens of a query's own text beyond which it is truncated."""
        return self.max_query - 3 - len(self._instruction)

    @property
    def max_document(self) -> int:
        """Tokens of a document's own text beyond which it is truncated."""
        return self.max_length - (2 if self.config.layout == "paper" else 1)

    def _opened(self, query: Sequence[int]) -> list[int]:
        return [self._marker["<query>"], *self._instruction, *query[: self.max_query_text]]


def _cut(text: str, token: str) -> Iterable[str]:
    parts = text.split(token)
    for part in parts[:-1]:
        yield from (part + token[:1], token[1:])
    yield parts[-1]


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
        self, tokenizer: Any, *, shared: Messages = (), reasons: bool = False, positions: int | None = None
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
