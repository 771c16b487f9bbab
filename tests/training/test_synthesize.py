"""Synthesis against servers that work, and that do not: the same rows come out."""

from __future__ import annotations

import gzip
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from o1_retriever.endpoint.exchange import RateLimit, RequestPolicy
from o1_retriever.errors import SettingsError, ThinkerError
from o1_retriever_training.experts import EndpointExpert, LocalExpert, as_expert
from o1_retriever_training.ledger import LedgerError
from o1_retriever_training.recipe import Contributor, Recipe
from o1_retriever_training.rows import DataError
from o1_retriever_training.synthesize import Options, synthesize
from tests.support.chat_server import Answer, ChatServer, chat_server, refusal
from tests.support.faults import answers_with_faults, honest
from tests.support.tiny import tiny_model

# A busy machine asks nothing twice for being slow: some tests count the requests.
PATIENT = RequestPolicy(concurrency=8, retries=8, backoff=0.001, timeout=30, deadline=60)
QUIET = Options(show=False)


@pytest.fixture
def server():
    with chat_server() as running:
        running.answer = honest
        yield running


def pairs_file(folder: Path, count: int = 40) -> Path:
    path = folder / "pairs.jsonl"
    rows = [
        {"_id": n, "query": f"question {n}?", "pos": [f"answer {n}"], "source": "me"} for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def expert(server: ChatServer, **more) -> EndpointExpert:
    return EndpointExpert("m", base_url=server.url, policy=more.pop("policy", PATIENT), **more)


def test_every_row_has_its_candidates_and_keeps_what_it_had(server: ChatServer, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    tally, problems = synthesize(pairs_file(tmp_path), out, experts=expert(server), options=QUIET)
    rows = rows_of(out)
    assert [row["id"] for row in rows] == [str(number) for number in range(40)]
    assert {row["source"] for row in rows} == {"me"}
    assert all(len(row["all_thought"]) == 3 == len(set(row["all_thought"])) for row in rows)
    assert rows[0]["writers"] == ["m"] * 3
    assert rows[0]["tokens"] == [33, 21]
    assert len(server.bodies) == 120
    assert server.busiest <= 8
    assert (tally.written, tally.failures, tally.prompt_tokens) == (40, 0, 1320)
    assert not problems
    assert all("answer" not in body["messages"][-1]["content"].rsplit("Query:")[-1] for body in server.bodies)


async def test_it_runs_within_an_event_loop_as_in_a_notebook(server: ChatServer, tmp_path: Path) -> None:
    tally, _ = synthesize(
        pairs_file(tmp_path, 3), tmp_path / "out.jsonl", experts=expert(server), options=QUIET
    )
    assert tally.written == 3


def test_an_expert_sees_other_queries_never_its_own_documents(server: ChatServer, tmp_path: Path) -> None:
    synthesize(pairs_file(tmp_path), tmp_path / "out.jsonl", experts=expert(server), options=QUIET)
    for body in server.bodies:
        shown, _, asked = body["messages"][-1]["content"].rpartition("Query: ")
        number = asked.removeprefix("question ").split("?")[0]
        assert shown.count("Response: answer") == 3
        assert f"question {number}?" not in shown
        assert f"answer {number}\n" not in shown


def test_faults_change_no_row(server: ChatServer, tmp_path: Path) -> None:
    pairs = pairs_file(tmp_path)
    began = time.monotonic()
    synthesize(pairs, tmp_path / "plain.jsonl", experts=expert(server), options=QUIET)
    server.answer = answers_with_faults(seed=1, share=0.3)
    # An answer is slow where it takes longer than all of the plain ones together.
    hasty = replace(PATIENT, timeout=max(0.3, time.monotonic() - began))
    tally, _ = synthesize(
        pairs, tmp_path / "faulty.jsonl", experts=expert(server, policy=hasty), options=QUIET
    )
    assert tally.failures == 0
    assert (tmp_path / "faulty.jsonl").read_bytes() == (tmp_path / "plain.jsonl").read_bytes()


def test_failures_are_recorded_and_retried_on_request_alone(server: ChatServer, tmp_path: Path) -> None:
    pairs, out = pairs_file(tmp_path), tmp_path / "out.jsonl"
    plain = tmp_path / "plain.jsonl"
    synthesize(pairs, plain, experts=expert(server), options=QUIET)
    seed = server.bodies[1]["seed"]

    def half(body, number: int) -> Answer:
        refused = body["seed"] == seed and body["messages"][-1]["content"].endswith(
            "Query: question 7?\nResponse:"
        )
        return refusal(400, "I will not") if refused else honest(body, number)

    server.answer = half
    tally, _ = synthesize(pairs, out, experts=expert(server), options=QUIET)
    row = rows_of(out)[7]
    assert tally.failures == 1
    assert row["all_thought"].count(None) == 1
    assert "I will not" in row["failures"][0]["reason"]
    server.answer, before = honest, len(server.bodies)
    assert synthesize(pairs, out, experts=expert(server), options=QUIET)[0].kept == 40
    assert len(server.bodies) == before
    synthesize(pairs, out, experts=expert(server), options=Options(show=False, retry_failed=True))
    assert len(server.bodies) == before + 1, "candidates that were there have been asked for again"
    assert out.read_bytes() == plain.read_bytes()
    assert not (tmp_path / "out.jsonl.retry").exists()


def test_a_dead_server_stops_the_run_which_then_goes_on(server: ChatServer, tmp_path: Path) -> None:
    pairs, out, plain = pairs_file(tmp_path), tmp_path / "out.jsonl", tmp_path / "plain.jsonl"
    synthesize(pairs, plain, experts=expert(server), options=QUIET)
    start = len(server.bodies)
    server.answer = lambda body, number: honest(body, 0) if number < start + 50 else Answer(drop=True)
    weak = RequestPolicy(concurrency=4, retries=1, backoff=0.001)
    with pytest.raises(ThinkerError, match="failed 4 times in a row"):
        synthesize(pairs, out, experts=expert(server, policy=weak), options=QUIET)
    done = rows_of(out)
    assert 5 < len(done) < 40
    assert not any(row.get("failures") for row in done[:-8])
    server.answer = honest
    synthesize(pairs, out, experts=expert(server), options=Options(show=False, retry_failed=True))
    assert out.read_bytes() == plain.read_bytes()


def test_a_wrong_key_is_said_at_once_and_not_repeated(server: ChatServer, tmp_path: Path) -> None:
    server.answer = lambda body, number: refusal(401, "wrong key secret-key")
    with pytest.raises(ThinkerError) as caught:
        synthesize(
            pairs_file(tmp_path),
            tmp_path / "out.jsonl",
            experts=expert(server, api_key="secret-key"),
            options=QUIET,
        )
    assert "secret-key" not in str(caught.value)
    assert len(server.bodies) <= 9
    assert not rows_of(tmp_path / "out.jsonl")


def test_the_pace_is_kept(server: ChatServer, tmp_path: Path) -> None:
    limit, began = RateLimit(requests=60 * 40), time.monotonic()
    synthesize(
        pairs_file(tmp_path, 40), tmp_path / "out.jsonl", experts=expert(server, limit=limit), options=QUIET
    )
    arrived = sorted(moment - began for moment in server.times)
    assert len(arrived) == 120
    # 40 at once and 40 a second, at whatever time they come here.
    assert all(count <= 40 + 40 * moment + 1 for count, moment in enumerate(arrived, 1))


def test_several_experts_and_instructions_contribute(server: ChatServer, tmp_path: Path) -> None:
    recipe = Recipe(
        contributors=(
            Contributor(expert="big", n=1, instruction="Think of facts."),
            Contributor(expert="big", n=1, instruction="Think of terms."),
            Contributor(expert="book", n=2),
        ),
        examples=0,
    )
    book = {f"question {number}?": [f"first {number}", f"second {number}"] for number in range(3)}
    out = tmp_path / "out.jsonl"
    synthesize(pairs_file(tmp_path, 3), out, experts={"big": expert(server), "book": book}, recipe=recipe,
               options=QUIET)  # fmt: skip
    row = rows_of(out)[1]
    assert row["all_thought"][2:] == ["first 1", "second 1"]
    assert row["writers"][:2] == ["m", "m"]
    assert row["writers"][2].startswith("recorded ")
    assert {body["messages"][0]["content"] for body in server.bodies} == {
        "Think of facts.",
        "Think of terms.",
    }


def test_a_recipe_that_differs_is_refused(server: ChatServer, tmp_path: Path) -> None:
    pairs, out = pairs_file(tmp_path, 3), tmp_path / "out.jsonl"
    synthesize(pairs, out, experts=expert(server), options=QUIET)
    with pytest.raises(LedgerError, match=r"temperature was 0.7, is 0.2"):
        synthesize(pairs, out, experts=expert(server), recipe=Recipe(temperature=0.2), options=QUIET)


def test_a_local_model_thinks_through_the_engine(tmp_path: Path) -> None:
    model, tokenizer = tiny_model("llama")
    out = tmp_path / "out.jsonl"
    one = LocalExpert(model, tokenizer, name="tiny")
    recipe = Recipe(max_tokens=6, temperature=1.0)
    synthesize(pairs_file(tmp_path, 4), out, experts=one, recipe=recipe, options=QUIET)
    rows = rows_of(out)
    assert sum(thought is not None for row in rows for thought in row["all_thought"]) > 6
    assert rows[0]["tokens"][1] <= 18
    again = tmp_path / "again.jsonl"
    synthesize(pairs_file(tmp_path, 4), again, experts=one, recipe=recipe, options=QUIET)
    assert again.read_bytes() == out.read_bytes()


BAD = b"""\xef\xbb\xbf{"query": "first?", "pos": ["a"]}
{"query": "torn", "po
{"pos": ["no query"]}
{"query": "  ", "pos": ["a"]}
{"query": "caf\xe9?", "pos": ["a"]}

["a", "list"]
{"query": "wrong pos", "pos": 7}
{"_id": 1, "query": "second?", "pos": "one text"}
{"_id": 1, "query": "third?", "pos": []}
{"query": "first?", "pos": ["a"]}
"""


def test_bad_lines_are_named_counted_and_left_out(server: ChatServer, tmp_path: Path) -> None:
    pairs = tmp_path / "bad.jsonl.gz"
    pairs.write_bytes(gzip.compress(BAD))
    out = tmp_path / "out.jsonl"
    tally, problems = synthesize(pairs, out, experts=expert(server), options=QUIET)
    assert [row["query"] for row in rows_of(out)] == ["first?", "second?"]
    assert tally.rows == 2
    said = str(problems)
    for place in ("line 2", "line 3", "line 4", "line 5: byte 0xe9 at offset 14", "line 7", "line 8"):
        assert place in said
    for what in ("'query' is missing", "repeated id: 1", "repeated row: 1", "expected an object"):
        assert what in said
    strict = Options(show=False, strict=True)
    with pytest.raises(DataError, match="line 2: not JSON"):
        synthesize(pairs, tmp_path / "strict.jsonl", experts=expert(server), options=strict)


@pytest.mark.parametrize(
    ("value", "said"),
    [({"temprature": 1}, "temprature"), ({"contributors": [{"n": 0}]}, "contributors.0.n"), ([], "whole")],
)
def test_a_wrong_recipe_names_the_field(value, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        Recipe.of(value)


def test_an_endpoint_without_a_model_says_what_to_type() -> None:
    with pytest.raises(SettingsError, match="--expert-model"):
        as_expert("http://127.0.0.1:1/v1")


def test_an_endpoint_is_sent_all_of_the_recipes_sampling(server: ChatServer, tmp_path: Path) -> None:
    recipe = Recipe(repetition_penalty=1.3, temperature=0.6, top_p=0.8, max_tokens=40)
    out = tmp_path / "out.jsonl"
    synthesize(pairs_file(tmp_path, 2), out, experts=expert(server), recipe=recipe, options=QUIET)
    names = ("repetition_penalty", "temperature", "top_p", "max_tokens")
    assert {tuple(body.get(name) for name in names) for body in server.bodies} == {(1.3, 0.6, 0.8, 40)}
