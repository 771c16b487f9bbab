"""What a server is asked, in which order, and how many requests are under way at a time."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from o1_retriever.errors import SettingsError
from o1_retriever.query import Query, as_queries
from o1_retriever.thinkers import DEFAULT_PROMPT, ChatPrompt, LocalThinker, Thinker
from tests.support.asking import SETTINGS, echo, think_one
from tests.support.chat_server import Answer, as_json, completion, refusal


def test_a_request_says_all_that_the_settings_say(server, thinker):
    assert isinstance(thinker(), Thinker)
    thought = think_one(
        thinker("some-model", extra_body={"chat_template_kwargs": {"enable_thinking": False}})
    )
    (body,) = server.bodies
    assert body["model"] == "some-model"
    assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.3, 0.8, 50)
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert body["messages"] == [
        {"role": "system", "content": DEFAULT_PROMPT.system},
        *(
            {"role": role, "content": text}
            for pair in DEFAULT_PROMPT.examples
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ),
        {"role": "user", "content": "why?"},
    ]
    assert (thought.text, thought.finish) == ("a thought", "eos")
    assert (thought.prompt_tokens, thought.completion_tokens) == (11, 7)


def test_a_thought_depends_on_seed_query_and_index_only(server, thinker):
    server.answer = echo
    whole = thinker().think(as_queries(["a", "b", "c"]), settings=SETTINGS.with_changes(n_thoughts=3))
    assert [[thought.text.split(" / ")[0] for thought in row] for row in whole] == [[q] * 3 for q in "abc"]
    assert len({thought.text for thought in whole[0]}) == 3
    assert thinker().think(as_queries(["b"]), settings=SETTINGS.with_changes(n_thoughts=2))[0] == whole[1][:2]
    assert (
        thinker().think(as_queries(["b"]), settings=SETTINGS.with_changes(n_thoughts=3), start=2)[0]
        == whole[1][2:]
    )
    other = thinker().think(
        as_queries(["b"]), settings=SETTINGS.with_changes(seed=6).with_changes(n_thoughts=3)
    )[0]
    assert not {thought.text for thought in other} & {thought.text for thought in whole[1]}
    assert all(0 <= body["seed"] < 2**31 for body in server.bodies)


def test_nothing_is_asked_when_nothing_is_wanted(server, thinker):
    assert thinker().think(as_queries([]), settings=SETTINGS.with_changes(n_thoughts=3)) == []
    assert thinker().think(as_queries(["a"]), settings=SETTINGS.with_changes(n_thoughts=2), start=2) == [[]]
    assert server.bodies == []


def test_order_is_kept_and_concurrency_is_bounded(server, thinker):
    together = threading.Barrier(3)

    def uneven(body, number):
        if number < 3:
            together.wait(timeout=200)
        return Answer(**{**vars(echo(body, number)), "delay": 0.02 * (number % 3)})

    server.answer = uneven
    queries = [f"query {place}" for place in range(12)]
    rows = thinker(concurrency=3, timeout=30, deadline=60).think(
        as_queries(queries), settings=SETTINGS.with_changes(n_thoughts=2)
    )
    assert [row[1].text.split(" / ")[0] for row in rows] == queries
    assert server.busiest == 3


@given(st.text(min_size=1).filter(str.strip), st.text())
def test_a_query_with_braces_is_put_in_as_it_is(query, around):
    template = ChatPrompt("{a} {query} {0} {{", system=around)
    asked = template.messages(Query(query))[-1]["content"]
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
    mine.think(as_queries(list("abcdef")), settings=SETTINGS.with_changes(n_thoughts=1))
    assert len(server.bodies) == 9
    assert len([each for each in caplog.records if "takes no 'seed'" in each.getMessage()]) == 1


def test_a_repetition_penalty_is_sent_beside_the_interface_and_left_out_where_it_is_refused(server, thinker):
    how = SETTINGS.with_changes(repetition_penalty=1.5)
    thinker().think(as_queries(["why?"]), settings=how.with_changes(n_thoughts=1))
    assert server.bodies[-1]["repetition_penalty"] == 1.5
    server.answer = picky(repetition_penalty="Unrecognized argument: repetition_penalty")
    mine = thinker()
    assert not mine.think(as_queries(["why?"]), settings=how.with_changes(n_thoughts=1))[0][0].failed
    assert "repetition_penalty" not in server.bodies[-1]
    thinker().think(as_queries(["why?"]), settings=SETTINGS.with_changes(n_thoughts=1))
    assert "repetition_penalty" not in server.bodies[-1]


def test_many_requests_at_once_learn_it_too(server, thinker, caplog):
    server.answer = picky(seed="Unrecognized argument: seed", top_p="top_p is not supported")
    rows = thinker(concurrency=8).think(
        as_queries([f"q{n}" for n in range(24)]), settings=SETTINGS.with_changes(n_thoughts=1)
    )
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
        system = body["messages"][0]["role"] == "system"
        return refusal(400, "System role not supported") if system else completion()

    server.answer = answer
    assert not think_one(thinker()).failed
    first, *_, last = server.bodies[-1]["messages"]
    assert first["role"] == last["role"] == "user"
    assert first["content"] == f"{DEFAULT_PROMPT.system}\n\n{DEFAULT_PROMPT.examples[0][0]}"
    assert last["content"] == "why?"


def test_a_bad_value_is_no_refusal_of_the_parameter(server, thinker):
    server.answer = lambda body, number: refusal(400, "max_tokens 50 and seed 7 exceed the context")
    assert think_one(thinker()).failed
    assert len(server.bodies) == 1
    assert "seed" in server.bodies[0]


def test_a_thought_that_was_cut_ends_with_its_last_whole_sentence(server, thinker):
    server.answer = lambda body, number: completion("Ice is frozen water. It is co", finish="length")
    assert think_one(thinker()).text == "Ice is frozen water."


def test_a_model_behind_an_address_is_sampled_as_one_of_this_machine(thinker):
    assert thinker().default_settings is LocalThinker.default_settings
    assert thinker().prompt == DEFAULT_PROMPT
