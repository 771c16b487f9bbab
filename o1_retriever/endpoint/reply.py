"""The thought in a chat completion."""

from __future__ import annotations

import re
from typing import Any

from o1_retriever.endpoint.problem import Problem, quote
from o1_retriever.errors import InputError
from o1_retriever.query import check_text
from o1_retriever.thought import Thought

NAMES = r"(?:think|thinking|reasoning)"
BLOCK = re.compile(rf"<{NAMES}>.*?</{NAMES}>|\[THINK\].*?\[/THINK\]", re.DOTALL | re.IGNORECASE)
OPENING = re.compile(rf"<{NAMES}>|\[THINK\]", re.IGNORECASE)
CLOSING = re.compile(rf"</{NAMES}>|\[/THINK\]", re.IGNORECASE)
SPENT = (
    "the model was still reasoning when its {limit} tokens were spent; raise max_new_tokens, or turn the "
    "reasoning off (many servers take extra_body={{'chat_template_kwargs': {{'enable_thinking': False}}}})"
)


def read_reply(reply: Any, *, limit: int) -> Thought | Problem:
    """The thought of the first choice, without the model's reasoning; a `Problem` where there is none.

    `limit` is the number of tokens that the model was allowed. The fields are looked up one by one,
    because servers leave out what the client's types promise.
    """
    choices = _field(reply, "choices")
    if not isinstance(choices, list | tuple) or not choices:
        found = quote(reply) if isinstance(reply, str) else f"{type(reply).__name__} without choices"
        return Problem(reason=f"the reply is no chat completion, but {found!r}", retry=True, down=True)
    message = _field(choices[0], "message")
    finish = _field(choices[0], "finish_reason")
    usage = _field(reply, "usage")
    cost = _count(_field(usage, "prompt_tokens")), _count(_field(usage, "completion_tokens"))
    content, reasoned = _content(message)
    text, unfinished = without_reasoning(content, cut=finish == "length")
    if unfinished or (not text and reasoned and finish == "length"):
        return Problem(reason=SPENT.format(limit=limit), cost=cost)
    try:
        check_text(text, what="reply")
    except InputError as error:
        return _unusable(message, finish, error, cost)
    return Thought(
        text=text,
        finish="length" if finish == "length" else "eos",
        prompt_tokens=cost[0],
        completion_tokens=cost[1],
    )


def without_reasoning(content: str, *, cut: bool) -> tuple[str, bool]:
    """The text outside of reasoning blocks, and whether a block is left open.

    A block that was opened by the chat template shows its end alone; what stands before it is reasoning
    too. An opening tag is taken at its word at the beginning of a text, or in one that was `cut`.
    """
    text = BLOCK.sub("", content)
    *_, text = CLOSING.split(text)
    text = text.strip()
    opening = OPENING.search(text)
    return text, opening is not None and (cut or opening.start() == 0)


def _unusable(message: Any, finish: Any, error: InputError, cost: tuple[int, int]) -> Problem:
    refusal = _field(message, "refusal")
    if isinstance(refusal, str) and refusal.strip():
        return Problem(reason=f"the model refused: {quote(refusal)}", cost=cost)
    if finish == "content_filter":
        return Problem(reason="the server's content filter removed the reply", cost=cost)
    return Problem(reason=error.message, retry=True, cost=cost)


def _content(message: Any) -> tuple[str, bool]:
    """The text of a message, and whether reasoning came beside it (in a field or a part of its own)."""
    fields = (_field(message, name) for name in ("reasoning_content", "reasoning"))
    reasoned = any(isinstance(field, str) and field.strip() for field in fields)
    content = _field(message, "content")
    if not isinstance(content, list):
        return (content if isinstance(content, str) else ""), reasoned
    texts = [part for part in content if _field(part, "type") in ("text", "output_text")]
    written = [text for part in texts if isinstance(text := _field(part, "text"), str)]
    return "".join(written), reasoned or len(texts) < len(content)


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else getattr(value, name, None)


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0
