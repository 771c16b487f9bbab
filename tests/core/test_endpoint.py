from __future__ import annotations

import logging
import re
import socket
import subprocess
import sys
import textwrap
import threading
import time
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from o1_retriever.endpoint.reply import without_reasoning
from o1_retriever.errors import SettingsError, ThinkerError
from o1_retriever.thinkers import ChatPrompt, OpenAIThinker, RequestPolicy, Thinker
from o1_retriever.thought import ThoughtSettings
from tests.support.chat_server import Answer, as_json, chat_server, completion, refusal

SETTINGS = ThoughtSettings(seed=5, temperature=0.3, top_p=0.8, max_new_tokens=50)
QUICK = {"timeout": 5.0, "retries": 2, "backoff": 0.01, "deadline": 10.0}


@pytest.fixture
def server():
    with chat_server() as running:
        yield running


@pytest.fixture
def thinker(server):
    made = []

    def make(model="m", *, prompt=None, extra_body=None, **policy):
        options = {"prompt": prompt} if prompt else {}
        made.append(
            OpenAIThinker(
                model,
                base_url=server.url,
                api_key="sk-secret",
                extra_body=extra_body,
                policy=RequestPolicy(**{**QUICK, **policy}),
                **options,
            )
        )
        return made[-1]

    yield make
    for each in made:
        each.close()


def think_one(thinker, query="why?"):
    return thinker.think([query], 1, settings=SETTINGS)[0][0]


def in_turn(*answers):
    """The answers one after the other; the last one for good."""
    return lambda body, number: answers[min(number, len(answers) - 1)]


def echo(body, number):
    return completion(f"{body['messages'][-1]['content']} / {body.get('seed')}")


# ---- what is asked


def test_a_request_says_all_that_the_settings_say(server, thinker):
    assert isinstance(thinker(), Thinker)
    thought = think_one(
        thinker("some-model", extra_body={"chat_template_kwargs": {"enable_thinking": False}})
    )
    (body,) = server.bodies
    assert body["model"] == "some-model"
    assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.3, 0.8, 50)
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert "plausible response" in body["messages"][0]["content"]
    assert body["messages"][1]["content"] == "why?"
    assert (thought.text, thought.finish) == ("a thought", "eos")
    assert (thought.prompt_tokens, thought.completion_tokens) == (11, 7)


def test_a_thought_depends_on_seed_query_and_index_only(server, thinker):
    server.answer = echo
    whole = thinker().think(["a", "b", "c"], 3, settings=SETTINGS)
    assert [[thought.text.split(" / ")[0] for thought in row] for row in whole] == [[q] * 3 for q in "abc"]
    assert len({thought.text for thought in whole[0]}) == 3
    assert thinker().think(["b"], 2, settings=SETTINGS)[0] == whole[1][:2]
    assert thinker().think(["b"], 3, settings=SETTINGS, start=2)[0] == whole[1][2:]
    other = thinker().think(["b"], 3, settings=SETTINGS.with_changes(seed=6))[0]
    assert not {thought.text for thought in other} & {thought.text for thought in whole[1]}
    assert all(0 <= body["seed"] < 2**31 for body in server.bodies)


def test_nothing_is_asked_when_nothing_is_wanted(server, thinker):
    assert thinker().think([], 3, settings=SETTINGS) == []
    assert thinker().think(["a"], 2, settings=SETTINGS, start=2) == [[]]
    assert server.bodies == []


def test_order_is_kept_and_concurrency_is_bounded(server, thinker):
    together = threading.Barrier(3)

    def uneven(body, number):
        if number < 3:
            together.wait(timeout=20)
        return Answer(**{**vars(echo(body, number)), "delay": 0.02 * (number % 3)})

    server.answer = uneven
    queries = [f"query {place}" for place in range(12)]
    rows = thinker(concurrency=3, timeout=30, deadline=60).think(queries, 2, settings=SETTINGS)
    assert [row[1].text.split(" / ")[0] for row in rows] == queries
    assert server.busiest == 3


@given(st.text(min_size=1).filter(str.strip), st.text())
def test_a_query_with_braces_is_put_in_as_it_is(query, around):
    template = ChatPrompt("{a} {query} {0} {{", system=around)
    asked = template.messages(query)[-1]["content"]
    assert asked == "{a} " + query + " {0} {{"


def test_a_prompt_is_replaceable_and_needs_its_place_for_the_query(server, thinker):
    think_one(thinker(prompt="Be brief. {query} {x}"), "what is {query}?")
    assert server.bodies[0]["messages"] == [
        {"role": "user", "content": "Be brief. what is {query}? {x}"},
    ]
    with pytest.raises(SettingsError, match=r"no place for the query.*\{query\}"):
        thinker(prompt="Be brief.")
    with pytest.raises(SettingsError, match="expected strings"):
        ChatPrompt("{query}", system=3)


# ---- who asks


def test_identity_names_address_model_and_prompt_and_no_secret(server, thinker):
    plain = thinker("m")
    assert plain.identity == thinker("m").identity
    assert server.url in plain.identity
    others = [thinker("n"), thinker("m", prompt="Other {query}"), thinker("m", extra_body={"a": 1})]
    assert len({plain.identity, *(each.identity for each in others)}) == 4
    secret = OpenAIThinker("m", base_url="http://user:pass@host:1/v1?key=abc", api_key="sk-secret")
    shown = f"{secret!r} {secret.identity} {vars(secret)}"
    assert "http://host:1/v1 " in secret.identity
    assert not re.search("pass|abc|sk-secret", repr(secret) + secret.identity), shown
    secret.close()


def test_a_client_of_the_caller_keeps_its_key_and_is_not_retried_twice(server):
    import openai

    server.answer = lambda body, number: Answer(status=500)
    with openai.OpenAI(base_url=server.url, api_key="theirs", max_retries=5) as client:
        mine = OpenAIThinker("m", client=client, policy=RequestPolicy(**{**QUICK, "retries": 1}))
        assert think_one(mine).failed
        assert len(server.bodies) == 2
        assert server.headers[0]["authorization"] == "Bearer theirs"
        assert server.url in mine.identity
        mine.close()
        assert not client.is_closed()


class _Duck:
    """The least that a client has to be."""

    def __init__(self, create):
        self.chat = self.completions = self
        self.create = create


def test_a_client_may_be_any_object_with_the_method():
    reply = {"choices": [{"message": {"content": "from afar"}, "finish_reason": "stop"}]}
    thinker = OpenAIThinker("m", client=_Duck(lambda **asked: reply))
    assert think_one(thinker).text == "from afar"
    assert thinker.identity is None


def test_a_bug_in_a_client_is_no_recorded_failure():
    def create(**asked):
        raise KeyError("oops")

    with pytest.raises(ThinkerError, match="KeyError"):
        think_one(OpenAIThinker("m", client=_Duck(create)))


def test_arguments_that_cannot_work_are_refused(monkeypatch):
    import openai

    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(SettingsError, match="OPENAI_API_KEY"):
        OpenAIThinker("m")
    with pytest.raises(SettingsError, match="expected a URL"):
        OpenAIThinker("m", base_url="localhost:8000/v1")
    with pytest.raises(SettingsError, match="model is"):
        OpenAIThinker(" ", base_url="http://h/v1")
    with pytest.raises(SettingsError, match="synchronous"):
        OpenAIThinker("m", client=openai.AsyncOpenAI(api_key="x"))
    with pytest.raises(SettingsError, match="one of both"):
        OpenAIThinker("m", client=_Duck(print), api_key="x")
    with pytest.raises(SettingsError, match=r"chat\.completions\.create"):
        OpenAIThinker("m", client=object())
    with pytest.raises(SettingsError, match="JSON"):
        OpenAIThinker("m", client=_Duck(print), extra_body={"a": object()})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("concurrency", 0),
        ("concurrency", 1.5),
        ("timeout", 0),
        ("retries", -1),
        ("deadline", float("nan")),
        ("backoff", True),
    ],
)
def test_a_policy_out_of_range_is_refused(name, value):
    with pytest.raises(SettingsError, match=name):
        RequestPolicy(**{name: value})


# ---- what comes back


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("<think>hm, well</think>\n\nA thought.", "A thought."),
        ("<THINK>hm</THINK>A thought.", "A thought."),
        ("hm, the template opened it</think> A thought.", "A thought."),
        ("<think>a<think>b</think>c</think> A thought.", "A thought."),
        ("[THINK]hm[/THINK]A thought.", "A thought."),
        ("A <think>hm</think>thought.", "A thought."),
        ("A thought about the <think> tag.", "A thought about the <think> tag."),
        ([{"type": "thinking", "thinking": []}, {"type": "text", "text": "A thought."}], "A thought."),
    ],
)
def test_reasoning_is_no_part_of_the_thought(server, thinker, content, text):
    server.answer = lambda body, number: completion(content)
    thought = think_one(thinker())
    assert (thought.text, thought.finish) == (text, "eos")


def test_reasoning_in_a_field_of_its_own_is_left_out(server, thinker):
    server.answer = lambda body, number: completion("A thought.", reasoning_content="hm")
    assert think_one(thinker()).text == "A thought."


@pytest.mark.parametrize(
    "answer",
    [
        completion("<think>hm, so I sho", finish="length"),
        completion("<think>hm.", finish="stop"),
        completion("A thought. <think>hm", finish="length"),
        completion("", finish="length", reasoning_content="hm"),
        completion(None, finish="length", reasoning="hm"),
    ],
)
def test_tokens_spent_on_reasoning_are_a_failure_that_says_so_and_is_counted(server, thinker, answer):
    server.answer = lambda body, number: answer
    thought = think_one(thinker())
    assert thought.failed
    assert thought.text == ""
    assert "50 tokens" in thought.error
    assert "max_new_tokens" in thought.error
    assert (thought.prompt_tokens, thought.completion_tokens) == (11, 7)
    assert len(server.bodies) == 1


@given(st.text(alphabet="<>/thinkgab \n[]TK") | st.text(), st.booleans())
def test_any_text_is_stripped_of_reasoning_without_an_accident(text, cut):
    kept, unfinished = without_reasoning(text, cut=cut)
    assert "</think>" not in kept
    assert kept == kept.strip()
    if "think" not in text.lower() and "reasoning" not in text.lower():
        assert (kept, unfinished) == (text.strip(), False)


def test_a_thought_cut_by_its_length_says_so(server, thinker):
    server.answer = lambda body, number: completion("a thought that", finish="length")
    assert think_one(thinker()).finish == "length"


def test_of_several_choices_the_first_is_taken(server, thinker):
    choices = [{"message": {"content": text}, "finish_reason": "stop"} for text in ("first", "second")]
    server.answer = lambda body, number: as_json({"choices": choices})
    assert think_one(thinker()).text == "first"


@pytest.mark.parametrize(
    ("answer", "reason", "requests"),
    [
        (Answer(drop=True), "no connection", 3),
        (Answer(b'{"choices": [', headers={"Content-Type": "application/json"}), "not valid JSON", 3),
        (
            Answer(b'{"choices": [', headers={"Content-Type": "application/json"}, missing=99),
            "no connection",
            3,
        ),
        (Answer(b"<html>Welcome</html>", headers={"Content-Type": "text/html"}), "<html>Welcome</html>", 3),
        (Answer(b"\xff\xfe", headers={"Content-Type": "application/json"}), "not valid JSON", 3),
        (as_json({"choices": []}), "without choices", 3),
        (as_json({"choices": None}), "without choices", 3),
        (as_json({"choices": "text"}), "without choices", 3),
        (as_json(["a", "list"]), "no chat completion", 3),
        (as_json({"choices": [{}]}), "empty", 3),
        (as_json({"choices": [None]}), "empty", 3),
        (as_json({"choices": [{"message": {"content": 5}}]}), "empty", 3),
        (completion("  \n "), "empty", 3),
        (completion("<think>hm</think>"), "empty", 3),
        (completion("a \ud800 b"), "lone surrogate", 3),
        (completion(None, refusal="I will not."), "refused: I will not", 1),
        (completion("", finish="content_filter"), "content filter", 1),
        (Answer(b"oops", status=500), "500: oops", 3),
        (refusal(503, "loading model"), "503: loading model", 3),
        (refusal(400, "context is too long"), "400: context is too long", 1),
        (refusal(413, "too large"), "413: too large", 1),
        (as_json({"detail": "another model"}, status=400), "400: another model", 1),
        (as_json({"error": "in plain words"}, status=400), "400: in plain words", 1),
        (as_json(["odd"], status=400), r"400: \['odd'\]", 1),
        (
            Answer(b"<h1>Bad Gateway</h1>", status=502, headers={"Content-Type": "text/html"}),
            "502: <h1>Bad Gateway",
            3,
        ),
    ],
)
def test_a_bad_answer_is_a_recorded_failure_with_its_reason(
    server, thinker, caplog, answer, reason, requests
):
    server.answer = lambda body, number: answer
    thought = think_one(thinker())
    assert thought.failed
    assert re.search(reason, thought.error), thought.error
    assert len(server.bodies) == requests
    (record,) = [
        each for each in caplog.records if each.levelno == logging.WARNING and "o1_retriever" in each.name
    ]
    assert "1 of 1 thoughts could not be had" in record.getMessage()


def test_a_failure_that_passes_leaves_no_trace(server, thinker, caplog):
    server.answer = in_turn(Answer(drop=True), Answer(status=500), completion())
    assert think_one(thinker()).text == "a thought"
    assert len(server.bodies) == 3
    assert not [each for each in caplog.records if each.name.startswith("o1_retriever")]


def test_one_bad_query_does_not_spoil_the_others(server, thinker):
    def answer(body, number):
        return refusal(400, "too long") if body["messages"][-1]["content"] == "b" else completion()

    server.answer = answer
    rows = thinker().think(["a", "b", "c"], 2, settings=SETTINGS)
    assert [[thought.failed for thought in row] for row in rows] == [[False] * 2, [True] * 2, [False] * 2]


# ---- time


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
    rows = thinker(deadline=0.4, concurrency=2).think(["slow", "a", "slow", "b", "c"], 1, settings=SETTINGS)
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
        from o1_retriever.thinkers import OpenAIThinker
        from o1_retriever.thought import ThoughtSettings
        thinker = OpenAIThinker("m", base_url={server.url!r})
        began = time.monotonic()
        threading.Timer(0.5, _thread.interrupt_main).start()
        try:
            thinker.think(["a"] * 200, 3, settings=ThoughtSettings())
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


def test_threads_end_with_their_work(server, thinker):
    thinker().think(["a", "b"], 3, settings=SETTINGS)
    until = time.monotonic() + 5
    while any(thread.name == "o1-retriever-thinker" for thread in threading.enumerate()):
        assert time.monotonic() < until
        time.sleep(0.01)


# ---- a server that is not there, or not set up


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_nobody_listening_is_a_recorded_failure_soon(caplog):
    url = f"http://127.0.0.1:{free_port()}/v1"
    thinker = OpenAIThinker("m", base_url=url, policy=RequestPolicy(**{**QUICK, "concurrency": 2}))
    began = time.monotonic()
    rows = thinker.think([f"q{place}" for place in range(500)], 3, settings=SETTINGS)
    assert time.monotonic() - began < 5
    assert all(thought.failed for row in rows for thought in row)
    assert "refused" in rows[0][0].error
    assert "not asked after others had failed: no connection" in rows[-1][-1].error
    assert "1500 of 1500 thoughts could not be had" in caplog.text
    assert url in caplog.text
    thinker.close()


def test_a_server_that_was_down_is_probed_once_and_used_again_when_it_is_back(server, thinker):
    server.answer = lambda body, number: Answer(status=503)
    mine = thinker(concurrency=2, retries=1)
    queries = [f"q{place}" for place in range(20)]
    mine.think(queries, 1, settings=SETTINGS)
    first = len(server.bodies)
    assert 8 <= first <= 12
    rows = mine.think(queries, 1, settings=SETTINGS)
    assert all(row[0].failed for row in rows)
    assert len(server.bodies) == first + 1
    server.answer = echo
    rows = mine.think(queries, 1, settings=SETTINGS)
    assert [row[0].text.split(" / ")[0] for row in rows] == queries
    assert len(server.bodies) == first + 1 + 20


def test_a_short_break_does_not_end_a_call_that_had_answers(server, thinker):
    server.answer = lambda body, number: Answer(status=503) if 10 <= number < 30 else completion()
    rows = thinker(concurrency=2, retries=0).think([f"q{n}" for n in range(50)], 1, settings=SETTINGS)
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
        thinker(concurrency=2).think([f"q{n}" for n in range(50)], 3, settings=SETTINGS)
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


def test_a_wrong_path_is_such_an_error(server):
    wrong = OpenAIThinker("m", base_url=server.url.removesuffix("/v1"), policy=RequestPolicy(**QUICK))
    with pytest.raises(ThinkerError, match=r"404.*base_url ends"):
        think_one(wrong)
    wrong.close()


def test_thoughts_that_were_had_are_not_lost_when_the_key_is_withdrawn(server, thinker):
    server.answer = lambda body, number: completion() if number < 10 else refusal(401, "withdrawn")
    rows = thinker(concurrency=2).think([f"q{n}" for n in range(100)], 1, settings=SETTINGS)
    assert sum(not row[0].failed for row in rows) == 10
    assert "withdrawn" in rows[-1][0].error
    assert len(server.bodies) <= 16


# ---- servers with a dialect


def picky(**refused):
    """A server that refuses fields, each with its message."""

    def answer(body, number):
        for name, message in refused.items():
            if name in body:
                return refusal(400, message, param=name, code="unsupported_parameter")
        return completion(" ".join(sorted(body)))

    return answer


def test_a_parameter_that_is_refused_is_left_out_from_then_on(server, thinker, caplog):
    server.answer = picky(seed="Unrecognized argument: seed", top_p="top_p is not supported")
    mine = thinker(concurrency=1)
    assert think_one(mine).text == "max_tokens messages model temperature"
    assert len(server.bodies) == 3
    mine.think(["a", "b"], 3, settings=SETTINGS)
    assert len(server.bodies) == 9
    assert len([each for each in caplog.records if "takes no 'seed'" in each.getMessage()]) == 1


def test_many_requests_at_once_learn_it_too(server, thinker, caplog):
    server.answer = picky(seed="Unrecognized argument: seed", top_p="top_p is not supported")
    rows = thinker(concurrency=8).think([f"q{n}" for n in range(24)], 1, settings=SETTINGS)
    assert not any(row[0].failed for row in rows)
    assert len([each for each in caplog.records if "takes no" in each.getMessage()]) == 2


def test_the_limit_is_renamed_and_never_dropped(server, thinker):
    server.answer = picky(max_tokens="Unsupported parameter: use 'max_completion_tokens' instead.")
    assert "max_completion_tokens" in think_one(thinker()).text
    assert server.bodies[-1]["max_completion_tokens"] == 50
    server.bodies.clear()
    server.answer = lambda body, number: refusal(400, "max_tokens is not supported", param="max_tokens")
    assert think_one(thinker()).failed
    assert len(server.bodies) == 1


def test_a_refusal_without_the_param_field_is_read_too(server, thinker):
    detail = {
        "detail": [
            {"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}
        ]
    }
    server.answer = lambda body, number: as_json(detail, status=422) if "seed" in body else completion()
    assert not think_one(thinker()).failed


def test_a_model_without_system_messages_gets_one_message(server, thinker):
    def answer(body, number):
        return completion() if len(body["messages"]) == 1 else refusal(400, "System role not supported")

    server.answer = answer
    assert not think_one(thinker()).failed
    (message,) = server.bodies[-1]["messages"]
    assert message["role"] == "user"
    assert message["content"].endswith("\n\nwhy?")
    assert "plausible response" in message["content"]


def test_a_bad_value_is_no_refusal_of_the_parameter(server, thinker):
    server.answer = lambda body, number: refusal(400, "max_tokens 50 and seed 7 exceed the context")
    assert think_one(thinker()).failed
    assert len(server.bodies) == 1
    assert "seed" in server.bodies[0]
