"""A LangChain chat model as the one who thinks."""

from __future__ import annotations

from typing import Any

from langchain_core.messages import BaseMessage
from langchain_core.runnables import Runnable

from o1_retriever.endpoint.limits import RequestPolicy
from o1_retriever.endpoint.prompt import DEFAULT_PROMPT, ChatPrompt
from o1_retriever.endpoint.reply import completion
from o1_retriever.errors import SettingsError
from o1_retriever.thinkers.endpoint import ModelThinker


class ChatModelThinker(ModelThinker):
    """Thoughts written by a LangChain chat model, or any runnable from messages to a message or a string.

    The model samples as it was configured to: `n_thoughts`, of the thought settings, is how often it is
    asked, and with a temperature of 0 it says the same each time. `prompt` is a `ChatPrompt`, or a message
    with `{query}` in it. `policy` bounds time, retries and parallel calls. With a `name`, the thoughts may
    be kept in the cache under it: change the name when the model or its parameters change.

    Raises `SettingsError` for something that is no runnable.
    """

    library = "langchain"

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

        def complete(messages: list[dict[str, str]]) -> dict[str, Any]:
            return _completion(model.invoke([(message["role"], message["content"]) for message in messages]))

        super().__init__(complete, kind=type(model).__name__, name=name, prompt=prompt, policy=policy)


def _completion(reply: Any) -> dict[str, Any]:
    if not isinstance(reply, BaseMessage):
        return completion({"content": reply}, None, None, None)
    facts, content = reply.response_metadata, reply.content
    finish = facts.get("finish_reason") or facts.get("stop_reason") or facts.get("done_reason")
    usage = getattr(reply, "usage_metadata", None) or {}
    if not isinstance(content, str):  # plain strings of a list are text parts
        content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
    message = {**reply.additional_kwargs, "content": content}
    return completion(message, finish, usage.get("input_tokens"), usage.get("output_tokens"))
