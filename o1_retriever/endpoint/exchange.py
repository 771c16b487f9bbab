"""An exchange with a chat server: what comes back, and the limits that a client keeps to.

What comes back is a thought, or a problem and whether asking again can help. The limits are time, retries,
requests at once and per minute, and when to give up.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeAlias

from o1_retriever.endpoint.chat import Reasoning, Written, read_written, refused
from o1_retriever.errors import SettingsError
from o1_retriever.thought import Finish, Thought, check_number

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


FEWEST_FAILURES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestPolicy:
    """How to ask a server: at most `concurrency` requests at a time, each given `timeout` seconds.

    A request that may succeed later is sent again up to `retries` times, after `backoff`, 2 x, 4 x ...
    seconds (with jitter, at most `longest_wait`) or as long as the server asks for. One thought takes
    `deadline` seconds at most, everything included. When a server does not work for as many thoughts
    as there are requests at a time (at least 4), and has not answered for `deadline` seconds or at all,
    the rest of a call is not asked any more.

    Raises `SettingsError` for a value out of range.
    """

    concurrency: int = 8
    timeout: float = 60.0
    retries: int = 3
    backoff: float = 0.5
    longest_wait: float = 30.0
    deadline: float = 120.0

    def __post_init__(self) -> None:
        check_number("concurrency", self.concurrency, 1, 1024, whole=True)
        check_number("retries", self.retries, 0, 100, whole=True)
        check_number("timeout", self.timeout, 0.001, 86_400)
        check_number("backoff", self.backoff, 0, 3600)
        check_number("longest_wait", self.longest_wait, 0, 86_400)
        check_number("deadline", self.deadline, 0.001, 604_800)

    def wait(self, tried: int, retry_after: float | None) -> float:
        """Seconds to wait after `tried` attempts; `retry_after` is what the server asks for, if it does."""
        if retry_after is not None:
            return retry_after * random.uniform(1.0, 1.1)
        return min(self.longest_wait, self.backoff * 2.0 ** (tried - 1)) * random.uniform(0.5, 1.0)


class Patience:
    """Decides after every answer whether the server is worth another request.

    It is not when as many requests in a row as there are at a time (at least 4) have failed because of the
    server, and no answer has come for `silence` seconds or ever. When the caller has to change something
    first, one refusal is enough while no answer has come for so long.
    """

    def __init__(self, policy: RequestPolicy, *, silence: float) -> None:
        self.enough = max(FEWEST_FAILURES, policy.concurrency)
        self._silence = silence
        self._answered = -math.inf
        self.failures = 0  # in a row
        self.ended: Problem | None = None  # why no more requests are sent
        self.hopeless = False  # whether those on their way are not worth waiting for either

    def judge(self, answer: Answer) -> None:
        """Take note of an answer."""
        if not isinstance(answer, Problem) or not (answer.down or answer.setup):
            self.failures, self._answered = 0, time.monotonic()
            return
        self.failures += 1
        enough = self.failures >= self.enough
        silent = time.monotonic() - self._answered > self._silence
        if self.ended is None and ((silent and (enough or answer.setup)) or (enough and answer.setup)):
            self.ended = answer
            self.hopeless = answer.setup is not None and self._answered == -math.inf

    def not_asked(self) -> Problem:
        """What is recorded for a request that was not sent because asking had `ended`."""
        if self.ended is None:
            raise RuntimeError("A request was left without an answer.")
        return replace(
            self.ended, reason=f"not asked after others had failed: {self.ended.reason}", cost=(0, 0)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit:
    """At most so many `requests` and `tokens` in a minute; None: no limit. Raises `SettingsError` below 1."""

    requests: float | None = None
    tokens: float | None = None

    def __post_init__(self) -> None:
        for name in ("requests", "tokens"):
            value = getattr(self, name)
            if value is not None and not value >= 1:
                raise SettingsError(f"{name} per minute is {value!r}; expected at least 1.")


class _Bucket:
    """Fills steadily; `room` may become negative, which is a debt that the next ones wait for.

    After a second of rest that second's worth, and at least one, may go at once.
    """

    def __init__(self, per_minute: float) -> None:
        self.per_minute = per_minute
        self.burst = self.room = max(1.0, per_minute / 60)
        self.at = time.monotonic()

    def wait(self, now: float) -> float:
        self.room = min(self.burst, self.room + (now - self.at) * self.per_minute / 60)
        self.at = now
        return 0.0 if self.room > 0 else (1e-3 - self.room) * 60 / self.per_minute


class Pacer:
    """Lets requests through at the rate that a limit allows, first come, first served.

    Tokens are known when an answer is there only: `enter` takes an estimate and `settle` the difference.
    """

    def __init__(self, limit: RateLimit) -> None:
        self._turn = asyncio.Lock()
        self._requests = None if limit.requests is None else _Bucket(limit.requests)
        self._tokens = None if limit.tokens is None else _Bucket(limit.tokens)
        self.limited = self._requests is not None or self._tokens is not None
        """Whether there is a limit at all; a rest that the server asks for is kept in any case."""
        self._closed_until = 0.0

    def rest(self, seconds: float) -> None:
        """Let nothing through for some seconds: the server has asked one request to wait, and means all."""
        self._closed_until = max(self._closed_until, time.monotonic() + seconds)

    async def enter(self, tokens: float) -> None:
        """Wait until a request of about so many tokens may be sent."""
        if not self.limited and time.monotonic() >= self._closed_until:
            return
        async with self._turn:
            while (wait := self._wait()) > 0:
                await asyncio.sleep(wait)
            if self._requests:
                self._requests.room -= 1
            if self._tokens:
                self._tokens.room -= tokens

    def settle(self, estimated: float, used: float) -> None:
        """Say what a request has really cost."""
        if self._tokens:
            self._tokens.room += estimated - used

    def _wait(self) -> float:
        now = time.monotonic()
        waits = [bucket.wait(now) for bucket in (self._requests, self._tokens) if bucket]
        return max(self._closed_until - now, *waits, 0.0)
