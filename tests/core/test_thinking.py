"""What several callers want at once is computed once; nobody waits for ever; a cache changes no vector."""

from __future__ import annotations

import functools
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o1_retriever import QueryEmbedding, ThinkingEmbedder, ThoughtSettings
from o1_retriever.concurrency.shared import SharedWork
from o1_retriever.engine.backend import LocalBackend
from o1_retriever.engine.load import assemble
from o1_retriever.errors import EncoderError
from o1_retriever.vectors import unit
from tests.support.caches import EXAMPLES, FILE, execute, rows
from tests.support.engine import TOLERANCE, before_passes, exact_model, gap, watched

WARM = ThoughtSettings(n_thoughts=2, temperature=1.0, max_new_tokens=6)
PATIENCE = 200.0  # seconds after which a caller counts as stuck


def embedder_of(cache: Path | None = None) -> ThinkingEmbedder:
    return ThinkingEmbedder(LocalBackend(exact_model("qwen2")), settings=WARM, cache=cache or False)


def assert_same(some: Sequence[QueryEmbedding], others: Sequence[QueryEmbedding]) -> None:
    for one, other in zip(some, others, strict=True):
        assert one.query == other.query
        assert one.thoughts == other.thoughts
        assert gap(one.vectors, other.vectors) < TOLERANCE
        assert gap(one.vector, other.vector) < TOLERANCE


@contextmanager
def passes(act: Callable[[int], None] = lambda _: None) -> Iterator[list[int]]:
    """The passes of the model, for thoughts and for vectors alone."""
    with before_passes(exact_model("qwen2").model.base_model, act) as seen:
        yield seen


def cost_of(*queries: str) -> int:
    """How many passes these queries take when they are asked alone."""
    with passes() as seen:
        embedder_of().embed_queries(queries)
    return len(seen)


class Gate:
    """Holds the first pass of the model until the test has seen what it wanted to see."""

    def __init__(self, error: Exception | None = None) -> None:
        self.reached, self.opened, self.error = threading.Event(), threading.Event(), error

    def __call__(self, number: int) -> None:
        if number == 0:
            self.reached.set()
            assert self.opened.wait(PATIENCE)
            if self.error is not None:
                raise self.error


@contextmanager
def pool(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that are not waited for when a test has failed."""
    executor = ThreadPoolExecutor(workers)
    try:
        yield executor
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


@contextmanager
def claims(embedder: ThinkingEmbedder) -> Iterator[Callable[[int], None]]:
    """Gives what waits until so many callers have claimed what they want, and are at work or waiting."""
    shared, claimed = embedder._pipeline.shared, threading.Semaphore(0)
    real = shared.claim

    @contextmanager
    def counting(keys: Any) -> Iterator[Any]:
        with real(keys) as claim:
            claimed.release()
            yield claim

    def wait_for(callers: int) -> None:
        for _ in range(callers):
            assert claimed.acquire(timeout=PATIENCE)

    shared.claim = counting  # type: ignore[method-assign]
    yield wait_for
    del shared.claim


def all_wait(asked: Sequence[Future[object]]) -> bool:
    """Whether none of the callers gets anywhere within a twentieth of a second."""
    time.sleep(0.05)
    return not any(future.done() for future in asked)


class TestCallersAtOnce:
    @pytest.mark.parametrize("cached", [False, True])
    def test_one_computes_and_all_have_the_result(self, cached: bool, tmp_path: Path) -> None:
        expected, cost = embedder_of().embed_queries(["why?"]), cost_of("why?")
        embedder, gate = embedder_of(tmp_path if cached else None), Gate()
        with passes(gate) as seen, pool(5) as executor, claims(embedder) as wait_for:
            asked = [executor.submit(embedder.embed_queries, ["why?"])]
            assert gate.reached.wait(PATIENCE)
            asked += [executor.submit(embedder.embed_queries, ["why?"]) for _ in range(4)]
            wait_for(5)
            assert all_wait(asked)
            gate.opened.set()
            for future in asked:
                assert_same(future.result(PATIENCE), expected)
        assert len(seen) == cost, "neither thoughts nor vectors are computed twice"

    def test_a_caller_that_fails_leaves_the_others_to_do_it(self) -> None:
        expected, cost = embedder_of().embed_queries(["why?"]), cost_of("why?")
        embedder, gate = embedder_of(), Gate(RuntimeError("the driver is gone"))
        with passes(gate) as seen, pool(4) as executor, claims(embedder) as wait_for:
            failing = executor.submit(embedder.embed_queries, ["why?"])
            assert gate.reached.wait(PATIENCE)
            others = [executor.submit(embedder.embed_queries, ["why?"]) for _ in range(3)]
            wait_for(4)
            assert all_wait(others)
            gate.opened.set()
            with pytest.raises(RuntimeError, match="the driver is gone"):
                failing.result(PATIENCE)
            for future in others:
                assert_same(future.result(PATIENCE), expected)
        assert len(seen) == 1 + cost, "one of them, for all of them"
        assert_same(embedder.embed_queries(["why?"]), expected)

    def test_only_what_is_under_way_is_waited_for(self) -> None:
        """The second caller shares one query of three and thinks about its own meanwhile."""
        asked = (["a", "b"], ["b", "c"])
        expected = [embedder_of().embed_queries(queries) for queries in asked]
        embedder, gate = embedder_of(), Gate()
        local = exact_model("qwen2")
        with watched(local) as watch, passes(gate), pool(2) as executor, claims(embedder) as wait_for:
            first = executor.submit(embedder.embed_queries, asked[0])
            assert gate.reached.wait(PATIENCE)
            second = executor.submit(embedder.embed_queries, asked[1])
            wait_for(2)
            assert all_wait([first, second])
            gate.opened.set()
            assert_same(first.result(PATIENCE), expected[0])
            assert_same(second.result(PATIENCE), expected[1])
        assert sorted(watch.flights) == [2, 4], "two thoughts about each of three queries"

    def test_other_settings_are_other_work(self) -> None:
        changes = [{}, {"n_thoughts": 3}, {"seed": 1}, {"temperature": 0.0}, {"max_new_tokens": 3}]
        how = [WARM.with_changes(**change) for change in changes]
        expected = [embedder_of().embed_query("why?", settings=one) for one in how]
        embedder, gate = embedder_of(), Gate()
        with passes(gate), pool(5) as executor:
            asked = [executor.submit(embedder.embed_query, "why?", settings=one) for one in how]
            assert gate.reached.wait(PATIENCE)
            gate.opened.set()
            assert_same([future.result(PATIENCE) for future in asked], expected)

    def test_two_embedders_of_one_model_take_turns_on_it(self) -> None:
        """As with another instruction each: passes at once would read each other's states."""
        local = exact_model("qwen2")
        other = assemble("another", local.model, local.template.tokenizer, instruction="find it: ")
        embedders = [embedder_of(), ThinkingEmbedder(LocalBackend(other), settings=WARM, cache=False)]
        expected = [embedder.embed_query("why?") for embedder in embedders]
        assert gap(expected[0].vector, expected[1].vector) > 1e-3
        gate = Gate()
        with passes(gate) as seen, pool(2) as executor:
            asked = [executor.submit(embedders[0].embed_query, "why?")]
            assert gate.reached.wait(PATIENCE)
            asked.append(executor.submit(embedders[1].embed_query, "why?"))
            assert all_wait(asked)
            assert len(seen) == 1
            gate.opened.set()
            assert_same([future.result(PATIENCE) for future in asked], expected)

    @settings(EXAMPLES, max_examples=12)
    @given(st.lists(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=6), min_size=2, max_size=5))
    def test_callers_with_overlapping_queries_in_any_order_all_finish(self, sets: list[list[str]]) -> None:
        embedder = embedder_of()
        together = threading.Barrier(len(sets))

        def ask(queries: list[str]) -> list[QueryEmbedding]:
            together.wait(PATIENCE)
            return embedder.embed_queries(queries, batch_size=1)

        with pool(len(sets)) as executor:
            asked = [executor.submit(ask, queries) for queries in sets]
            found = [future.result(PATIENCE) for future in asked]
        for queries, embeddings in zip(sets, found, strict=True):
            assert_same(embeddings, [_expected(query) for query in queries])


def test_a_vector_of_length_one_points_where_it_did():
    rows = np.array([[3, 4], [-0.3, 0.4], [1e-20, 0]], np.float64)
    assert unit(rows) == pytest.approx(np.array([[0.6, 0.8], [-0.6, 0.8], [1, 0]]))
    assert unit(rows[1]) == pytest.approx([-0.6, 0.8])
    assert unit(rows).dtype == np.float32
    for bad in ([0.0, 0.0], [np.inf, 1.0], [np.nan, 1.0]):
        with pytest.raises(
            EncoderError, match=rf"Vector 1 has length {np.linalg.norm(bad)}; expected a direction"
        ):
            unit(np.array([[3.0, 4.0], bad, [1.0, 1.0]]))


class TestBatches:
    def test_equal_queries_of_a_batch_are_computed_once(self) -> None:
        with watched(exact_model("qwen2")) as watch, passes() as seen:
            found = embedder_of().embed_queries(["a", "b", "a", "a", "b"])
        assert watch.flights == [4], "two thoughts about each of two queries"
        assert len(seen) == cost_of("a", "b")
        assert_same(found, [_expected(query) for query in "abaab"])

    def test_cached_queries_cost_no_pass_in_a_batch_with_others(self, tmp_path: Path) -> None:
        embedder_of(tmp_path).embed_queries(["a", "b"])
        embedder = embedder_of(tmp_path)
        with passes() as seen:
            assert_same(embedder.embed_queries(["b", "a", "b"]), [_expected(query) for query in "bab"])
        assert seen == []
        with watched(exact_model("qwen2")) as watch:
            assert_same(embedder.embed_queries(["a", "c", "b"]), [_expected(query) for query in "acb"])
        assert watch.flights == [2], "only the new query is thought about"

    @settings(EXAMPLES, max_examples=20)
    @given(
        k=st.integers(1, 4),
        lost=st.tuples(st.sets(st.integers(0, 11)), st.sets(st.integers(0, 14))),
        queries=st.lists(st.sampled_from("abcd"), min_size=1, max_size=5),
        batch_size=st.sampled_from([None, 1, 2]),
    )
    def test_whatever_the_cache_has_lost_the_result_is_that_of_an_empty_one(
        self,
        k: int,
        lost: tuple[set[int], set[int]],
        queries: list[str],
        batch_size: int | None,
        tmp_path_factory: pytest.TempPathFactory,
    ) -> None:
        folder = tmp_path_factory.mktemp("lossy")
        (folder / FILE).write_bytes(_file_of_abc())
        for table, places in zip(("thoughts", "vectors"), lost, strict=True):
            ids = [number for (number,) in rows(folder, f"SELECT id FROM {table} ORDER BY id")]
            assert len(ids) > max(places, default=0)
            execute(folder, *(f"DELETE FROM {table} WHERE id = {ids[place]}" for place in places))
        how = WARM.with_changes(n_thoughts=k)
        embedder = embedder_of(folder)
        assert_same(
            embedder.embed_queries(queries, settings=how, batch_size=batch_size),
            [_expected(query, k) for query in queries],
        )
        with passes() as seen:
            again = embedder.embed_queries(queries, settings=how)
        assert seen == [], "what was lost has been kept again"
        assert_same(again, [_expected(query, k) for query in queries])
        assert embedder.cache is not None
        embedder.cache.close()


@functools.cache
def _expected(query: str, k: int = 2) -> QueryEmbedding:
    return embedder_of().embed_query(query, settings=WARM.with_changes(n_thoughts=k))


@functools.cache
def _file_of_abc() -> bytes:
    """A cache with four thoughts about each of three queries, their vectors, and the fast ones."""
    with tempfile.TemporaryDirectory() as folder:
        embedder = embedder_of(Path(folder))
        embedder.embed_queries(["a", "b", "c"], settings=WARM.with_changes(n_thoughts=4))
        assert embedder.cache is not None
        embedder.cache.close()
        return (Path(folder) / FILE).read_bytes()


class TestSharedWork:
    def test_a_key_is_claimed_by_the_first_alone(self) -> None:
        work: SharedWork[str, str] = SharedWork()
        with work.claim(["a", "b", "a"]) as (mine, theirs):
            assert (mine, theirs) == ({"a", "b"}, {})
            with work.claim(["b", "c"]) as (other, waits):
                assert (other, set(waits)) == ({"c"}, {"b"})
                work.settle("b", "found")
                assert waits["b"].result(0) == "found"
        with work.claim(["a", "b", "c"]) as (mine, theirs):
            assert (mine, theirs) == ({"a", "b", "c"}, {}), "what is settled or given up is free again"

    def test_what_is_not_settled_is_given_up(self) -> None:
        work: SharedWork[str, str] = SharedWork()
        with work.claim(["a", "b"]):
            with work.claim(["a", "b"]) as (_, waits):
                pass
            work.settle("a", "found")
        assert waits["a"].result(0) == "found"
        with pytest.raises(LookupError):
            waits["b"].result(0)

    def test_leaving_gives_up_only_what_is_ones_own(self) -> None:
        work: SharedWork[str, str] = SharedWork()
        with work.claim(["a"]):
            with work.claim(["a"]):
                pass
            with work.claim(["a"]) as (mine, waits):
                assert mine == set()
                assert not waits["a"].done()

    def test_what_was_settled_and_is_claimed_again_is_not_given_up(self) -> None:
        work: SharedWork[str, str] = SharedWork()
        first = work.claim(["a"])
        first.__enter__()
        work.settle("a", "found")
        with work.claim(["a"]) as (mine, _), work.claim(["a"]) as (_, waits):
            assert mine == {"a"}
            first.__exit__(None, None, None)
            assert not waits["a"].done()
            work.settle("a", "found again")
        assert waits["a"].result(0) == "found again"

    def test_an_error_gives_up_as_well(self) -> None:
        work: SharedWork[str, str] = SharedWork()
        waits: dict[str, Future[str]] = {}

        def fails() -> None:
            with work.claim(["a"]), work.claim(["a"]) as (_, theirs):
                waits.update(theirs)
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fails()
        with pytest.raises(LookupError):
            waits["a"].result(0)
