"""What a user asks: texts and conversations, checked once where they come in, and trusted inside."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from o1_retriever.errors import InputError
from o1_retriever.reporting import counted

# Texts read at a time: enough to put those of similar length together.
_BLOCK = 4096


def check_text(text: Any, *, what: str, position: int | None = None) -> str:
    """Return `text` if it can be embedded; raise `InputError` naming its position otherwise."""
    where = f"{what} {position}" if position is not None else f"The {what}"
    if not isinstance(text, str):
        found = "None" if text is None else f"{type(text).__name__} {text!r:.60}"
        raise InputError(f"{where} is {found}; expected a string.", position=position)
    if not text.strip():
        found = "empty" if not text else "only whitespace"
        raise InputError(f"{where} is {found}; expected some text.", position=position)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where} has a lone surrogate at character {error.start}; expected valid Unicode.",
            hint="Decode the bytes it came from with the right encoding.",
            position=position,
        ) from None
    return text


def check_texts(texts: Sequence[str] | Iterable[str], *, what: str, first: int = 0) -> list[str]:
    """Return the texts as a list after checking each; a lone string is refused, not split into letters.

    `first` is the position of the first of them in what the user gave.
    """
    if isinstance(texts, str | bytes):
        raise InputError(
            f"Found one {type(texts).__name__}; expected a list of strings.", hint=f"Pass [{what}] instead."
        )
    try:
        items = list(texts)
    except TypeError:
        raise InputError(f"Found {type(texts).__name__}; expected a list of strings.") from None
    return [check_text(item, what=what, position=place) for place, item in enumerate(items, first)]


def text_blocks(texts: Iterable[str], *, what: str) -> Iterator[list[str]]:
    """The texts in checked blocks, each read when it is asked for."""
    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        check_texts(texts, what=what)
    left, first = iter(texts), 0
    while block := check_texts(islice(left, _BLOCK), what=what, first=first):
        yield block
        first += len(block)


Role = Literal["system", "user", "assistant"]

HISTORY_CHARACTERS = 16_000
"""How much of a conversation a chat model is sent: about 4,000 tokens, which every model of today reads."""

# Names that frameworks have for the three roles; those of tools have no words of a person or a model.
_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "ai": "assistant",
    "model": "assistant",
    "chatbot": "assistant",
}
_SILENT = ("tool", "function")
_FORMS = "messages such as {'role': 'user', 'content': '...'}, (role, text) pairs, or those of a framework"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: who spoke ("user", "assistant" or "system"), and the text.

    Raises `InputError` for another role and for a content without text.
    """

    role: Role
    content: str

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise InputError(f"The role is {self.role!r:.60}; expected one of {', '.join(get_args(Role))}.")
        check_text(self.content, what="message")

    def to_dict(self) -> dict[str, str]:
        """The turn as plain JSON values: `role` and `content`."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True, slots=True)
class Conversation:
    """The turns before a query, oldest first. An empty one is as if there had been none.

    `Conversation.of` reads what callers have.
    """

    messages: tuple[Message, ...] = ()

    @classmethod
    def of(cls, history: History) -> Conversation:
        """Read a conversation: another one, None (nothing was said), or a list of turns, oldest first.

        A turn is a `Message`, a dict with `role` and `content`, a `(role, content)` pair, or a message of
        LangChain, LlamaIndex or Haystack. "human" and "ai" are "user" and "assistant". Content is text, or a
        list of parts of which the text is taken. Turns of tools, and turns without text (a call of a tool, a
        picture), are left out. Raises `InputError` with the position of a turn that cannot be used.
        """
        if isinstance(history, Conversation):
            return history
        if history is None:
            return cls()
        if isinstance(history, str | bytes | Mapping | Message) or not isinstance(history, Sequence):
            raise InputError(
                f"The history is a {type(history).__name__}; expected a list of {_FORMS}.",
                hint="Type: history=[{'role': 'user', 'content': 'What is dew?'}]",
            )
        read = (_message(turn, place) for place, turn in enumerate(history))
        return cls(tuple(message for message in read if message is not None))

    def __iter__(self) -> Iterator[Message]:
        return iter(self.messages)

    def __len__(self) -> int:
        return len(self.messages)

    def before(self, query: str) -> Conversation:
        """The turns before `query`: without the last one where it is the query itself, asked by the user."""
        text, messages = query.strip(), self.messages
        while messages and messages[-1].role == "user" and messages[-1].content.strip() == text:
            messages = messages[:-1]
        return self if len(messages) == len(self) else Conversation(messages)

    def newest(self, characters: int) -> Conversation:
        """The newest turns that have `characters` together; of the oldest of them, its end is kept."""
        kept: list[Message] = []
        for message in reversed(self.messages):
            content = message.content[-characters:] if characters > 0 else ""
            if not content.strip():
                break
            kept.append(Message(message.role, content))
            characters -= len(content)
        return Conversation(tuple(reversed(kept)))

    def to_list(self) -> list[dict[str, str]]:
        """The turns as plain JSON values, which `of` reads."""
        return [message.to_dict() for message in self.messages]


# What a `history=` takes: a `Conversation`, None, or a list of turns in any form of `Conversation.of`.
History = Conversation | Sequence[Any] | None


class HasText(Protocol):
    """A thought that was written already: a `Thought`, or anything else with a `text`."""

    @property
    def text(self) -> str:
        """What was thought."""
        ...


# What a `thoughts=` takes: thoughts about a query that the caller brings; None: they are to be written.
Given = Sequence[str | HasText] | None


@dataclass(frozen=True, slots=True)
class Query:
    """A query and the conversation before it, made and checked by `as_queries` and trusted from there on.

    `thoughts` are those that the caller brings: then none is written. None: there are none yet. `passages`
    are what a search found for the query before: the thinker reads them, as data, and writes what they lack.
    """

    text: str
    history: Conversation = Conversation()
    thoughts: tuple[str, ...] | None = None
    passages: tuple[str, ...] = ()

    def alone(self) -> Query:
        """The same text without a conversation and without thoughts."""
        return Query(self.text)


def as_queries(
    queries: Sequence[str | Query],
    histories: Sequence[History] | None = None,
    thoughts: Sequence[Given] | None = None,
) -> list[Query]:
    """Check what a user asks, where it comes in: the only place that does. `Query` objects pass as they are.

    `histories` are what was said before each query, None where nothing was, and `thoughts` what the caller
    has thought about each, None where that is left to the thinker. Raises `InputError` with the position of a
    query, a history or thoughts that cannot be used.
    """
    if histories is not None:
        texts = check_texts(queries, what="query")  # type: ignore[arg-type]
        checked = [Query(*pair) for pair in zip(texts, _histories(histories, texts), strict=True)]
    elif isinstance(queries, list | tuple) and all(isinstance(query, Query) for query in queries):
        checked = list(queries)
    else:
        checked = [Query(text) for text in check_texts(queries, what="query")]  # type: ignore[arg-type]
    if thoughts is None:
        return checked
    _check_one_each(thoughts, len(checked), "thoughts", "list of thoughts", "lists of thoughts")
    return [_thought(*each) for each in enumerate(zip(checked, thoughts, strict=True))]


def as_query(query: str | Query, history: History = None, thoughts: Given = None) -> Query:
    """One query with what was said before it and thought about it, checked as by `as_queries`."""
    if not isinstance(query, Query):
        query = Query(check_text(query, what="query"), Conversation.of(history).before(query))
    return query if thoughts is None else replace(query, thoughts=_given(thoughts))


def _given(thoughts: Given) -> tuple[str, ...]:
    """The texts of thoughts that the caller brings, without those that could not be had."""
    if not isinstance(thoughts, list | tuple):
        found = "one str" if isinstance(thoughts, str) else f"a {type(thoughts).__name__}"
        raise InputError(f"The thoughts are {found}; expected a list.", hint="Type: thoughts=['...']")
    written = [each for each in thoughts if not _is_wordless(each)]
    had: list[Any] = [getattr(each, "text", each) for each in written if not getattr(each, "failed", False)]
    return tuple(check_texts(had, what="thought"))


def _is_wordless(thought: object) -> bool:
    """Whether it is a thought without a word, as models write some; a caller's empty text is a fault."""
    text = getattr(thought, "text", None)
    return isinstance(text, str) and not text


def _thought(place: int, pair: tuple[Query, Given]) -> Query:
    query, thoughts = pair
    try:
        return as_query(query, thoughts=thoughts)
    except InputError as error:
        raise InputError(f"Query {place}: {error.message}", hint=error.hint, position=place) from None


def _check_one_each(found: object, queries: int, name: str, noun: str, plural: str) -> None:
    """Raise `InputError` unless there is one for each query."""
    if isinstance(found, str | bytes | Mapping | Conversation) or not isinstance(found, Sequence):
        raise InputError(f"{name} is a {type(found).__name__}; expected a list with one {noun} a query.")
    if len(found) != queries:
        raise InputError(
            f"Found {counted(len(found), noun, plural)} for {counted(queries, 'query', 'queries')}; "
            "expected one each.",
            hint="Pass None for a query that has none.",
        )


def _histories(histories: Sequence[History], queries: Sequence[str]) -> list[Conversation]:
    """One conversation for each query, without the query itself."""
    _check_one_each(histories, len(queries), "histories", "history", "histories")
    read: list[Conversation] = []
    for place, (history, query) in enumerate(zip(histories, queries, strict=True)):
        try:
            read.append(Conversation.of(history).before(query))
        except InputError as error:
            raise InputError(f"History {place}: {error.message}", hint=error.hint, position=place) from None
    return read


def rendered(
    history: Conversation, ids: Callable[[Sequence[str]], Sequence[Sequence[int]]], room: int
) -> list[int]:
    """A conversation as at most `room` tokens of plain text that stand before a query.

    One line a turn, `user: ...`, and `user: ` last, for the query. The newest turns are kept whole; of the
    first that has no room, the last tokens stand behind its name. No tokens where not even a few of the
    newest turn fit. `ids` tokenises texts.
    """
    if not len(history):
        return []
    *turns, opened = ids([*(f"{each.content}\n" for each in history), "user: "])
    names = dict(zip(get_args(Role), ids([f"{role}: " for role in get_args(Role)]), strict=True))
    left = room - len(opened)
    lines: list[list[int]] = []
    for message, turn in zip(reversed(history.messages), reversed(turns), strict=True):
        name = names[message.role]
        fits = left - len(name)
        if fits < min(len(turn), _FEWEST):
            break
        lines.append([*name, *turn[-fits:]])
        left -= len(lines[-1])
        if fits < len(turn):
            break
    return [i for line in (*reversed(lines), opened) for i in line] if lines else []


_FEWEST = 8  # tokens of a turn below which its end says nothing


def read_history(path: str | os.PathLike[str]) -> Conversation:
    """Read a conversation from a file: one turn a line (`.jsonl`), or a JSON list, alone or as `messages`.

    Raises `InputError`, with the line's number, for a file that cannot be used.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"There is no file {file}; expected the turns of a conversation.") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text ({error}).") from None
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error}.") from None
    try:
        if file.suffix == ".jsonl":
            return Conversation.of(list(_lines(text)))
        whole = json.loads(text)
        return Conversation.of(whole.get("messages", whole) if isinstance(whole, dict) else whole)
    except InputError as error:
        raise InputError(f"{file}: {error.message}", hint=error.hint) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is not JSON: {error}.") from None


def _lines(text: str) -> Iterator[Any]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"line {number} is not JSON: {error}.") from None


def _message(turn: Any, place: int) -> Message | None:
    if isinstance(turn, Message):
        return turn
    role, content = _parts_of(turn, place)
    name = getattr(role, "value", role)
    name = name.strip().lower() if isinstance(name, str) else ""
    if name in _SILENT:
        return None
    if name not in _ROLES:
        raise InputError(
            f"Turn {place} of the history has the role {role!r:.60}; expected user, assistant or system.",
            position=place,
        )
    text = _text(content, place)
    if not text.strip():
        return None
    return Message(_ROLES[name], check_text(text, what="history turn", position=place))


def _parts_of(turn: Any, place: int) -> tuple[Any, Any]:
    if isinstance(turn, Mapping):
        if "role" in turn and "content" in turn:
            return turn["role"], turn["content"]
        found = f"a dict with {sorted(map(str, turn))}"
    elif isinstance(turn, tuple | list) and len(turn) == 2:
        return turn[0], turn[1]
    elif hasattr(turn, "content") and (hasattr(turn, "role") or hasattr(turn, "type")):
        # LangChain's own `ChatMessage` has both, and its type is "chat" for every role.
        return getattr(turn, "role", None) or getattr(turn, "type", None), turn.content
    elif hasattr(turn, "role") and hasattr(turn, "text"):
        return turn.role, turn.text  # Haystack's
    else:
        found = f"{type(turn).__name__} {turn!r:.60}"
    raise InputError(f"Turn {place} of the history is {found}; expected {_FORMS}.", position=place)


def _text(content: Any, place: int) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list | tuple):
        return "\n".join(text for text in map(_part, content) if text)
    raise InputError(
        f"Turn {place} of the history has {type(content).__name__} as content; expected text.", position=place
    )


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    text = part.get("text") if isinstance(part, Mapping) else getattr(part, "text", None)
    return text if isinstance(text, str) else ""
