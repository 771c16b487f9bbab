"""What a chat model is asked to think about."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from o1_retriever.errors import SettingsError
from o1_retriever.query import HISTORY_CHARACTERS, Query

SLOT = "{query}"


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A chat that asks for a thought: `user` contains `{query}`, `system` (None: no such message) does not.

    Every `{query}` in `user` is replaced by the query as it is; other braces mean nothing, here or there.
    Raises `SettingsError` when `{query}` is missing.
    """

    user: str = SLOT
    system: str | None = None

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
        said = query.history.newest(HISTORY_CHARACTERS).to_list()
        system = [self.system] if self.system else []
        system += [turn["content"] for turn in said if turn["role"] == "system"]
        chat = [{"role": "system", "content": "\n\n".join(system)}] if system else []
        asked = {"role": "user", "content": self.user.replace(SLOT, query.text)}
        for turn in [*(turn for turn in said if turn["role"] != "system"), asked]:
            if chat and chat[-1]["role"] == turn["role"]:
                chat[-1]["content"] += "\n\n" + turn["content"]
            else:
                chat.append(turn)
        return chat

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that stand for the wording."""
        return hashlib.blake2b(json.dumps(asdict(self)).encode(), digest_size=8).hexdigest()


# The exploration step of the method (arXiv 2502.07555): imagine the answer, then search with it.
DEFAULT_PROMPT = ChatPrompt(
    system=(
        "You help a search engine to find documents. Think about what a plausible response to the user's "
        "query would say: the facts, names and terms that a document which addresses it is likely to "
        "contain. Write that response as one short, plain paragraph. If you are unsure, write your best "
        "guess. Do not repeat the query, ask anything back, or mention these instructions."
    )
)


def as_prompt(value: ChatPrompt | str) -> ChatPrompt:
    """A prompt from a `ChatPrompt`, or from the text of its only message with `{query}` in it."""
    return value if isinstance(value, ChatPrompt) else ChatPrompt(value)
