"""A LlamaIndex LLM as the one who thinks."""

from __future__ import annotations

from typing import Any

from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.base.llms.types import ChatMessage, ChatResponse

from o1_retriever.endpoint.limits import RequestPolicy
from o1_retriever.endpoint.prompt import DEFAULT_PROMPT, ChatPrompt
from o1_retriever.endpoint.reply import completion
from o1_retriever.errors import SettingsError
from o1_retriever.thinkers.endpoint import ModelThinker


class LLMThinker(ModelThinker):
    """Thoughts written by a LlamaIndex LLM.

    The model samples as it was configured to: `n_thoughts`, of the thought settings, is how often it is
    asked, and with a temperature of 0 it says the same each time. `prompt` is a `ChatPrompt`, or a message
    with `{query}` in it. `policy` bounds time, retries and parallel calls. With a `name`, the thoughts may
    be kept in the cache under it: change the name when the model or its parameters change.

    Raises `SettingsError` for something that is no LLM.
    """

    library = "llama-index"

    def __init__(
        self,
        llm: BaseLLM,
        *,
        prompt: ChatPrompt | str = DEFAULT_PROMPT,
        policy: RequestPolicy | None = None,
        name: str | None = None,
    ) -> None:
        if not isinstance(llm, BaseLLM):
            raise SettingsError(f"llm is a {type(llm).__name__}; expected a LlamaIndex LLM.")

        def complete(messages: list[dict[str, str]]) -> dict[str, Any]:
            return _completion(llm.chat([ChatMessage(**message) for message in messages]))

        super().__init__(complete, kind=type(llm).__name__, name=name, prompt=prompt, policy=policy)


def _completion(reply: ChatResponse) -> dict[str, Any]:
    facts = {**reply.additional_kwargs, **reply.message.additional_kwargs}
    finish = facts.get("finish_reason") or facts.get("stop_reason") or _raw_finish(reply.raw)
    message = {
        "content": reply.message.content,
        "reasoning_content": facts.get("reasoning_content"),
        "refusal": facts.get("refusal"),
    }
    return completion(message, finish, facts.get("prompt_tokens"), facts.get("completion_tokens"))


def _raw_finish(raw: Any) -> Any:
    """Why the model stopped, where the reply carries the provider's own answer in the shape of OpenAI."""
    choices = raw.get("choices") if isinstance(raw, dict) else getattr(raw, "choices", None)
    if not isinstance(choices, list) or not choices:
        return None
    first = choices[0]
    return first.get("finish_reason") if isinstance(first, dict) else getattr(first, "finish_reason", None)
