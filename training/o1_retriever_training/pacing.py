"""Keep to a server's limits of requests and tokens per minute."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from o1_retriever.errors import SettingsError


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


@dataclass(slots=True)
class _Bucket:
    """Fills steadily; `room` may become negative, which is a debt that the next ones wait for."""

    per_minute: float
    burst: float
    room: float = 0.0
    at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.room = self.burst

    def wait(self, now: float) -> float:
        self.room = min(self.burst, self.room + (now - self.at) * self.per_minute / 60)
        self.at = now
        return 0.0 if self.room > 0 else (1e-3 - self.room) * 60 / self.per_minute


class Pacer:
    """Lets requests through at the rate that a limit allows, first come, first served.

    Tokens are known when an answer is there only: `enter` takes an estimate and `settle` the difference.
    After `burst_s` seconds of rest that many seconds' worth may go at once.
    """

    def __init__(self, limit: RateLimit, *, burst_s: float = 1.0) -> None:
        self._turn = asyncio.Lock()
        share = burst_s / 60
        self._requests = _bucket(limit.requests, share)
        self._tokens = _bucket(limit.tokens, share)
        self._closed_until = 0.0

    def rest(self, seconds: float) -> None:
        """Let nothing through for some seconds: the server has asked one request to wait, and means all."""
        self._closed_until = max(self._closed_until, time.monotonic() + seconds)

    async def enter(self, tokens: float) -> None:
        """Wait until a request of about so many tokens may be sent."""
        if self._requests is None and self._tokens is None and time.monotonic() >= self._closed_until:
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


def _bucket(per_minute: float | None, share: float) -> _Bucket | None:
    return None if per_minute is None else _Bucket(per_minute, max(1.0, per_minute * share))
