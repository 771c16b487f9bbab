"""A server that misbehaves on request, and thinkers that ask it."""

from __future__ import annotations

import pytest

from o1_retriever.thinkers import OpenAIThinker, RequestPolicy
from tests.support.asking import QUICK
from tests.support.chat_server import chat_server


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
