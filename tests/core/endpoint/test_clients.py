"""The openai package's clients, clients of the caller, processes and threads: whose is a connection."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import warnings

import pytest

from o1_retriever.errors import SettingsError, ThinkerError
from o1_retriever.query import as_queries
from o1_retriever.thinkers import OpenAIThinker, RequestPolicy, as_thinker
from tests.support.asking import QUICK, SETTINGS, in_turn, think_one, wait_until
from tests.support.chat_server import Answer, chat_server, completion


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


def test_an_asynchronous_client_of_the_caller_is_asked_too(server):
    import openai

    server.answer = in_turn(Answer(status=500), Answer(delay=300), completion("in time"))
    client = openai.AsyncOpenAI(base_url=server.url, api_key="theirs", max_retries=5)
    policy = RequestPolicy(**{**QUICK, "timeout": 0.3, "retries": 100})
    mine = OpenAIThinker("m", client=client, policy=policy)
    assert think_one(mine).text == "in time"
    assert len(server.bodies) >= 3
    assert {each["x-stainless-retry-count"] for each in server.headers} == {"0"}, "we alone ask again"
    assert server.headers[0]["authorization"] == "Bearer theirs"
    assert server.url in mine.identity
    mine.close()
    assert not client.is_closed()


def test_a_function_of_the_caller_may_be_a_coroutine():
    async def create(**asked):
        await asyncio.sleep(0)
        return {"choices": [{"message": {"content": f"seed {asked['seed']}"}}]}

    thinker = OpenAIThinker("m", client=_Duck(create))
    rows = thinker.think(as_queries(["a", "b"]), settings=SETTINGS.with_changes(n_thoughts=3))
    assert len({thought.text for row in rows for thought in row}) == 3


async def test_a_thinker_works_inside_of_a_running_event_loop(server, thinker):
    assert think_one(thinker()).text == "a thought"
    assert await asyncio.to_thread(think_one, thinker()) == think_one(thinker())


def test_a_fork_thinks_for_itself(server, thinker):
    mine = thinker()
    think_one(mine)
    child = os.fork()
    if not child:
        os._exit(0 if think_one(mine).text == "a thought" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert think_one(mine).text == "a thought"
    assert len(server.bodies) == 3


def test_a_thinker_that_nobody_holds_gives_its_connections_back(server):
    gc.collect()  # what other tests have left
    thinker = OpenAIThinker("m", base_url=server.url, policy=RequestPolicy(**QUICK))
    think_one(thinker)
    assert server.connections == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        del thinker
        gc.collect()
        wait_until(lambda: server.connections == 0)


def test_arguments_that_cannot_work_are_refused(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(SettingsError, match="OPENAI_API_KEY"):
        OpenAIThinker("m")
    with pytest.raises(SettingsError, match="expected a URL"):
        OpenAIThinker("m", base_url="localhost:8000/v1")
    with pytest.raises(SettingsError, match="model is"):
        OpenAIThinker(" ", base_url="http://h/v1")
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


def test_an_address_asks_the_server_for_its_model():
    with chat_server() as server:
        server.models = ["small-model", "other"]
        server.answer = lambda body, number: completion(f"by {body['model']}")
        thinker = as_thinker(server.url)
        assert isinstance(thinker, OpenAIThinker)
        assert think_one(thinker).text == "by small-model"
        server.models = []
        with pytest.raises(ThinkerError, match="lists no model"):
            as_thinker(server.url)
    with pytest.raises(ThinkerError, match="does not tell which models"):
        as_thinker(server.url)
