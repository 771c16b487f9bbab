"""The limits that a client keeps to: time, retries, requests at once and per minute, and when to give up."""

from __future__ import annotations

import asyncio
import math
import random
import time
from dataclasses import dataclass, replace

from o1_retriever.endpoint.reply import Answer, Problem
from o1_retriever.errors import SettingsError
from o1_retriever.thought import check_number

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
