"""What the tests of the endpoint share."""

from __future__ import annotations

import time
from collections.abc import Callable

from o1_retriever.query import as_queries
from o1_retriever.thought import ThoughtSettings
from tests.support.chat_server import completion

SETTINGS = ThoughtSettings(seed=5, temperature=0.3, top_p=0.8, max_new_tokens=50)
# Tried again at once, and with time enough for a busy machine: a test that waits in vain says how long.
QUICK = {"timeout": 60.0, "retries": 2, "backoff": 0.01, "deadline": 120.0}


def think_one(thinker, query="why?"):
    return thinker.think(as_queries([query]), settings=SETTINGS.with_changes(n_thoughts=1))[0][0]


def in_turn(*answers):
    """The answers one after the other; the last one for good."""
    return lambda body, number: answers[min(number, len(answers) - 1)]


def echo(body, number):
    return completion(f"{body['messages'][-1]['content']} / {body.get('seed')}")


def wait_until(true: Callable[[], bool]) -> None:
    """Wait for what happens soon, and fail where it does not happen at all."""
    latest = time.monotonic() + 200
    while not true():
        assert time.monotonic() < latest
        time.sleep(0.005)


def ample_time(thinker) -> float:
    """Seconds in which this machine has a plain answer for certain: many times what several take."""
    think_one(thinker)  # the first one imports and connects
    began = time.monotonic()
    for _ in range(4):
        think_one(thinker)
    return round(max(0.4, 8 * (time.monotonic() - began)), 1)
