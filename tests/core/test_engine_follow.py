"""A follower is told every token once; what nobody wants any more leaves the batch without a trace."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from o1_retriever.engine import decode
from o1_retriever.engine.decode import write_thoughts
from o1_retriever.engine.follow import Follower
from o1_retriever.engine.rows import Job
from o1_retriever.thought import Finish, ThoughtSettings
from tests.support.caches import EXAMPLES
from tests.support.engine import (
    assert_equal_to_slow,
    assert_same_drafts,
    before_passes,
    exact_model,
    job_for,
    watched,
    written_by,
)

WARM = ThoughtSettings(temperature=1.0, top_p=0.95, max_new_tokens=16)
QUERIES = ["a", "why is the sky blue?", "z" * 30, "zwei", "x" * 20, "b"]


class Listener(Follower):
    """Keeps the pieces of each thought, and lets go of a job once it has so many tokens."""

    def __init__(self, leaves: dict[int, int] | None = None) -> None:
        self.pieces: dict[tuple[int, int], list[tuple[int, ...]]] = defaultdict(list)
        self.ends: dict[tuple[int, int], Finish] = {}
        self.leaves = leaves or {}

    def written(self, place: int, index: int, token_ids: Sequence[int], finish: Finish | None) -> None:
        """A piece; after the last one nothing may come."""
        assert (place, index) not in self.ends
        self.pieces[place, index].append(tuple(token_ids))
        if finish is not None:
            self.ends[place, index] = finish

    def tokens(self, place: int, index: int) -> tuple[int, ...]:
        """All that was told of a thought."""
        return tuple(token for piece in self.pieces[place, index] for token in piece)

    def wanted(self, place: int) -> bool:
        """Until one of the job's thoughts has as many tokens as it is given."""
        longest = max((len(self.tokens(*key)) for key in [*self.pieces] if key[0] == place), default=0)
        return longest < self.leaves.get(place, 10_000)


def jobs_of(architecture: str, start: int = 1) -> list[Job]:
    return [job_for(exact_model(architecture), query, range(start, start + 2)) for query in QUERIES]


@pytest.mark.parametrize("look_every", [1, 8])
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_every_token_is_told_once_and_in_order(
    architecture: str, look_every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "_LOOK_EVERY", {"cpu": look_every})
    local, jobs, listener = exact_model(architecture), jobs_of(architecture), Listener()
    written = written_by(local, jobs, WARM, most=2, follower=listener)
    assert_equal_to_slow(local, jobs, written, WARM)
    for place, (job, drafts) in enumerate(zip(jobs, written, strict=True)):
        for index, draft in zip(job.indices, drafts.drafts, strict=True):
            assert listener.tokens(place, index) == draft.token_ids
            assert listener.ends[place, index] == draft.finish
            assert max(map(len, listener.pieces[place, index])) <= look_every


def test_a_token_is_told_before_the_next_is_written() -> None:
    local, job = exact_model("qwen2", stops=0), jobs_of("qwen2")[0]
    seen: list[int] = []
    listener = Listener()
    with before_passes(local.model, lambda _: seen.append(len(listener.tokens(0, 1)))):
        written_by(local, [job], WARM, follower=listener)
    # The prompt's pass, then one for each token; eos and <emb> are told of nobody.
    assert seen[2:17] == list(range(1, 16))


@settings(EXAMPLES, max_examples=15)
@given(
    st.sampled_from(["llama", "qwen2", "mistral-window"]),
    st.dictionaries(st.integers(0, len(QUERIES) - 1), st.integers(0, 6), max_size=len(QUERIES)),
    st.sampled_from([None, 1, 3]),
)
def test_a_job_that_is_let_go_leaves_the_others_as_they_are(
    architecture: str, leaves: dict[int, int], most: int | None
) -> None:
    local, jobs, listener = exact_model(architecture), jobs_of(architecture), Listener(leaves)
    found = dict(write_thoughts(local, jobs, WARM, most=most, follower=listener))
    whole = written_by(local, jobs, WARM)
    for place, drafts in enumerate(whole):
        longest = max(len(draft.token_ids) for draft in drafts.drafts)
        if leaves.get(place, 10_000) > longest:
            assert_same_drafts([found[place]], [drafts])
        elif place not in found:
            told = [listener.tokens(place, index) for index in jobs[place].indices]
            assert all(len(tokens) <= leaves[place] for tokens in told)
            assert all(
                draft.token_ids[: len(tokens)] == tokens
                for draft, tokens in zip(drafts.drafts, told, strict=True)
            )
        if not leaves.get(place, 1):
            assert place not in found, "a job that nobody wants is not begun"


def test_a_batch_that_nobody_wants_costs_no_further_step() -> None:
    local, jobs = exact_model("qwen2", stops=0), jobs_of("qwen2")
    listener = Listener(dict.fromkeys(range(len(jobs)), 3))
    with before_passes(local.model, lambda _: None) as passes:
        assert list(write_thoughts(local, jobs, WARM, most=3, follower=listener)) == []
    assert len(passes) <= 2 * (1 + 3 + 1), "two flights' worth of prompts and three steps each"


@pytest.mark.parametrize("fails_at", [4, 9])
def test_work_that_is_begun_again_is_not_told_twice(fails_at: int) -> None:
    local, jobs, listener = exact_model("qwen2"), jobs_of("qwen2"), Listener()

    def fail(number: int) -> None:
        if number == fails_at:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    with watched(local, spare=1), before_passes(local.model, fail):
        written = written_by(local, jobs, WARM, follower=listener)
    for place, (job, drafts) in enumerate(zip(jobs, written, strict=True)):
        told = [listener.tokens(place, index) for index in job.indices]
        assert told == [draft.token_ids for draft in drafts.drafts]


def test_what_a_follower_raises_ends_the_call_and_harms_nobody() -> None:
    local, jobs = exact_model("qwen2"), jobs_of("qwen2")

    class Angry(Follower):
        """Refuses the first token."""

        def written(self, place: int, index: int, token_ids: Sequence[int], finish: Finish | None) -> None:
            """Raises."""
            raise LookupError("not like this")

    with pytest.raises(LookupError, match="not like this"):
        list(write_thoughts(local, jobs, WARM, follower=Angry()))
    assert_equal_to_slow(local, jobs, written_by(local, jobs, WARM), WARM)
