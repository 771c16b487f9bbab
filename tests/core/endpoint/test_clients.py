from __future__ import annotations

import re

import pytest

from o1_retriever.errors import SettingsError, ThinkerError
from o1_retriever.thinkers import OpenAIThinker, RequestPolicy
from tests.support.asking import QUICK, think_one
from tests.support.chat_server import Answer


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
