"""Thoughts of a server followed while they are written: server-sent events, and all that can come in them."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from o1_retriever import ThinkingEmbedder
from o1_retriever.endpoint.exchange import Problem, StreamedReply, read_reply
from o1_retriever.errors import ThinkerError
from o1_retriever.thinkers import OpenAIThinker, RequestPolicy
from tests.support.adapters import bag_of_words
from tests.support.asking import QUICK, SETTINGS, in_turn, think_one
from tests.support.chat_server import as_json, completion, refusal, streamed

ONE = SETTINGS.with_changes(n_thoughts=1)
WORDS = ("Ice ", "floats ", "on ", "water.")


def embedder(thinker, settings=ONE):
    return ThinkingEmbedder.from_parts(thinker, bag_of_words, settings=settings, cache=False)


def told(thinker, settings=ONE):
    """The texts of a call's pieces, joined by the number of their thought, and the thoughts."""
    texts: dict[int, list[str]] = {}
    thoughts = []
    for piece in embedder(thinker, settings).stream_thoughts("why?"):
        texts.setdefault(piece.index, []).append(piece.text)
        thoughts += [piece.thought] if piece.thought else []
    return texts, thoughts


def held(server):
    """The server stops behind the first piece until the event is set."""
    more = threading.Event()
    server.answer = lambda body, number: replace(streamed(*WORDS), more=more)
    return more


def test_a_piece_is_here_before_the_next_one_is_written(server, thinker):
    more = held(server)
    stream = embedder(thinker(timeout=60, deadline=60)).stream_thoughts("why?")
    first = next(stream)
    assert (first.index, first.text, first.thought) == (0, "Ice ", None)
    more.set()
    *rest, last = stream
    assert [piece.text for piece in rest] == [*WORDS[1:]]
    assert (last.text, last.thought.text, last.thought.finish) == ("", "Ice floats on water.", "eos")
    assert (last.thought.prompt_tokens, last.thought.completion_tokens) == (11, 4)
    assert server.bodies[0]["stream"] is True
    assert server.bodies[0]["stream_options"] == {"include_usage": True}


async def test_a_coroutine_gets_the_pieces_too(server, thinker):
    more = held(server)
    stream = embedder(thinker(timeout=60, deadline=60)).astream_thoughts("why?")
    assert (await anext(stream)).text == "Ice "
    more.set()
    assert [piece.text async for piece in stream] == [*WORDS[1:], ""]


def test_nobody_is_streamed_to_who_does_not_listen(server, thinker):
    assert think_one(thinker()).text == "a thought"
    assert "stream" not in server.bodies[0]


def test_pieces_of_several_thoughts_are_told_apart(server, thinker):
    server.answer = lambda body, number: streamed(f"Number {body['seed']} ", "is one.")
    texts, thoughts = told(thinker(), SETTINGS.with_changes(n_thoughts=3, temperature=0))
    assert sorted(texts) == [0, 1, 2]
    assert ["".join(texts[index]) for index in range(3)] == [thought.text for thought in thoughts]
    assert len({thought.text for thought in thoughts}) == 3


def test_a_thought_that_is_drawn_again_is_told_once(server, thinker):
    def answer(body, number):
        text = "Bread rises because of its yeast." if number < 2 else "The oven is hot."
        return streamed(text) if "stream" in body else completion(text)

    server.answer = answer
    texts, thoughts = told(thinker(concurrency=1), SETTINGS.with_changes(n_thoughts=2))
    assert len(server.bodies) == 3
    assert sorted(texts) == [0, 1]
    assert [thought.text for thought in thoughts] == ["Bread rises because of its yeast.", "The oven is hot."]

    async def awaited():
        stream = embedder(thinker(concurrency=1), SETTINGS.with_changes(n_thoughts=2)).astream_thoughts(
            "why?"
        )
        return {piece.index async for piece in stream}

    server.bodies.clear()
    assert asyncio.run(awaited()) == {0, 1}
    assert len(server.bodies) == 3


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_told_and_left_out_of_the_thought(server, thinker, field):
    server.answer = lambda body, number: streamed({field: "Let me "}, {field: "see. "}, "Ice ", "floats.")
    texts, [thought] = told(thinker())
    assert "".join(texts[0]) == "Let me see.\n\nIce floats."
    assert thought.text == "Ice floats."
    server.answer = lambda body, number: streamed("<think>Let me ", "see.</think>", "Ice ", "floats.")
    assert told(thinker())[1][0].text == "Ice floats."


def test_a_character_in_two_halves_is_told_whole(server, thinker):
    server.answer = lambda body, number: streamed("Ice \ud83d", "\ude00 floats", ".\ud83d")
    texts, [thought] = told(thinker())
    assert texts[0] == ["Ice ", "\U0001f600 floats", ".", ""]
    assert thought.text == "Ice \U0001f600 floats."


def test_why_it_ended_is_what_a_whole_reply_says(server, thinker):
    server.answer = lambda body, number: streamed("Ice floats. It is ", "light", finish="length")
    texts, [thought] = told(thinker())
    assert (thought.text, thought.finish) == ("Ice floats.", "length")
    assert "".join(texts[0]) == "Ice floats. It is light"
    server.answer = lambda body, number: streamed("Ice", finish="content_filter")
    assert told(thinker())[1][0].text == "Ice"
    server.answer = lambda body, number: streamed({"refusal": "No, "}, {"refusal": "never."})
    assert "refused: No, never." in told(thinker())[1][0].error
    server.answer = lambda body, number: streamed({"tool_calls": [{"index": 0}]}, finish="tool_calls")
    assert "called a tool" in told(thinker())[1][0].error
    server.answer = lambda body, number: streamed({"reasoning": "Hm"}, finish="length")
    assert "still reasoning" in told(thinker())[1][0].error


@pytest.mark.parametrize(
    ("error", "tries", "reason"),
    [
        ({"message": "overloaded", "code": 503}, 2, None),
        ({"message": "the prompt is bad", "code": 400}, 1, "the prompt is bad"),
    ],
)
def test_an_error_in_the_stream_is_one_of_the_server(server, thinker, error, tries, reason):
    server.answer = in_turn(streamed("Ice ", {"error": error}, finish=None), streamed(*WORDS))
    texts, [thought] = told(thinker())
    assert len(server.bodies) == tries
    if reason:
        assert reason in thought.error
    else:
        # What was told before the error is not told again.
        assert ("".join(texts[0]), thought.text) == ("Ice floats on water.", "Ice floats on water.")


def broken(**changes):
    return replace(streamed("Ice ", "floats ", finish=None, done=False), **changes)


@pytest.mark.parametrize("missing", [0, 100], ids=["ended", "dropped"])
def test_a_connection_that_breaks_is_tried_again_and_told_once(server, thinker, missing):
    server.answer = in_turn(broken(missing=missing), streamed(*WORDS))
    texts, [thought] = told(thinker())
    assert len(server.bodies) == 2
    assert ("".join(texts[0]), thought.text) == ("Ice floats on water.", "Ice floats on water.")
    server.answer = lambda body, number: broken(missing=missing)
    _, [thought] = told(thinker())
    assert thought.failed
    assert ("ended before the reply did" if not missing else "no connection") in thought.error


def test_another_text_at_the_second_try_comes_whole_in_the_end(server, thinker):
    server.answer = in_turn(broken(), streamed("Water ", "is heavier."))
    texts, [thought] = told(thinker())
    assert texts[0] == ["Ice ", "floats ", ""]
    assert thought.text == "Water is heavier."


def test_a_server_that_does_not_stream_answers_in_one_piece(server, thinker):
    server.answer = lambda body, number: completion("Ice floats.")
    texts, [thought] = told(thinker())
    assert (texts[0], thought.text) == (["Ice floats."], "Ice floats.")
    server.answer = lambda body, number: as_json({"error": {"message": "no money", "code": 402}})
    with pytest.raises(ThinkerError, match="no money"):
        told(thinker())


def test_a_server_that_refuses_to_stream_is_asked_without(server, thinker, caplog):
    def picky(body, number):
        for name in ("stream_options", "stream"):
            if name in body:
                return refusal(400, f"{name} is not supported", param=name)
        return completion("Ice floats.")

    server.answer = picky
    mine = thinker()
    assert told(mine)[1][0].text == "Ice floats."
    assert len(server.bodies) == 3
    assert told(mine)[1][0].text == "Ice floats."
    assert len(server.bodies) == 4
    assert "cannot be followed while they are written" in caplog.text


def test_whoever_leaves_ends_the_request(server, thinker):
    held(server)
    stream = embedder(thinker(timeout=60, deadline=60)).stream_thoughts("why?")
    next(stream)
    assert server.connections == 1
    stream.close()
    until = time.monotonic() + 20
    while server.connections:
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize("kind", ["OpenAI", "AsyncOpenAI"])
def test_a_client_of_the_caller_streams(server, kind):
    import openai

    server.answer = in_turn(broken(), streamed(*WORDS))
    client = getattr(openai, kind)(base_url=server.url, api_key="theirs")
    texts, [thought] = told(OpenAIThinker("m", client=client, policy=RequestPolicy(**QUICK)))
    assert ("".join(texts[0]), thought.text) == ("Ice floats on water.", "Ice floats on water.")
    assert server.headers[0]["authorization"] == "Bearer theirs"
    server.answer = lambda body, number: completion("In one piece.")
    assert (
        told(OpenAIThinker("m", client=client, policy=RequestPolicy(**QUICK)))[1][0].text == "In one piece."
    )


def test_a_client_that_knows_no_streams_is_not_asked_for_one():
    def create(model, messages, max_tokens, temperature, top_p, seed, extra_body, timeout):
        return {"choices": [{"message": {"content": "from afar"}, "finish_reason": "stop"}]}

    client = type("Duck", (), {})()
    client.chat = client.completions = client
    client.create = create
    assert told(OpenAIThinker("m", client=client))[1][0].text == "from afar"


@given(
    st.lists(
        st.tuples(st.sampled_from(["content", "reasoning_content"]), st.text("ab <>/think.\n")), max_size=8
    ),
    st.sampled_from(["stop", "length"]),
)
def test_a_stream_is_read_as_the_same_reply_in_one_piece(deltas, finish):
    grown = StreamedReply()
    for name, text in deltas:
        grown.add({"choices": [{"delta": {name: text}}]})
    grown.add({"choices": [{"delta": {}, "finish_reason": finish}], "usage": {"prompt_tokens": 3}})
    message = {
        name: "".join(text for other, text in deltas if other == name)
        for name in ("content", "reasoning_content")
    }
    whole = {"choices": [{"message": message, "finish_reason": finish}], "usage": {"prompt_tokens": 3}}
    assert read_reply(grown.completion(), limit=9) == read_reply(whole, limit=9)


def test_a_stream_without_an_end_is_no_reply():
    grown = StreamedReply()
    assert grown.completion() is None
    for chunk in (None, {}, {"choices": None}, {"choices": [None]}, {"choices": [{"delta": None}]}, "text"):
        grown.add(chunk)
    assert grown.completion() is None
    grown.add({"choices": [{"delta": {"content": "a"}, "error": {"message": "gone", "code": 500}}]})
    problem = read_reply(grown.completion(), limit=9)
    assert isinstance(problem, Problem)
    assert problem.retry


def test_a_last_chunk_that_repeats_the_whole_is_not_read_twice():
    grown = StreamedReply()
    grown.add({"choices": [{"delta": {"content": "Dew is water."}}]})
    whole = {"content": "Dew is water."}
    grown.add({"choices": [{"delta": {}, "message": whole, "finish_reason": "stop"}]})
    assert grown.text == "Dew is water."


async def test_who_leaves_while_a_thread_waits_for_a_piece_has_left(thinker):
    began, go_on = threading.Event(), threading.Event()

    def create(stream=False, **asked_for):
        asked.append(stream)
        began.set()
        go_on.wait(60)
        yield {"choices": [{"delta": {"content": "late"}, "finish_reason": "stop"}]}

    asked: list[bool] = []
    client = type("Duck", (), {})()
    client.chat = client.completions = client
    client.create = create
    writing = asyncio.ensure_future(
        anext(embedder(OpenAIThinker("m", client=client)).astream_thoughts("why?"))
    )
    await asyncio.to_thread(began.wait, 60)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    go_on.set()
    assert asked == [True]
