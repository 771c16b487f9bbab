"""A LangChain chat model as the one who thinks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from langchain_core.messages import BaseMessage
from langchain_core.runnables import Runnable

from o1_retriever.endpoint import DEFAULT_PROMPT, ChatPrompt, OpenAIThinker, RequestPolicy
from o1_retriever.endpoint.problem import ModelCallError
from o1_retriever.errors import SettingsError


class ChatModelThinker(OpenAIThinker):
    """Thoughts written by a LangChain chat model, or any runnable from messages to a message or a string.

    The model samples as it was configured to: `k`, of the thought settings, is how often it is asked, and
    with a temperature of 0 it says the same each time. `prompt` is a `ChatPrompt`, or a message with
    `{query}` in it. `policy` bounds time, retries and parallel calls. With a `name`, the thoughts may be
    kept in the cache under it: change the name when the model or its parameters change.

    Raises `SettingsError` for something that is no runnable.
    """

    def __init__(
        self,
        model: Runnable[Any, Any],
        *,
        prompt: ChatPrompt | str = DEFAULT_PROMPT,
        policy: RequestPolicy | None = None,
        name: str | None = None,
    ) -> None:
        if not isinstance(model, Runnable):
            raise SettingsError(f"model is a {type(model).__name__}; expected a LangChain chat model.")
        super().__init__(name or type(model).__name__, client=_client(model), prompt=prompt, policy=policy)
        self._name = name

    def __repr__(self) -> str:
        return f"ChatModelThinker({self.model!r})"

    @property
    def identity(self) -> str | None:
        """The name that was given, with the prompt; None without a name."""
        return None if self._name is None else f"langchain {self._name} prompt {self.prompt.fingerprint}"


def _client(model: Runnable[Any, Any]) -> Any:
    """The model in the shape of a chat client, which is what the endpoint's thinker asks."""

    def create(*, messages: Sequence[Mapping[str, str]], **_: Any) -> dict[str, Any]:
        try:
            reply = model.invoke([(message["role"], message["content"]) for message in messages])
        except Exception as error:
            raise ModelCallError from error
        return _completion(reply)

    return SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=create)))


def _completion(reply: Any) -> dict[str, Any]:
    if not isinstance(reply, BaseMessage):
        return {"choices": [{"message": {"content": reply}}]}
    facts = reply.response_metadata
    finish = facts.get("finish_reason") or facts.get("stop_reason") or facts.get("done_reason")
    usage = getattr(reply, "usage_metadata", None) or {}
    return {
        "choices": [
            {
                "message": {**reply.additional_kwargs, "content": _parts(reply.content)},
                "finish_reason": "length" if finish in ("length", "max_tokens", "MAX_TOKENS") else finish,
            }
        ],
        "usage": {
            "prompt_tokens": usage.get("input_tokens"),
            "completion_tokens": usage.get("output_tokens"),
        },
    }


def _parts(content: str | list[Any]) -> str | list[Any]:
    """The content with plain strings of a list as text parts."""
    if isinstance(content, str):
        return content
    return [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
