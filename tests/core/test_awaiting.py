"""What is awaited gives what a call gives, shares batches, blocks no event loop and leaves no work behind."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from o1_retriever import Index, Retriever, ThinkingEmbedder, ThoughtSettings
from o1_retriever.concurrency import shared
from o1_retriever.concurrency.shared import Batches, Ticket
from o1_retriever.documents import Document
from o1_retriever.encoders import CallableEncoder
from o1_retriever.engine.backend import LocalBackend
from o1_retriever.errors import InputError, SettingsError, ThinkerError
from o1_retriever.query import Query
from o1_retriever.thinkers import CallableThinker, OpenAIThinker, RequestPolicy
from o1_retriever.thought import ThoughtPiece
from tests.support.chat_server import Answer, chat_server, completion
from tests.support.engine import before_passes, exact_model, one_batch
from tests.support.process_work import letters, thoughts
from tests.support.tiny import tiny_model
from tests.support.writers import writer

WARM = ThoughtSettings(n_thoughts=2, temperature=1.0, max_new_tokens=12)
QUERIES = ["a", "why is the sky blue?", "z" * 30, "b", "zwei"]
HISTORY = [{"role": "user", "content": "Tell me of dew."}, {"role": "assistant", "content": "It is wet."}]


def local(cache: Any = False) -> ThinkingEmbedder:
    return ThinkingEmbedder(LocalBackend(exact_model("qwen2")), settings=WARM, cache=cache)


def pair(cache: Any = False) -> ThinkingEmbedder:
    encoder = CallableEncoder(letters, name="letters")
    return ThinkingEmbedder.from_parts(
        CallableThinker(thoughts, name="t"), encoder, settings=WARM, cache=cache
    )


def assert_same(found: Sequence[Any], expected: Sequence[Any]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.thoughts == other.thoughts
        assert np.allclose(one.vector, other.vector, atol=1e-5)
        assert np.allclose(one.vectors, other.vectors, atol=1e-5)


@pytest.mark.parametrize("make", [local, pair])
class TestSame:
    async def test_queries(self, make: Any, tmp_path: Path) -> None:
        expected = make().embed_queries(QUERIES)
        for cache in (False, tmp_path):
            embedder = make(cache)
            together = await asyncio.gather(*(embedder.aembed_query(query) for query in QUERIES))
            assert_same(together, expected)
            assert_same(await embedder.aembed_queries([*QUERIES, QUERIES[0]]), [*expected, expected[0]])
        assert all(thought.cached for each in together for thought in each.thoughts) is False
        again = await make(tmp_path).aembed_queries(QUERIES)
        assert all(thought.cached for each in again for thought in each.thoughts)
        assert_same(again, expected)

    async def test_options(self, make: Any) -> None:
        embedder = make()
        dimension = min(2, embedder.dimension)
        for changes in ({"thinking": "never"}, {"query_weight": 0.5}, {"n_thoughts": 1}):
            how = WARM.with_changes(**changes)
            assert_same(
                await embedder.aembed_queries(QUERIES[:2], settings=how, truncate_dim=dimension),
                embedder.embed_queries(QUERIES[:2], settings=how, truncate_dim=dimension),
            )
        rows = await embedder.aencode_queries(QUERIES, normalize_embeddings=False)
        assert np.allclose(rows, embedder.encode_queries(QUERIES, normalize_embeddings=False), atol=1e-5)
        assert (await embedder.aencode_queries("one")).shape == (embedder.dimension,)
        assert (await embedder.aencode_queries([])).shape == (0, embedder.dimension)

    async def test_thoughts_and_documents(self, make: Any) -> None:
        embedder = make()
        assert await embedder.athink(QUERIES, n_thoughts=1) == embedder.think(QUERIES, n_thoughts=1)
        texts = [f"text {number % 140}" for number in range(300)]
        rows = await embedder.aencode_documents(texts)
        assert np.allclose(rows, embedder.encode_documents(texts), atol=1e-5)
        assert (await embedder.aencode_documents([])).shape == (0, embedder.dimension)
        assert (await embedder.aencode_documents("one")).shape == (embedder.dimension,)

    async def test_a_stream_ends_with_the_thoughts_as_they_are_kept(self, make: Any, tmp_path: Path) -> None:
        embedder = make(tmp_path)
        pieces = [piece async for piece in embedder.astream_thoughts("why?")]
        written = make().think(["why?"])[0]
        assert [piece.thought for piece in pieces[-2:]] == written
        for index, thought in enumerate(written):
            assert "".join(piece.text for piece in pieces if piece.index == index).strip() == thought.text
        assert (await embedder.athink(["why?"]))[0][0].cached

    async def test_what_cannot_be_used_is_refused_before_anything_is_awaited(self, make: Any) -> None:
        embedder = make()
        with pytest.raises(InputError):
            await embedder.aembed_queries(["a", " "])
        with pytest.raises(InputError):
            await embedder.aencode_documents(["a", None])
        with pytest.raises(SettingsError):
            await embedder.aembed_queries(["a"], truncate_dim=10_000)


async def test_a_history_is_thought_after() -> None:
    embedder = local()
    expected = embedder.embed_query("and then?", history=HISTORY)
    assert_same([await embedder.aembed_query("and then?", history=HISTORY)], [expected])
    assert expected.thoughts != embedder.embed_query("and then?").thoughts


class TestBatches:
    async def test_what_is_awaited_together_is_one_batch(self) -> None:
        embedder = local()
        await embedder.aembed_query("first")
        rows: list[int] = []
        base = exact_model("qwen2").model

        def note(_module: Any, _arguments: Any, given: dict[str, Any]) -> None:
            rows.append(given["input_ids"].shape[0])

        handle = base.register_forward_pre_hook(note, with_kwargs=True)
        try:
            async with one_batch(embedder, 40):
                several = [asyncio.ensure_future(embedder.aembed_query(f"query {n}")) for n in range(40)]
            await asyncio.gather(*several)
        finally:
            handle.remove()
        assert max(rows) == 80, "the thoughts of all forty queries are written at once"

    async def test_a_stream_is_in_the_batch_of_the_others_and_told_of_itself_alone(self) -> None:
        embedder = local()
        expected = embedder.embed_queries(["streamed", *QUERIES])
        await embedder.aembed_query("first")

        async def streamed() -> list[ThoughtPiece]:
            return [piece async for piece in embedder.astream_thoughts("streamed")]

        with before_passes(exact_model("qwen2").model, lambda _: None) as passes:
            async with one_batch(embedder, 1 + len(QUERIES)):
                stream = asyncio.ensure_future(streamed())
                several = [asyncio.ensure_future(embedder.aembed_query(query)) for query in QUERIES]
            pieces, found = await stream, await asyncio.gather(*several)
        assert_same(found, expected[1:])
        for index, thought in enumerate(expected[0].thoughts):
            texts = [piece.text for piece in pieces if piece.index == index and piece.text]
            assert len(texts) > 1
            assert "".join(texts).strip() == thought.text
        alone = local()
        await alone.aembed_query("first")
        with before_passes(exact_model("qwen2").model, lambda _: None) as fewer:
            async with one_batch(alone, 1 + len(QUERIES)):
                several = [
                    asyncio.ensure_future(alone.aembed_query(query)) for query in ["streamed", *QUERIES]
                ]
            await asyncio.gather(*several)
        assert len(passes) == len(fewer)

    async def test_a_stream_that_is_begun_again_is_told_once(self) -> None:
        failed: list[int] = []

        class Alone(LocalBackend):
            """Fails after all is written, where there is more than one query."""

            def think(self, queries: Sequence[Query], **how: Any) -> Any:
                written = list(super().think(queries, **how))
                if len(queries) > 1:
                    failed.append(len(queries))
                    raise OSError("no")
                yield from written

        embedder = ThinkingEmbedder(Alone(exact_model("qwen2")), settings=WARM, cache=False)
        async with one_batch(embedder, 2):
            other = asyncio.ensure_future(embedder.aembed_query("another"))
            stream = embedder.astream_thoughts("streamed")
            first = asyncio.ensure_future(anext(stream))
        pieces = [await first, *[piece async for piece in stream]]
        await other
        assert failed == [2]
        for index, thought in enumerate(local().think(["streamed"])[0]):
            text = "".join(piece.text for piece in pieces if piece.index == index)
            assert text.strip() == thought.text

    async def test_equal_queries_are_thought_about_once_by_coroutines_and_threads(
        self, tmp_path: Path
    ) -> None:
        asked: list[str] = []

        def slow(queries: list[str], n: int) -> list[list[str]]:
            asked.extend(queries)
            time.sleep(0.1)  # whoever comes later than that finds the thoughts in the cache
            return thoughts(queries, n)

        encoder = CallableEncoder(letters, name="letters")
        embedder = ThinkingEmbedder.from_parts(CallableThinker(slow, name="t"), encoder, cache=tmp_path)
        await embedder.aencode_documents(["warm"])
        threaded = asyncio.to_thread(embedder.embed_query, "same")
        several = [embedder.aembed_query("same") for _ in range(5)]
        found = await asyncio.gather(threaded, *several)
        assert asked == ["same"]
        assert_same(found[1:], found[:-1])

    async def test_one_that_fails_takes_no_other_along(self) -> None:
        def picky(queries: list[str], n: int) -> list[list[str]]:
            if "bad" in queries:
                raise OSError("no")
            return thoughts(queries, n)

        embedder = ThinkingEmbedder.from_parts(picky, letters, cache=False)
        several = (embedder.aembed_query(text) for text in ("good", "bad", "better"))
        good, bad, better = await asyncio.gather(*several, return_exceptions=True)
        assert isinstance(bad, ThinkerError)
        assert_same([good, better], embedder.embed_queries(["good", "better"]))

    async def test_the_thread_ends_and_lets_go_of_the_model(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shared, "_IDLE_S", 0.05)
        before = set(threading.enumerate())
        embedder = ThinkingEmbedder.from_model(*tiny_model("llama"), settings=WARM, cache=False)
        await embedder.aembed_query("a")
        model = weakref.ref(embedder.backend.local.model)  # type: ignore[attr-defined]
        del embedder
        deadline = time.monotonic() + 200
        while (model() or set(threading.enumerate()) - before) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
            gc.collect()
        assert model() is None
        assert not set(threading.enumerate()) - before

    async def test_what_is_large_lets_others_have_their_turn(self) -> None:
        done: list[list[str]] = []

        def first(tickets: Sequence[Ticket[str, None]]) -> None:
            done.append([ticket.item for ticket in tickets])
            for ticket in tickets:
                ticket.settle(None)

        def second(tickets: Sequence[Ticket[str, None]]) -> None:
            first(tickets)

        batches = Batches("test", patient=True)
        large = [
            batches.ask(first, item=name, size=size) for name, size in (("a", 500), ("b", 500), ("c", 1))
        ]
        await asyncio.gather(*large, batches.ask(second, item="d"), batches.ask(second, item="e"))
        assert done == [["a", "c"], ["d", "e"], ["b"]]

    async def test_what_was_thought_about_is_embedded_before_others_are_thought_about(self) -> None:
        done: list[str] = []
        begun, go = threading.Event(), threading.Event()

        def think(queries: list[str], n: int) -> list[list[str]]:
            done.extend(queries)
            begun.set()
            go.wait(60)
            return thoughts(queries, n)

        def embed(texts: list[str]) -> Any:
            done.append("embedded")
            return letters(texts)

        embedder = ThinkingEmbedder.from_parts(think, embed, cache=False)
        await embedder.aencode_documents(["warm"])
        done.clear()
        both = [asyncio.ensure_future(embedder.aembed_query("a"))]
        await asyncio.to_thread(begun.wait, 60)
        both.append(asyncio.ensure_future(embedder.aembed_query("b")))
        while not embedder._awaited._computing._waiting:
            await asyncio.sleep(0.001)
        go.set()
        await asyncio.gather(*both)
        assert done == ["a", "embedded", "b", "embedded"]

    async def test_work_that_gives_no_result_is_an_error_and_no_wait(self) -> None:
        def lazy(tickets: Sequence[Ticket[int, int]]) -> None:
            for ticket in tickets:  # of both, or of one after the other where the machine is slow
                if ticket.item == 1:
                    ticket.settle(1)

        both = Batches("test", patient=True)
        found = await asyncio.gather(both.ask(lazy, item=1), both.ask(lazy, item=2), return_exceptions=True)
        assert found[0] == 1
        assert isinstance(found[1], RuntimeError)

    def test_the_end_of_the_program_waits_for_nobody(self) -> None:
        started, asked = threading.Event(), Batches("test")

        def work(tickets: Sequence[Ticket[int, int]]) -> None:
            started.set()
            while tickets[0].wanted:
                time.sleep(0.01)

        async def main() -> None:
            waiting = asyncio.ensure_future(asked.ask(work, item=1))
            await asyncio.to_thread(started.wait)
            asked.end()
            with pytest.raises(asyncio.CancelledError):
                await waiting

        asyncio.run(main())

    def test_one_embedder_serves_one_event_loop_after_the_other(self) -> None:
        embedder = local()
        first = asyncio.run(embedder.aembed_query("a"))
        assert_same([asyncio.run(embedder.aembed_query("a"))], [first])


class TestCancelling:
    async def test_a_cancelled_query_leaves_the_batch_and_the_others_stay_as_they_are(self) -> None:
        embedder, long = local(), WARM.with_changes(max_new_tokens=4000, temperature=1.5)
        never_ends = exact_model("qwen2", stops=0)
        endless = ThinkingEmbedder(LocalBackend(never_ends), settings=long, cache=False)
        await asyncio.gather(embedder.aembed_query("warm"), endless.aencode_documents(["warm"]))
        with before_passes(never_ends.model, lambda _: None) as passes:
            doomed = [asyncio.ensure_future(endless.aembed_query(f"q {number}")) for number in range(4)]
            while len(passes) < 8:
                await asyncio.sleep(0.01)
            for task in doomed:
                task.cancel()
            await asyncio.gather(*doomed, return_exceptions=True)
            await endless.aencode_documents(["next"])  # the thread does one thing after the other
            assert len(passes) < 2000, "nobody writes for those who have gone"
        assert all(task.cancelled() for task in doomed)
        assert_same([await embedder.aembed_query("a")], [embedder.embed_query("a")])

    async def test_rows_of_the_cancelled_go_and_those_of_the_others_go_on(self) -> None:
        model = exact_model("qwen2", stops=0)
        how = WARM.with_changes(max_new_tokens=120)
        embedder = ThinkingEmbedder(LocalBackend(model), settings=how, cache=False)
        expected = embedder.embed_query("stays")
        rows: list[int] = []

        def note(_module: Any, _arguments: Any, given: dict[str, Any]) -> None:
            rows.append(given["input_ids"].shape[0])

        handle = model.model.register_forward_pre_hook(note, with_kwargs=True)
        try:
            async with one_batch(embedder, 4):
                staying = asyncio.ensure_future(embedder.aembed_query("stays"))
                going = [asyncio.ensure_future(embedder.aembed_query(f"goes {n}")) for n in range(3)]
            while len(rows) < 6:
                await asyncio.sleep(0.005)
            for task in going:
                task.cancel()
            assert_same([await staying], [expected])
        finally:
            handle.remove()
        assert max(rows) == 8
        assert rows[-1] == 2

    async def test_leaving_a_stream_ends_the_writing(self) -> None:
        never_ends = exact_model("qwen2", stops=0)
        long = WARM.with_changes(max_new_tokens=4000)
        embedder = ThinkingEmbedder(LocalBackend(never_ends), settings=long, cache=False)
        with before_passes(never_ends.model, lambda _: None) as passes:
            stream = embedder.astream_thoughts("why?")
            async for _ in stream:
                break
            await stream.aclose()
            await embedder.aencode_documents(["next"])  # the thread does one thing after the other
            assert len(passes) < 2000

    async def test_whoever_waits_for_the_same_query_thinks_when_the_first_has_gone(self) -> None:
        entered, go = threading.Event(), threading.Event()

        def slow(queries: list[str], n: int) -> list[list[str]]:
            entered.set()
            go.wait(200)
            return thoughts(queries, n)

        embedder = ThinkingEmbedder.from_parts(slow, letters, cache=False)
        first = asyncio.ensure_future(embedder.aembed_query("same"))
        await asyncio.to_thread(entered.wait)
        second = asyncio.ensure_future(embedder.aembed_query("same"))
        await asyncio.sleep(0.05)
        first.cancel()
        go.set()
        assert (await second).thoughts[0].text == "same 0"


@pytest.mark.parametrize("thinker", ["local", "pair"])
async def test_the_loop_goes_on_while_a_model_thinks(thinker: str, tmp_path: Path) -> None:
    """The bar of 20 ms is measured on a quiet machine (benchmarks.speed); here passes of the model are."""
    if thinker == "local":
        model = exact_model("qwen2", stops=0).model
        embedder = ThinkingEmbedder(
            LocalBackend(exact_model("qwen2", stops=0)), settings=WARM, cache=tmp_path
        )
    else:
        one = writer()
        model = one.local.model
        embedder = ThinkingEmbedder.from_parts(one, letters, cache=tmp_path)
    seen: set[int] = set()

    async def tick() -> None:
        while True:
            await asyncio.sleep(0.001)
            seen.add(len(passes))

    with before_passes(model, lambda _: time.sleep(0.01)) as passes:
        ticking = asyncio.ensure_future(tick())
        await asyncio.gather(*(embedder.aembed_query(f"query {n}", settings=WARM) for n in range(64)))
        ticking.cancel()
    assert len(passes) >= 12
    assert len(seen) > 0.8 * len(passes), "the loop goes on during each of them"


class TestEndpoint:
    async def test_it_is_awaited_without_a_thread_a_query(self) -> None:
        with chat_server() as server:
            together = threading.Barrier(5)

            def answer(_body: Any, number: int) -> Answer:
                if number < 5:
                    together.wait(200)  # they are under way at the same time
                return replace(completion(f"thought {number}"), delay=0.02)

            server.answer = answer
            policy = RequestPolicy(concurrency=16)
            thinker = OpenAIThinker("m", base_url=server.url, policy=policy)
            embedder = ThinkingEmbedder.from_parts(thinker, letters, settings=WARM, cache=False)
            most, before = 0, set(threading.enumerate())  # of other tests' embedders

            async def watch() -> None:
                nonlocal most
                while True:
                    new = set(threading.enumerate()) - before
                    most = max(most, sum(each.name.startswith("o1-") for each in new))
                    await asyncio.sleep(0.005)

            watching = asyncio.ensure_future(watch())
            several = (embedder.aembed_query(f"query {number}") for number in range(30))
            found = await asyncio.gather(*several)
            watching.cancel()
            assert len({thought.text for each in found for thought in each.thoughts}) == 60
            assert most <= 3, "one for the endpoint's loop, one for the cache, one for the vectors"
            assert server.busiest >= 5

    async def test_a_cancelled_query_takes_its_requests_back(self) -> None:
        with chat_server() as server:
            server.answer = lambda body, number: Answer(delay=30)
            thinker = OpenAIThinker("m", base_url=server.url, policy=RequestPolicy(concurrency=2))
            embedder = ThinkingEmbedder.from_parts(thinker, letters, settings=WARM, cache=False)
            task = asyncio.ensure_future(embedder.aembed_query("a"))
            while len(server.bodies) < 2:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            server.answer = lambda body, number: completion("later")
            assert (await embedder.aembed_query("b")).thoughts[0].text == "later"

    async def test_synchronous_calls_work_inside_a_running_loop(self) -> None:
        with chat_server() as server:
            thinker = OpenAIThinker("m", base_url=server.url)
            embedder = ThinkingEmbedder.from_parts(thinker, letters, settings=WARM, cache=False)
            expected = embedder.embed_query("a")
            assert expected.thoughts[0].text == "a thought"
            assert_same([await embedder.aembed_query("a")], [expected])
        assert local().embed_query("a").thoughts


def ids_of(results: Sequence[Any]) -> list[list[str]]:
    return [[hit.id for hit in result] for result in results]


class TestRetriever:
    async def test_it_finds_and_explains_what_a_call_does(self, tmp_path: Path) -> None:
        embedder = local(tmp_path / "cache")
        with Index(tmp_path / "index", embedder) as index:
            index.add([Document(id=str(n), text=f"text {n}", metadata={"n": n}) for n in range(9)])
            retriever = Retriever(embedder, index)
            for options in ({}, {"hybrid": True}, {"thinking": "auto"}, {"where": {"n": {"$gte": 4}}}):
                expected = retriever.search_many(QUERIES, k=4, **options)
                found = await asyncio.gather(*(retriever.asearch(each, k=4, **options) for each in QUERIES))
                assert ids_of(found) == ids_of(expected)
                assert [each.decision for each in found] == [each.decision for each in expected]
                many = await retriever.asearch_many(QUERIES, k=4, **options)
                assert ids_of(many) == ids_of(expected)
            assert await retriever.asearch_many([]) == []
            explained, wanted = await retriever.aexplain("a", k=3), retriever.explain("a", k=3)
            assert ids_of([explained.result]) == ids_of([wanted.result])
            assert [thought for thought, _ in explained.per_thought] == [
                each for each, _ in wanted.per_thought
            ]
            assert len(explained.moves) == len(wanted.moves)

    async def test_searches_with_the_same_parameters_are_looked_up_together(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        embedder = pair(tmp_path / "cache")
        with Index(tmp_path / "index", embedder) as index:
            index.add([Document(id=str(n), text="a" * n) for n in range(1, 9)])
            retriever = Retriever(embedder, index)
            embedder.embed_queries([Query(f"query {n}") for n in range(20)])
            calls: list[int] = []
            real = index.search_groups
            monkeypatch.setattr(
                index, "search_groups", lambda groups, **how: calls.append(len(groups)) or real(groups, **how)
            )
            await asyncio.gather(*(retriever.asearch(f"query {n}", k=2) for n in range(20)))
            assert sum(calls) == 20
            assert len(calls) <= 10
