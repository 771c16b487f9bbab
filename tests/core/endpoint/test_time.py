"""Time: slow answers, waits that a server asks for, deadlines, and Ctrl-C."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from email.utils import formatdate
from types import SimpleNamespace

import pytest

from o1_retriever.query import as_queries
from o1_retriever.thinkers import OpenAIThinker, RequestPolicy
from tests.support.asking import SETTINGS, ample_time, in_turn, think_one, wait_until
from tests.support.chat_server import Answer, completion, refusal


def test_a_slow_server_is_asked_again_and_then_given_up(server, thinker):
    server.answer = lambda body, number: Answer(delay=300)
    began = time.monotonic()
    thought = think_one(thinker(timeout=0.15, retries=1))
    assert "no answer within 0.15 s (tried 2 times)" in thought.error
    assert time.monotonic() - began < 100
    wait_until(lambda: len(server.bodies) == 2)


def test_one_slow_answer_does_not_fail_the_thought(server, thinker):
    server.answer = in_turn(Answer(delay=300), completion("in time"))
    # Where an answer takes this machine so long, it is asked for once more.
    assert think_one(thinker(timeout=0.3, retries=100)).text == "in time"


def test_an_answer_that_comes_byte_by_byte_is_given_up_at_the_deadline(server, thinker):
    deadline = ample_time(thinker())
    slow = Answer(**{**vars(completion()), "drip": 10.0})
    server.answer = lambda body, number: slow if body["messages"][-1]["content"] == "slow" else completion()
    began = time.monotonic()
    rows = thinker(deadline=deadline, concurrency=2).think(
        as_queries(["slow", "a", "slow", "b", "c"]), settings=SETTINGS.with_changes(n_thoughts=1)
    )
    assert [row[0].failed for row in rows] == [True, False, True, False, False]
    assert f"no complete answer within {deadline:g} s" in rows[0][0].error
    assert time.monotonic() - began < 100, "all its bytes take an hour"


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
    assert 0.3 <= server.times[1] - server.times[0] < 60


def test_a_wait_may_be_a_date(server, thinker):
    def answer(_body, number):
        soon = formatdate(time.time() + 2, usegmt=True)
        return refusal(429, "slow down", retry_after=soon) if number == 0 else completion()

    server.answer = answer
    assert not think_one(thinker(backoff=0.0)).failed
    assert 0.5 <= server.times[1] - server.times[0] < 60


def test_all_wait_when_a_server_asks_one_to(server, thinker):
    first, second = refusal(429, "slow down", retry_after="1.4"), replace(completion(), delay=0.7)
    server.answer = in_turn(first, second, completion())
    queries = as_queries([f"q{n}" for n in range(6)])
    rows = thinker(concurrency=2).think(queries, settings=SETTINGS.with_changes(n_thoughts=1))
    assert not any(row[0].failed for row in rows)
    assert server.times[2] - server.times[0] >= 1.35


@pytest.mark.parametrize("value", ["soon", "nan", "-5", ""])
def test_a_wait_that_makes_no_sense_is_no_wait(server, thinker, value):
    server.answer = in_turn(refusal(429, "slow down", retry_after=value), completion())
    assert not think_one(thinker()).failed
    assert server.times[1] - server.times[0] < 30


def test_a_server_that_asks_for_too_long_a_wait_is_not_waited_for(server, thinker):
    server.answer = lambda body, number: refusal(429, "slow down", retry_after="3600")
    thought = think_one(thinker())
    assert "asks to wait 3600 s" in thought.error
    assert len(server.bodies) == 1


def test_waiting_does_not_outlast_the_deadline(server, thinker):
    server.answer = lambda body, number: refusal(429, "slow down", retry_after="29")
    began = time.monotonic()
    assert "25 s were allowed" in think_one(thinker(deadline=25.0)).error
    assert time.monotonic() - began < 20
    assert len(server.bodies) == 1


ASKING = """
import sys, time
from o1_retriever.thinkers import OpenAIThinker
from o1_retriever.query import as_queries
from o1_retriever.thought import ThoughtSettings
thinker = OpenAIThinker("m", base_url=sys.argv[1])
try:
    thinker.think(as_queries(["a"] * 2000), settings=ThoughtSettings())
except KeyboardInterrupt:
    print("stopped", flush=True)
time.sleep(1)
"""


@pytest.mark.parametrize(("delay", "most"), [(300.0, 8), (0.05, 2000)])
def test_ctrl_c_stops_at_once_and_for_good(server, delay, most):
    server.answer = lambda body, number: Answer(**{**vars(completion()), "delay": delay})
    command = [sys.executable, "-c", ASKING, server.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        wait_until(lambda: len(server.bodies) >= 8 or child.poll() is not None)
        began = time.monotonic()
        child.send_signal(signal.SIGINT)
        assert child.stdout.readline() == "stopped\n", child.communicate()
        assert time.monotonic() - began < 100, "an answer takes longer, and all of them do"
        stopped = len(server.bodies)
        child.communicate()
    assert 8 <= stopped <= most
    assert len(server.bodies) <= stopped + 8, "no more than those that were under way"


def threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("o1-retriever")]


def test_threads_end_with_their_work(server, thinker):
    client = SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=slowly)))
    for each in (thinker(), thinker(), OpenAIThinker("m", client=client)):
        each.think(as_queries(["a", "b"]), settings=SETTINGS.with_changes(n_thoughts=3))
    wait_until(lambda: threads() == ["o1-retriever-endpoint"])  # one event loop for all, on one thread


def slowly(**asked):
    assert 1 < len(threads()) <= 9
    time.sleep(0.05)
    return {"choices": [{"message": {"content": "a thought"}}]}
