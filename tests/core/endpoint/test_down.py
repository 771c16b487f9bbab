"""A server that is down or refuses, or a wrong path: recorded failures, or an error that says what to do."""

from __future__ import annotations

import re
import socket
import time

import pytest

from o1_retriever.errors import ThinkerError
from o1_retriever.query import as_queries
from o1_retriever.thinkers import OpenAIThinker, RequestPolicy
from tests.support.asking import QUICK, SETTINGS, echo, think_one
from tests.support.chat_server import Answer, completion, refusal


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_nobody_listening_is_a_recorded_failure_soon(caplog, host):
    url = f"http://{host}:{free_port()}/v1"
    thinker = OpenAIThinker("m", base_url=url, policy=RequestPolicy(**{**QUICK, "concurrency": 2}))
    began = time.monotonic()
    rows = thinker.think(
        as_queries([f"q{place}" for place in range(500)]), settings=SETTINGS.with_changes(n_thoughts=3)
    )
    assert time.monotonic() - began < 100, "nobody is asked 1500 times"
    assert all(thought.failed for row in rows for thought in row)
    assert "refused" in rows[0][0].error
    assert "not asked after others had failed: no connection" in rows[-1][-1].error
    assert "1,500 of 1,500 thoughts could not be written" in caplog.text
    assert url in caplog.text
    thinker.close()


def test_a_server_that_was_down_is_probed_once_and_used_again_when_it_is_back(server, thinker):
    server.answer = lambda body, number: Answer(status=503)
    mine = thinker(concurrency=2, retries=1)
    queries = [f"q{place}" for place in range(20)]
    mine.think(as_queries(queries), settings=SETTINGS.with_changes(n_thoughts=1))
    first = len(server.bodies)
    assert 8 <= first <= 12
    rows = mine.think(as_queries(queries), settings=SETTINGS.with_changes(n_thoughts=1))
    assert all(row[0].failed for row in rows)
    assert len(server.bodies) == first + 1
    server.answer = echo
    rows = mine.think(as_queries(queries), settings=SETTINGS.with_changes(n_thoughts=1))
    assert [row[0].text.split(" / ")[0] for row in rows] == queries
    assert len(server.bodies) == first + 1 + 20


def test_a_short_break_does_not_end_a_call_that_had_answers(server, thinker):
    server.answer = lambda body, number: Answer(status=503) if 10 <= number < 30 else completion()
    rows = thinker(concurrency=2, retries=0).think(
        as_queries([f"q{n}" for n in range(50)]), settings=SETTINGS.with_changes(n_thoughts=1)
    )
    assert sum(row[0].failed for row in rows) == 20
    assert len(server.bodies) == 50


@pytest.mark.parametrize(
    ("status", "code", "hint"),
    [
        (401, None, "api_key"),
        (403, None, "api_key"),
        (404, None, "model's name"),
        (429, "insufficient_quota", "account"),
    ],
)
def test_what_the_caller_has_to_change_is_an_error_that_says_what(server, thinker, status, code, hint):
    server.answer = lambda body, number: refusal(status, "key sk-secret: no", code=code)
    with pytest.raises(ThinkerError, match=f"{status}.*no") as caught:
        thinker(concurrency=2).think(
            as_queries([f"q{n}" for n in range(50)]), settings=SETTINGS.with_changes(n_thoughts=3)
        )
    assert hint in caught.value.hint
    assert "sk-secret" not in str(caught.value)
    assert "***" in str(caught.value)
    assert caught.value.__cause__ is None
    assert len(server.bodies) <= 4


@pytest.mark.parametrize("before", [0, 360, 370, 380, 390])
def test_a_key_that_is_quoted_back_is_not_told_even_in_part(server, thinker, before):
    server.answer = lambda body, number: Answer(b"x" * before + b" sk-secret " + b"x" * 999, status=500)
    error = think_one(thinker()).error
    assert "sk-" not in error
    assert len(error) < 450


@pytest.mark.parametrize("key", ["sk-secret\n", " sk-secret", "sk-sec\x00ret"])
def test_a_key_that_no_header_takes_is_not_told(server, key):
    import openai

    for options in (
        {"base_url": server.url, "api_key": key},
        {"client": openai.OpenAI(base_url=server.url, api_key=key)},
    ):
        thinker = OpenAIThinker("m", **options, policy=RequestPolicy(**QUICK))
        assert not re.search("sec|ret", think_one(thinker).error or "")
    stripped = OpenAIThinker("m", base_url=server.url, api_key="sk-secret\n", policy=RequestPolicy(**QUICK))
    assert think_one(stripped).text == "a thought"


def test_a_wrong_path_is_such_an_error(server):
    wrong = OpenAIThinker("m", base_url=server.url.removesuffix("/v1"), policy=RequestPolicy(**QUICK))
    with pytest.raises(ThinkerError, match=r"404.*base_url ends"):
        think_one(wrong)
    wrong.close()


def test_thoughts_that_were_had_are_not_lost_when_the_key_is_withdrawn(server, thinker):
    server.answer = lambda body, number: completion() if number < 10 else refusal(401, "withdrawn")
    rows = thinker(concurrency=2).think(
        as_queries([f"q{n}" for n in range(100)]), settings=SETTINGS.with_changes(n_thoughts=1)
    )
    assert sum(not row[0].failed for row in rows) == 10
    assert "withdrawn" in rows[-1][0].error
    assert len(server.bodies) <= 16
