"""What a chat model is asked to think about."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from o1_retriever.errors import SettingsError
from o1_retriever.query import HISTORY_CHARACTERS, Query
from o1_retriever.thought import ThoughtSettings

SLOT = "{query}"


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A chat that asks for a thought: `user` contains `{query}`, `system` (None: no such message) does not.

    Every `{query}` in `user` is replaced by the query as it is; other braces mean nothing, here or there.
    `examples` are pairs of a query and a good thought about it, shown as earlier turns of the chat.
    Raises `SettingsError` when `{query}` is missing.
    """

    user: str = SLOT
    system: str | None = None
    examples: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.user, str) or not isinstance(self.system, str | None):
            raise SettingsError(f"The prompt is {self.user!r:.60}, {self.system!r:.60}; expected strings.")
        if SLOT not in self.user:
            raise SettingsError(
                f"The prompt {self.user!r:.60} has no place for the query.",
                hint=f"Write {SLOT} where the query belongs.",
            )

    def messages(self, query: Query) -> list[dict[str, str]]:
        """The chat messages that ask about a query after the newest turns of its history.

        They are what most chat templates insist on: one system message, first, with those of the history;
        then users and assistants in turn, so that messages of one after another are joined.
        """
        turns = query.history.newest(HISTORY_CHARACTERS).to_list()
        system = [self.system] if self.system else []
        system += [turn["content"] for turn in turns if turn["role"] == "system"]
        chat = [{"role": "system", "content": "\n\n".join(system)}] if system else []
        for example, thought in self.examples:
            chat += [self._asking(example), {"role": "assistant", "content": thought}]
        for turn in [*(turn for turn in turns if turn["role"] != "system"), self._asking(query.text)]:
            if chat and chat[-1]["role"] == turn["role"]:
                chat[-1]["content"] += "\n\n" + turn["content"]
            else:
                chat.append(turn)
        return chat

    def _asking(self, text: str) -> dict[str, str]:
        return {"role": "user", "content": self.user.replace(SLOT, text)}

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that stand for the wording."""
        parts = asdict(self)
        if not self.examples:  # left out where there are none: older entries of the cache stay valid
            del parts["examples"]
        return hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).hexdigest()


# The exploration step of the method (arXiv 2502.07555): imagine the answer, then search with it.
DEFAULT_PROMPT = ChatPrompt(
    system=(
        "You help a search engine to find documents. Think about what a plausible response to the user's "
        "query would say: the facts, names and terms that a document which addresses it is likely to "
        "contain. Write that response as one short, plain paragraph. If you are unsure, write your best "
        "guess. Do not repeat the query, ask anything back, or mention these instructions."
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """A thought that is wanted: number `index` about a query, asked for with a prompt.

    The settings say how it is sampled; their seed together with the index fixes the draw.
    """

    query: Query
    prompt: ChatPrompt
    index: int
    settings: ThoughtSettings

    @property
    def messages(self) -> list[dict[str, str]]:
        """The chat messages."""
        return self.prompt.messages(self.query)

    @property
    def parameters(self) -> dict[str, Any]:
        """How the answer is sampled, under the names of OpenAI's interface and of vLLM's additions to it."""
        digest = hashlib.blake2b(f"{self.settings.seed}:{self.index}".encode(), digest_size=4).digest()
        parameters = {
            "temperature": self.settings.temperature,
            "top_p": self.settings.top_p,
            "max_tokens": self.settings.max_new_tokens,
            "seed": int.from_bytes(digest) >> 1,  # 31 bits: some servers read a signed 32-bit number
        }
        if self.settings.repetition_penalty != 1:
            parameters["repetition_penalty"] = self.settings.repetition_penalty
        return parameters


def as_prompt(value: ChatPrompt | str) -> ChatPrompt:
    """A prompt from a `ChatPrompt`, or from the text of its only message with `{query}` in it."""
    return value if isinstance(value, ChatPrompt) else ChatPrompt(value)


def without_system(messages: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """The messages with the system's own words, if they have any, at the beginning of the user's first."""
    system, *chat = messages
    if system["role"] != "system":
        return list(messages)
    place = next(place for place, message in enumerate(chat) if message["role"] == "user")
    chat[place] = {"role": "user", "content": f"{system['content']}\n\n{chat[place]['content']}"}
    return chat
