"""A LlamaIndex LLM as the one who thinks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.base.llms.types import ChatMessage, ChatResponse

from o1_retriever.endpoint import DEFAULT_PROMPT, ChatPrompt, OpenAIThinker, RequestPolicy
from o1_retriever.endpoint.problem import ModelCallError
from o1_retriever.errors import SettingsError


class LLMThinker(OpenAIThinker):
    """Thoughts written by a LlamaIndex LLM.

    The model samples as it was configured to: `k`, of the thought settings, is how often it is asked, and
    with a temperature of 0 it says the same each time. `prompt` is a `ChatPrompt`, or a message with
    `{query}` in it. `policy` bounds time, retries and parallel calls. With a `name`, the thoughts may be
    kept in the cache under it: change the name when the model or its parameters change.

    Raises `SettingsError` for something that is no LLM.
    """

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
        super().__init__(name or type(llm).__name__, client=_client(llm), prompt=prompt, policy=policy)
        self._name = name

    def __repr__(self) -> str:
        return f"LLMThinker({self.model!r})"

    @property
    def identity(self) -> str | None:
        """The name that was given, with the prompt; None without a name."""
        return None if self._name is None else f"llama-index {self._name} prompt {self.prompt.fingerprint}"


def _client(llm: BaseLLM) -> Any:
    """The LLM in the shape of a chat client, which is what the endpoint's thinker asks."""

    def create(*, messages: Sequence[Mapping[str, str]], **_: Any) -> dict[str, Any]:
        chat = [ChatMessage(role=message["role"], content=message["content"]) for message in messages]
        try:
            reply = llm.chat(chat)
        except Exception as error:
            raise ModelCallError from error
        return _completion(reply)

    return SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=create)))


def _completion(reply: ChatResponse) -> dict[str, Any]:
    facts = {**reply.additional_kwargs, **reply.message.additional_kwargs}
    finish = facts.get("finish_reason") or facts.get("stop_reason") or _raw_finish(reply.raw)
    message = {
        "content": reply.message.content,
        "reasoning_content": facts.get("reasoning_content"),
        "refusal": facts.get("refusal"),
    }
    return {
        "choices": [
            {
                "message": message,
                "finish_reason": "length" if finish in ("length", "max_tokens", "MAX_TOKENS") else finish,
            }
        ],
        "usage": {
            "prompt_tokens": facts.get("prompt_tokens"),
            "completion_tokens": facts.get("completion_tokens"),
        },
    }


def _raw_finish(raw: Any) -> Any:
    """Why the model stopped, where the reply carries the provider's own answer in the shape of OpenAI."""
    choices = raw.get("choices") if isinstance(raw, dict) else getattr(raw, "choices", None)
    if not isinstance(choices, list) or not choices:
        return None
    first = choices[0]
    return first.get("finish_reason") if isinstance(first, dict) else getattr(first, "finish_reason", None)
