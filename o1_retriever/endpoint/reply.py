"""What comes back from a chat server: a thought, or a problem and whether asking again can help.

Every family of models marks its reasoning and the end of its turn in a way of its own, and servers pass on
what they do not know. All of it is read here (`read_written`), for replies of a server and for drafts of a
local model.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal, TypeAlias, get_args

from o1_retriever.errors import SettingsError
from o1_retriever.thought import Finish, Thought

SPENT = (
    "the model was still reasoning when its {limit} tokens were spent; raise max_new_tokens, or turn the "
    "reasoning off (many servers take extra_body={{'chat_template_kwargs': {{'enable_thinking': False}}}})"
)
REASONED = (
    "the reply is empty beside its reasoning; pass reasoning='thought' to the thinker to take the reasoning "
    "as the thought, or turn it off at the server"
)
# The server did understand, and will say the same for every query: the caller has to change something.
SETUP = {
    401: "Pass the right api_key=, or set OPENAI_API_KEY.",
    402: "The account behind the key has to be topped up.",
    403: "The key is not allowed to use this model: pass another api_key= or model=.",
    404: "Check the model's name, and that base_url ends where '/chat/completions' follows (mostly in /v1).",
    405: "Check base_url: '/chat/completions' is appended to it, so that it mostly ends in /v1.",
}
# An error that may pass, told by its words, where a server gives no number.
BUSY = re.compile(
    r"overload|rate.?limit|too many|busy|capacity|try again|temporar|time.?out|unavailable|loading", re.I
)
PASSING = {408, 409, 425, 429}
UNREACHED = {"APIConnectionError", "TransportError", "ConnectionError", "TimeoutError"}
LONGEST_REASON = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Why an attempt brought no thought.

    `retry`: the same request may succeed later, not before `wait` seconds (None: the server did not say).
    `down`: the server did not work, as against one query that it would not answer.
    `setup`: what the caller has to change, when no query can succeed until then.
    `cost` is what the attempt cost, in tokens of the prompt and of the completion.
    """

    reason: str
    retry: bool = False
    down: bool = False
    wait: float | None = None
    setup: str | None = None
    cost: tuple[int, int] = (0, 0)


Answer: TypeAlias = Thought | Problem


def cost_of(answer: Answer) -> tuple[int, int]:
    """Tokens of the prompt and of the completion that an answer has cost."""
    if isinstance(answer, Problem):
        return answer.cost
    return answer.prompt_tokens, answer.completion_tokens


def read_reply(reply: Any, *, limit: int, reasoning: Reasoning = "off") -> Answer:
    """The thought of the first choice, without the model's reasoning; a `Problem` where there is none.

    `limit` is the number of tokens that the model was allowed. With `reasoning="thought"` the reasoning is
    the thought where nothing else was written. The fields are looked up one by one, because servers leave out
    what the client's types promise.
    """
    choices = _field(reply, "choices")
    completed = isinstance(choices, list | tuple) and choices
    choice = choices[0] if completed else None
    error = _field(choice, "error") or _field(reply, "error")
    if error:
        return _diagnose_body(error)
    if not completed:
        found = quote(reply) if isinstance(reply, str) else f"{type(reply).__name__} without choices: {reply}"
        return Problem(reason=f"the reply is no chat completion, but {found!r}", retry=True, down=True)
    message, finish = _field(choice, "message"), _field(choice, "finish_reason")
    usage = _field(reply, "usage")
    cost = _count(_field(usage, "prompt_tokens")), _count(_field(usage, "completion_tokens"))
    content, beside = _content(message)
    written = read_written(content, cut=finish == "length")
    written = replace(written, reasoning=written.reasoning or beside.strip())
    text = written.thought(reasoning)
    if not text or refused(text):
        return _unusable(message, finish, written, limit=limit, cost=cost)
    ended: Finish = "length" if finish == "length" else "eos"
    return Thought(text=text, finish=ended, prompt_tokens=cost[0], completion_tokens=cost[1])


def _unusable(message: Any, finish: Any, written: Written, *, limit: int, cost: tuple[int, int]) -> Problem:
    """Why a message holds no thought."""
    refusal = _refusal(message) or (written.answer if refused(written.answer) else "")
    if refusal.strip():
        return Problem(reason=f"the model refused: {quote(refusal)}", cost=cost)
    if finish == "content_filter":
        return Problem(reason="the server's content filter removed the reply", cost=cost)
    if written.unfinished or finish == "length":
        return Problem(reason=SPENT.format(limit=limit), cost=cost)
    if _field(message, "tool_calls"):
        return Problem(reason="the model called a tool, and wrote nothing", cost=cost)
    if written.reasoning:
        return Problem(reason=REASONED, retry=True, cost=cost)
    return Problem(reason="the reply is empty", retry=True, cost=cost)


def _content(message: Any) -> tuple[str, str]:
    """The text of a message, and the reasoning beside it (in a field or in parts of its own)."""
    fields = (_field(message, name) for name in ("reasoning_content", "reasoning", "thinking"))
    beside = next((field for field in fields if isinstance(field, str) and field), "")
    content = _field(message, "content")
    if not isinstance(content, list):
        return (content if isinstance(content, str) else ""), beside
    return _texts(content, "text", "output_text"), beside or _texts(content, "thinking", "reasoning")


class StreamedReply:
    """A reply that comes in pieces, put together as the completion that it would be in one."""

    def __init__(self) -> None:
        self._content, self._reasoning, self._refusal = "", "", ""
        self._finish: Any = None
        self._usage: Any = None
        self._error: Any = None
        self._calls = False

    @property
    def text(self) -> str:
        """All that has come: the reasoning first, then the answer."""
        parts = _whole(self._reasoning).strip(), _whole(self._content).lstrip()
        return "\n\n".join(part for part in parts if part)

    def add(self, chunk: Any) -> None:
        """Take in one chunk of the stream. Those without a choice may tell what was used."""
        self._usage = _field(chunk, "usage") or self._usage
        choices = _field(chunk, "choices")
        choice = choices[0] if isinstance(choices, list | tuple) and choices else None
        self._error = _field(chunk, "error") or _field(choice, "error") or self._error
        self._finish = _field(choice, "finish_reason") or self._finish
        delta = _field(choice, "delta")
        if delta is None:  # a last chunk may repeat the whole message beside an empty delta
            delta = _field(choice, "message")
        content, reasoning = _content(delta)
        self._content += content
        self._reasoning += reasoning
        self._refusal += _refusal(delta)
        self._calls = self._calls or bool(_field(delta, "tool_calls"))

    def completion(self) -> dict[str, Any] | None:
        """The whole; None where the stream ended before the reply did."""
        if self._error:
            return {"error": self._error}
        if self._finish is None:
            return None
        written = _whole(self._content), _whole(self._reasoning), _whole(self._refusal)
        names = ("content", "reasoning_content", "refusal")
        message = {**dict(zip(names, written, strict=True)), "tool_calls": self._calls}
        return {"choices": [{"message": message, "finish_reason": self._finish}], "usage": self._usage}


def _whole(text: str) -> str:
    """The text with characters that came in two halves put together, and without a half alone."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "ignore")


class BrokenStreamError(Exception):
    """A stream ended before the reply did."""


def _texts(parts: Any, *kinds: str) -> str:
    """The text in the parts of some kinds, one behind the other; a part may hold parts of its own."""
    written = []
    for part in parts if isinstance(parts, list) else ():
        if (kind := _field(part, "type")) in kinds:
            held = _field(part, "text") or _field(part, kind)
            written.append(held if isinstance(held, str) else _texts(held, "text"))
    return "".join(written)


def _refusal(message: Any) -> str:
    refusal = _field(message, "refusal") or _texts(_field(message, "content"), "refusal")
    return refusal if isinstance(refusal, str) else ""


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else getattr(value, name, None)


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def completion(message: Mapping[str, Any], finish: Any, prompt: Any, written: Any) -> dict[str, Any]:
    """What another library's model has replied, as a chat completion; `prompt` and `written` count tokens."""
    cut = finish in ("length", "max_tokens", "MAX_TOKENS")
    return {
        "choices": [{"message": message, "finish_reason": "length" if cut else finish}],
        "usage": {"prompt_tokens": prompt, "completion_tokens": written},
    }


class ModelCallError(Exception):
    """Raised, from the cause, by a client that stands for another library's model: the call failed."""


def diagnose(error: Exception, *, timeout: float) -> Problem | None:
    """The problem behind an exception of the client; None for one that is no answer of a server, but a bug.

    The exceptions are told by their shape, so that any client with the names of `openai` will do.
    """
    if isinstance(error, ModelCallError):
        return _diagnose_failure(error, timeout=timeout)
    names = {kind.__name__ for kind in type(error).__mro__}
    status = getattr(error, "status_code", None)
    if isinstance(status, int) and status >= 400:
        return _diagnose_status(error, status)
    if "APITimeoutError" in names or isinstance(error, TimeoutError):
        return Problem(reason=f"no answer within {timeout:g} s", retry=True, down=True)
    if isinstance(error, BrokenStreamError):
        return Problem(reason=str(error), retry=True, down=True)
    if names & UNREACHED:
        return Problem(reason=f"no connection ({_cause(error)})", retry=True, down=True)
    if "APIError" in names and getattr(error, "body", None) is not None:  # a stream may end with one
        return _diagnose_body(error.body)  # type: ignore[attr-defined]
    if isinstance(error, ValueError) or "APIResponseValidationError" in names:
        return Problem(reason=f"the reply is not valid JSON ({quote(error)})", retry=True, down=True)
    return None


def _diagnose_failure(failure: ModelCallError, *, timeout: float) -> Problem:
    cause = failure.__cause__
    # A ValueError means bad JSON in the client of openai only.
    if isinstance(cause, Exception) and not isinstance(cause, ValueError):
        known = diagnose(cause, timeout=timeout)
        if known is not None:
            return known
    reason = f"the model failed ({type(cause or failure).__name__}: {quote(cause or failure)})"
    return Problem(reason=reason, retry=True, down=True)


def _diagnose_body(error: Any) -> Problem:
    """The problem in an error that came with the status 200, as routers send it."""
    status = _field(error, "code") or _field(error, "status")
    status = int(status) if isinstance(status, int | str) and str(status).isdecimal() else None
    words = quote((isinstance(error, str) and error) or _field(error, "message") or error)
    reason = f"the server answered 200 with an error: {words}"
    if status in SETUP:
        return Problem(reason=reason, setup=SETUP[status])
    passing = status is None or status in PASSING or status >= 500 or bool(BUSY.search(words))
    return Problem(reason=reason, retry=passing, down=passing)


def _diagnose_status(error: Exception, status: int) -> Problem:
    # The server's own words: the client's message may be the bare status.
    body: Any = getattr(error, "body", None)
    if isinstance(body, dict):
        body = body.get("message") or body.get("detail") or body.get("error") or body
    reason = f"the server answered {status}: {quote(body or error)}"
    if status in SETUP:
        return Problem(reason=reason, setup=SETUP[status])
    if status == 429 and getattr(error, "code", None) == "insufficient_quota":
        return Problem(reason=reason, setup=SETUP[402])
    passing = status in PASSING or status >= 500
    return Problem(reason=reason, retry=passing, down=passing, wait=_retry_after(error) if passing else None)


def _retry_after(error: Exception) -> float | None:
    """Seconds that the server asks to wait, from `Retry-After` (seconds or a date) or `retry-after-ms`."""
    headers: Mapping[str, str] = getattr(getattr(error, "response", None), "headers", {})
    milliseconds, value = _number(headers.get("retry-after-ms")), headers.get("retry-after")
    if milliseconds is not None:
        return milliseconds / 1000
    seconds = _number(value)
    if seconds is not None or value is None:
        return seconds
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())


def _number(value: str | None) -> float | None:
    try:
        number = float(value) if value is not None else math.nan
    except ValueError:
        return None
    return max(0.0, number) if math.isfinite(number) else None


def quote(value: object) -> str:
    """What a server or an exception said, on one line."""
    return re.sub(r"\s+", " ", str(value)).strip()


def presentable(problem: Problem, *, secret: object) -> Problem:
    """The same problem with a reason of bounded length, in which a `secret` string is not told on."""
    reason = problem.reason
    if isinstance(secret, str) and secret.strip():  # before it is cut, or a part of it would stay
        # As an exception quotes a key with a line break in it, say, and without the white space around it.
        for form in (repr(secret)[1:-1], repr(secret.strip())[1:-1], secret.strip()):
            reason = reason.replace(form, "***")
    if len(reason) > LONGEST_REASON:
        reason = reason[: LONGEST_REASON - 1] + "…"
    return replace(problem, reason=reason)


def _cause(error: BaseException) -> str:
    """The innermost cause: the clients wrap 'Connection refused' into 'Connection error.'."""
    seen: list[BaseException] = [error]
    while (inner := _inner(seen[-1])) is not None and inner not in seen:
        seen.append(inner)
    cause = next((each for each in reversed(seen) if str(each).strip()), seen[-1])
    if isinstance(cause, ConnectionError) and cause.errno:  # asyncio words it in its own way
        return f"[Errno {cause.errno}] {os.strerror(cause.errno)}"
    return quote(cause) or type(cause).__name__


def _inner(error: BaseException) -> BaseException | None:
    """The cause of an exception; of several, as for a name with several addresses, the first."""
    if isinstance(error, BaseExceptionGroup):
        return error.exceptions[0]
    return error.__cause__ or error.__context__


Reasoning = Literal["off", "thought"]

_NAMES = r"(?:seed:)?(?:think|thinking|thoughts?|reasoning)"
# How reasoning begins and ends, by the families that write it so.
_MARKS = (
    (rf"<{_NAMES}>", rf"</{_NAMES}>"),  # DeepSeek, Qwen, EXAONE, Seed
    (r"\[THINK\]", r"\[/THINK\]"),  # Magistral
    ("◁think▷", "◁/think▷"),  # Kimi
    (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),  # Command
    (r"<\|channel>\s*thought\b", r"<channel\|>"),  # Gemma
    (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),  # OpenThinker
)
_FLAGS = re.DOTALL | re.IGNORECASE
_BLOCK = re.compile("|".join(f"{opening}.*?{closing}" for opening, closing in _MARKS), _FLAGS)
_OPENING = re.compile("|".join(opening for opening, _ in _MARKS), _FLAGS)
_CLOSING = re.compile("|".join(closing for _, closing in _MARKS), _FLAGS)
# Harmony (gpt-oss) names a channel before every message; some servers leave the names and drop the marks.
_CHANNEL = re.compile(
    r"(?:<\|end\|>\s*)?(?:<\|start\|>\w*)?<\|channel\|>\s*(\w+)[^<]*(?:<\|constrain\|>\w*)?<\|message\|>"
)
_MESSAGE_END = re.compile(r"<\|(?:end|return|call)\|>")
_BARE_ANALYSIS = re.compile(r"analysis(?=[A-Z])")
_BARE_FINAL = re.compile(r"assistant\s*final(?=[A-Z\W])")

# Where a turn ends, whatever comes behind it; and what a turn begins with.
_TURN_END = re.compile(
    r"<\|(?:im_end|im_start|eot_id|eom_id|start_header_id|endoftext|end_of_text|end|return|endofturn|user"
    r"|end_of_turn|END_OF_TURN_TOKEN|END_RESPONSE|end_of_solution|end_of_role)\|>"
    r"|<(?:end_of_turn|start_of_turn|eos)>|<turn\|>|<｜end▁of▁sentence｜>|<｜User｜>|\[\|endofturn\|\]|</s>"
)
_TURN_START = re.compile(
    r"(?:\s*(?:<s>|<bos>|<\|begin_of_text\|>|<\|im_start\|>\s*assistant|<start_of_turn>model|<\|assistant\|>"
    r"|<\|start_header_id\|>\s*assistant\s*<\|end_header_id\|>|<｜Assistant｜>|<\|START_RESPONSE\|>"
    r"|<\|begin_of_solution\|>|\[\|assistant\|\]))+"
)
_WRAPPER = re.compile(r"<(answer|response|output|final)>(.*?)(?:</\1>|\Z)", _FLAGS)
_FENCE = re.compile(r"(`{3,}|~{3,})[^\n`]*\n(.*?)\n?\s*(?:\1|\Z)", re.DOTALL)
# Control characters but tab and line feed, and halves of characters, which nothing can store.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_FIELDS = ("thought", "answer", "passage", "text", "response", "content", "output", "document", "explanation")

# "We" refuses where it is the asker or the request that is spoken of: "we cannot create energy" is a truth.
_ASKED = (
    r"(?=[^.!?,:;]{0,60}\b(?:requests?|you|your"
    r"|(?:this|that)(?=\s*(?:$|[.!?,;])|\s+(?:information|question|query|topic|content|kind|type|sort)\b)))"
)
_REFUSAL = re.compile(
    r"(?:[\w ,’']{0,40}?(?:sorry|apologi[sz]e|unfortunately)\b[^.!?]{0,60}?|as an ai\b[^.!?]{0,40}?)?"
    r"[\s,;:.!—-]*(?:but )?(?:i|we" + _ASKED + r")\b[’']?\s?"
    r"(?:can(?:no|[’'])t|can not|won[’']t|will not|(?:must |have to )?(?:decline|refuse)"
    r"|a?m (?:sorry|unable|not able|not allowed|not comfortable|(?:just |only )an? )"
    r"|do(?: not|n[’']t) (?:know (?:the answer|how to)|have (?:enough|any|access|the|personal)))",
    re.IGNORECASE,
)
_HELP = re.compile(
    r"\b(?:help|assist|provide|answer|comply|create|generate|write|continue|discuss|engage|support|share|offer"
    r"|do (?:that|this)|request|information|access|ability|language model|opinions?)\b",
    re.IGNORECASE,
)
_LONGEST_REFUSAL = 400  # characters: what is longer says something beside the refusal
SENTENCE_END = re.compile(r"[.!?…][\"'”’)\]]*(?=\s|$)")


@dataclass(frozen=True, slots=True)
class Written:
    """A text of a model: its `answer`, its `reasoning`, and whether it ends `unfinished`, in reasoning."""

    answer: str
    reasoning: str = ""
    unfinished: bool = False

    def thought(self, reasoning: Reasoning) -> str:
        """The answer; without one the reasoning, where that counts; else nothing."""
        if self.answer and not self.unfinished:
            return self.answer
        return self.reasoning if reasoning == "thought" else ""


def check_reasoning(value: object) -> None:
    """Raises `SettingsError` for anything but what `reasoning=` may be."""
    if value not in get_args(Reasoning):
        raise SettingsError(f"reasoning is {value!r:.60}; expected 'off' or 'thought'.")


def read_written(text: str, *, cut: bool) -> Written:
    """Take a model's text apart. `cut`: it ended at its limit of tokens, not by itself.

    A block that was opened by the chat template shows its end alone; what stands before it is reasoning
    too. An opening mark is taken at its word at the beginning of a text, or in one that was cut.
    """
    if (channels := _channels(text)) is not None:
        answer, reasoning, unfinished = channels
    else:
        answer, reasoning, unfinished = _blocks(text, cut=cut)
    return Written(_unwrapped(_turn(answer)), _turn(reasoning), unfinished)


def refused(text: str) -> bool:
    """Whether a text is a refusal in one of the common wordings, and nothing else."""
    if len(text) > _LONGEST_REFUSAL:
        return False
    return bool(_REFUSAL.match(text.strip()) and _HELP.search(text))


def whole_sentences(text: str) -> str:
    """The text up to the end of its last whole sentence; all of it where it has none."""
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    return text[: ends[-1]] if ends else text


def _channels(text: str) -> tuple[str, str, bool] | None:
    """Answer and reasoning of harmony's messages; None for a text without channels."""
    first, *rest = _CHANNEL.split(text)
    if rest:
        messages = [("analysis", first), *zip(rest[::2], rest[1::2], strict=True)]
    elif _BARE_ANALYSIS.match(text):
        thinking, *final = _BARE_FINAL.split(text[len("analysis") :], maxsplit=1)
        messages = [("analysis", thinking), *(("final", each) for each in final)]
    else:
        return None
    bodies = [(channel, _MESSAGE_END.split(body)[0]) for channel, body in messages]
    answer = "".join(body for channel, body in bodies if channel == "final")
    thinking = "\n".join(body.strip() for channel, body in bodies if channel != "final")
    return answer, thinking, all(channel != "final" for channel, _ in bodies)


def _blocks(text: str, *, cut: bool) -> tuple[str, str, bool]:
    blocks = _BLOCK.findall(text)
    *before, answer = _CLOSING.split(_BLOCK.sub("", text))
    closed_twice = len(_CLOSING.findall(text)) > len(_OPENING.findall(text))
    if before and blocks and closed_twice and not answer.strip():
        *before, answer = before
    opening = _OPENING.search(answer.strip())
    unfinished = opening is not None and (cut or opening.start() == 0)
    reasoning = [*blocks, *before, *([answer] if unfinished else [])]
    return answer, " ".join(_without_marks(reasoning)), unfinished


def _without_marks(pieces: Iterable[str]) -> list[str]:
    return [_OPENING.sub("", _CLOSING.sub("", piece)).strip() for piece in pieces]


def _turn(text: str) -> str:
    """The text of one turn, without the marks around it and without what cannot be shown."""
    start = _TURN_START.match(text)
    text = text[start.end() :] if start else text
    return _CONTROL.sub("", _TURN_END.split(text, maxsplit=1)[0]).strip()


def _unwrapped(text: str) -> str:
    """What stands in a tag, a code fence or a JSON object, where that is all of the text."""
    for wrapper in (_WRAPPER, _FENCE):
        whole = wrapper.fullmatch(text)
        text = whole.group(2).strip() if whole else text
    if not text.startswith(("{", "[")):
        return text
    try:
        return _from_json(json.loads(text)) or text
    except (ValueError, RecursionError):
        return text


def _from_json(value: Any) -> str:
    """The text in a JSON value; empty where it is not clear which it is."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, list):
        return "\n".join(value).strip() if all(isinstance(each, str) for each in value) else ""
    if not isinstance(value, dict):
        return ""
    texts = {name.lower(): each for name, each in value.items() if isinstance(each, str | list)}
    named = [texts[name] for name in _FIELDS if name in texts]
    return _from_json(named[0] if named else next(iter(texts.values()))) if named or len(texts) == 1 else ""
