"""What the tests of the endpoint share."""

from __future__ import annotations

from o1_retriever.query import as_queries
from o1_retriever.thought import ThoughtSettings
from tests.support.chat_server import completion

SETTINGS = ThoughtSettings(seed=5, temperature=0.3, top_p=0.8, max_new_tokens=50)
QUICK = {"timeout": 5.0, "retries": 2, "backoff": 0.01, "deadline": 10.0}


def think_one(thinker, query="why?"):
    return thinker.think(as_queries([query]), settings=SETTINGS.with_changes(n_thoughts=1))[0][0]


def in_turn(*answers):
    """The answers one after the other; the last one for good."""
    return lambda body, number: answers[min(number, len(answers) - 1)]


def echo(body, number):
    return completion(f"{body['messages'][-1]['content']} / {body.get('seed')}")
