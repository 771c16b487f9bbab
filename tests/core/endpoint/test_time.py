from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from email.utils import formatdate
from types import SimpleNamespace

import pytest

from o1_retriever.query import as_queries
from o1_retriever.thinkers import OpenAIThinker, RequestPolicy
from tests.support.asking import SETTINGS, in_turn, think_one
from tests.support.chat_server import Answer, completion, refusal


def test_a_slow_server_is_asked_again_and_then_given_up(server, thinker):
    server.answer = lambda body, number: Answer(delay=3)
    began = time.monotonic()
    thought = think_one(thinker(timeout=0.15, retries=1))
    assert "no answer within 0.15 s (tried 2 times)" in thought.error
    assert time.monotonic() - began < 1.5
    assert len(server.bodies) == 2


def test_one_slow_answer_does_not_fail_the_thought(server, thinker):
    server.answer = in_turn(Answer(delay=3), completion("in time"))
    assert think_one(thinker(timeout=0.3)).text == "in time"


def test_an_answer_that_comes_byte_by_byte_is_given_up_at_the_deadline(server, thinker):
    slow = Answer(**{**vars(completion()), "drip": 0.05})
    server.answer = lambda body, number: slow if body["messages"][-1]["content"] == "slow" else completion()
    began = time.monotonic()
    rows = thinker(deadline=0.4, concurrency=2).think(
        as_queries(["slow", "a", "slow", "b", "c"]), settings=SETTINGS.with_changes(n_thoughts=1)
    )
    assert [row[0].failed for row in rows] == [True, False, True, False, False]
    assert "no complete answer within 0.4 s" in rows[0][0].error
    assert time.monotonic() - began < 3


def test_waits_grow_and_are_bounded():
    policy = RequestPolicy(backoff=1.0, longest_wait=5.0)
    waits = [max(policy.wait(tried, None) for _ in range(200)) for tried in (1, 2, 3, 9)]
    assert 0.9 < waits[0] <= 1 < waits[1] <= 2 < waits[2] <= 4 < waits[3] <= 5
    assert min(policy.wait(3, None) for _ in range(200)) >= 2
    assert 7 <= policy.wait(1, 7.0) <= 7.7


@pytest.mark.parametrize("header", ["retry_after", "retry_after_ms"])
def test_the_wait_that_a_server_asks_for_is_kept(server, thinker, header):
    value = {"retry_after": "0.3", "retry_after_ms": "300"}[header]
    server.answer = in_turn(refusal(429, "slow down", **{header: value}), completion())
    assert not think_one(thinker(backoff=0.0)).failed
    assert 0.3 <= server.times[1] - server.times[0] < 2


def test_a_wait_may_be_a_date(server, thinker):
    server.answer = in_turn(
        refusal(429, "slow down", retry_after=formatdate(time.time() + 2, usegmt=True)), completion()
    )
    assert not think_one(thinker(backoff=0.0)).failed
    assert 0.5 <= server.times[1] - server.times[0] < 5


def test_all_wait_when_a_server_asks_one_to(server, thinker):
    first, second = refusal(429, "slow down", retry_after="0.5"), replace(completion(), delay=0.2)
    server.answer = in_turn(first, second, completion())
    queries = as_queries([f"q{n}" for n in range(6)])
    rows = thinker(concurrency=2).think(queries, settings=SETTINGS.with_changes(n_thoughts=1))
    assert not any(row[0].failed for row in rows)
    assert server.times[2] - server.times[0] >= 0.45


@pytest.mark.parametrize("value", ["soon", "nan", "-5", ""])
def test_a_wait_that_makes_no_sense_is_no_wait(server, thinker, value):
    server.answer = in_turn(refusal(429, "slow down", retry_after=value), completion())
    assert not think_one(thinker()).failed
    assert server.times[1] - server.times[0] < 1


def test_a_server_that_asks_for_too_long_a_wait_is_not_waited_for(server, thinker):
    server.answer = lambda body, number: refusal(429, "slow down", retry_after="3600")
    thought = think_one(thinker())
    assert "asks to wait 3600 s" in thought.error
    assert len(server.bodies) == 1


def test_waiting_does_not_outlast_the_deadline(server, thinker):
    server.answer = lambda body, number: refusal(429, "slow down", retry_after="5")
    began = time.monotonic()
    assert "2 s were allowed" in think_one(thinker(deadline=2.0)).error
    assert time.monotonic() - began < 1


@pytest.mark.parametrize(("delay", "most"), [(30.0, 8), (0.1, 160)])
def test_ctrl_c_stops_at_once_and_for_good(server, delay, most):
    server.answer = lambda body, number: Answer(**{**vars(completion()), "delay": delay})
    script = f"""
        import _thread, threading, time
        import openai  # it takes its time, which is not part of the half second
        from o1_retriever.thinkers import OpenAIThinker
        from o1_retriever.query import as_queries
        from o1_retriever.thought import ThoughtSettings
        thinker = OpenAIThinker("m", base_url={server.url!r})
        began = time.monotonic()
        threading.Timer(0.5, _thread.interrupt_main).start()
        try:
            thinker.think(as_queries(["a"] * 200), settings=ThoughtSettings())
        except KeyboardInterrupt:
            print("stopped after", time.monotonic() - began, flush=True)
        time.sleep(2)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "stopped after" in done.stdout, done.stderr
    assert float(done.stdout.split()[-1]) < 2
    assert 1 <= len(server.bodies) <= most
    assert server.times[-1] - server.times[0] < 1.5


def threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("o1-retriever")]


def test_threads_end_with_their_work(server, thinker):
    client = SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=slowly)))
    for each in (thinker(), thinker(), OpenAIThinker("m", client=client)):
        each.think(as_queries(["a", "b"]), settings=SETTINGS.with_changes(n_thoughts=3))
    until = time.monotonic() + 5
    while threads() != ["o1-retriever-endpoint"]:  # one event loop for all, on one thread
        assert time.monotonic() < until
        time.sleep(0.01)


def slowly(**asked):
    assert 1 < len(threads()) <= 9
    time.sleep(0.05)
    return {"choices": [{"message": {"content": "a thought"}}]}
