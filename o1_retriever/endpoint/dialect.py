"""Which of the usual parameters a server takes, learned from its refusals."""

from __future__ import annotations

import logging
import re
from threading import Lock
from typing import Any

from o1_retriever.endpoint.problem import body_text

logger = logging.getLogger(__name__)

REFUSAL = re.compile(
    r"unsupported|not support|unrecogni[sz]ed|unknown|unexpected|not permitted|not allowed|extra_forbidden"
    r"|only the default|deprecated|cannot both|not both|not available|invalid (?:parameter|argument)",
    re.IGNORECASE,
)
# What a thought loses when a server will not take a parameter; `max_tokens` is renamed, never dropped,
# because without a limit a model may write for hours.
OPTIONAL = {
    "seed": "its thoughts cannot be repeated",
    "top_p": "it samples with a top_p of its own",
    "repetition_penalty": "it repeats itself as it likes",
    "temperature": "it samples with a temperature of its own",
}
# Not of OpenAI's interface, known to vLLM and other servers: its client takes them as an extra body.
EXTRA = frozenset({"repetition_penalty"})


class Dialect:
    """Rewrites requests for one server, and remembers what it has refused (safe for several threads)."""

    def __init__(self) -> None:
        self._dropped: frozenset[str] = frozenset()
        self._limit = "max_tokens"
        self._system = True
        self._lock = Lock()

    def request(self, messages: list[dict[str, str]], parameters: dict[str, Any]) -> dict[str, Any]:
        """The keyword arguments of a chat completion that this server takes."""
        kept = {name: value for name, value in parameters.items() if name not in self._dropped}
        kept[self._limit] = kept.pop("max_tokens")
        return {"messages": messages if self._system else _merged(messages), **kept}

    def learn(self, error: Exception, sent: dict[str, Any]) -> bool:
        """Whether a refusal of `sent` was about something that can be said in another way from now on."""
        if getattr(error, "status_code", None) not in (400, 422):
            return False
        param, text = body_text(error)
        if "max_tokens" in sent and "max_completion_tokens" in text:
            self._limit = "max_completion_tokens"
            return True
        if not REFUSAL.search(text):
            return False
        if sent["messages"][0]["role"] == "system" and re.search(r"\bsystem\b", text, re.IGNORECASE):
            self._system = False
            return True
        return self._drop(param, text, sent)

    def _drop(self, param: str | None, text: str, sent: dict[str, Any]) -> bool:
        named = [name for name in OPTIONAL if name in sent and re.search(rf"\b{name}\b", text)]
        refused = param if param in OPTIONAL and param in sent else next(iter(named), None)
        if refused is None:
            return False
        with self._lock:
            news, self._dropped = refused not in self._dropped, self._dropped | {refused}
        if news:
            logger.warning("The endpoint takes no %r: %s.", refused, OPTIONAL[refused])
        return True


def _merged(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """The messages with the system's own words at the beginning of the user's first."""
    system, *chat = messages
    if system["role"] != "system":
        return messages
    place = next(place for place, message in enumerate(chat) if message["role"] == "user")
    content = f"{system['content']}\n\n{chat[place]['content']}"
    return [*chat[:place], {"role": "user", "content": content}, *chat[place + 1 :]]
