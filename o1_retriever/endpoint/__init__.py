"""Thoughts from an OpenAI-compatible chat server: vLLM, Ollama, llama.cpp, or a hosted one.

`prompt` is what is asked, `dialect` what the server accepts, `reply` what came back, `problem` what went
wrong, `crew` who asks in parallel, and `thinker` puts them together.
"""

from __future__ import annotations

from o1_retriever.endpoint.crew import RequestPolicy
from o1_retriever.endpoint.prompt import DEFAULT_PROMPT, ChatPrompt
from o1_retriever.endpoint.thinker import OpenAIThinker

__all__ = ["DEFAULT_PROMPT", "ChatPrompt", "OpenAIThinker", "RequestPolicy"]
