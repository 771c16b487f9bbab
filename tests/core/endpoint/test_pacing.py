"""The pace of requests: what a server allows, and not more."""

from __future__ import annotations

import asyncio
import time

import pytest

from o1_retriever.endpoint.chat import ChatPrompt, ChatRequest
from o1_retriever.endpoint.client import ChatClient
from o1_retriever.endpoint.exchange import Pacer, Patience, RateLimit, RequestPolicy
from o1_retriever.errors import SettingsError
from o1_retriever.query import Query
from o1_retriever.thought import Thought
from tests.support.asking import QUICK, SETTINGS
from tests.support.chat_server import ChatServer


async def enter_all(pacer: Pacer, count: int, *, guess: float, used: float) -> float:
    started = time.monotonic()

    async def one() -> None:
        await pacer.enter(guess)
        pacer.settle(guess, used)

    await asyncio.gather(*(one() for _ in range(count)))
    return time.monotonic() - started


async def test_tokens_are_counted_as_they_were_used() -> None:
    # 6000 a minute are 100 a second: 60 requests of 1 token need no wait, 6 of 50 tokens 2 seconds' worth.
    pacer = Pacer(RateLimit(tokens=6000))
    assert await enter_all(pacer, 60, guess=50, used=1) < 15  # half a minute by the estimate
    pacer = Pacer(RateLimit(tokens=6000))
    assert await enter_all(pacer, 6, guess=1, used=50) > 1.4


async def test_an_estimate_holds_back_what_is_in_flight() -> None:
    pacer = Pacer(RateLimit(tokens=6000))
    started = time.monotonic()
    for _ in range(4):
        await pacer.enter(60)  # nothing is settled: all are still in flight
    assert time.monotonic() - started > 0.7


async def test_all_rest_when_a_server_asks_one_to_wait() -> None:
    pacer = Pacer(RateLimit())
    await enter_all(pacer, 9, guess=1, used=1)
    pacer.rest(0.5)
    assert 0.45 < await enter_all(pacer, 9, guess=1, used=1) < 4, "together, and not one after the other"


async def test_what_the_pace_takes_is_not_taken_from_the_time_of_a_thought(server: ChatServer) -> None:
    policy = RequestPolicy(**{**QUICK, "deadline": 1.5, "retries": 0})
    # 5 at once, then 5 a second: the last of 15 waits for longer than the deadline.
    client = ChatClient("m", base_url=server.url, policy=policy, limit=RateLimit(requests=300))
    prompt, query = ChatPrompt(), Query("why?")
    requests = [ChatRequest(query=query, prompt=prompt, index=n, settings=SETTINGS) for n in range(15)]
    started = time.monotonic()
    answers = await client.ask_all(requests, Patience(policy, silence=policy.deadline))
    assert time.monotonic() - started > policy.deadline
    assert all(isinstance(answer, Thought) for answer in answers), answers
    await client.close()


@pytest.mark.parametrize("limit", [{"requests": 0}, {"tokens": -1}, {"requests": float("nan")}])
def test_a_limit_below_one_is_refused(limit: dict) -> None:
    with pytest.raises(SettingsError, match="per minute"):
        RateLimit(**limit)
