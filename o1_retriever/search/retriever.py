"""Queries in, passages out, with the thoughts that led there."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Unpack

from o1_retriever.concurrency.shared import Batches, Ticket, called, finished
from o1_retriever.embedder import ThinkingEmbedder
from o1_retriever.errors import FingerprintError
from o1_retriever.guard import LOOKED_AT, Decision
from o1_retriever.index.filters import Filter, Where, as_filter
from o1_retriever.index.foreign import ForeignIndex
from o1_retriever.index.hits import Hit, check_count
from o1_retriever.index.index import Index
from o1_retriever.query import Given, History, Query, as_queries, as_query
from o1_retriever.ranking.bm25 import Bm25, Reading
from o1_retriever.reporting import counted
from o1_retriever.search.explanation import RANKED, Explanation, ExplanationTimings, moves
from o1_retriever.search.relevance import Cutoff
from o1_retriever.search.result import SearchOptions, SearchResult, SearchSettings
from o1_retriever.thought import QueryEmbedding, Thinking, Thought, ThoughtSettings, Timings, Vector


class Retriever:
    """Answers queries from an index: thinks about each, embeds it with its thoughts, finds the nearest.

    The index is ours, or a vector store of others (`ForeignIndex`), which is searched in the same ways.
    `options` are the fields of `SearchSettings`: `hybrid=True` fuses with BM25, `pooling="best"` searches for
    each thought, `thinking="auto"` thinks only where the query alone does not find something clear. Every
    search may pass others. The index must be of the embedder's own document space; `FingerprintError`
    otherwise.
    """

    def __init__(
        self, embedder: ThinkingEmbedder, index: Index | ForeignIndex, **options: Unpack[SearchOptions]
    ) -> None:
        found, expected = index.space, embedder.space
        if found != expected:
            raise FingerprintError(
                f"{index.name} is of the document space {found.fingerprint}, the embedder of "
                f"{expected.fingerprint}; expected the same one.",
                hint="Use the embedder that built the index, or index into another folder.",
            )
        self.embedder = embedder
        self.index = index
        self.search_settings = SearchSettings().with_changes(**options)

    def search(
        self,
        query: str | Query,
        *,
        k: int = 10,
        where: Where = None,
        settings: ThoughtSettings | None = None,
        history: History = None,
        thoughts: Given = None,
        **options: Unpack[SearchOptions],
    ) -> SearchResult:
        """The `k` passages nearest to one query. All else is as in `search_many`.

        `history` is the conversation before it: a list of turns, in any form that `Conversation.of` reads.
        `thoughts` are your own about it, texts or `Thought` objects: then none is written.
        """
        checked = [as_query(query, history, thoughts)]
        return self.search_many(checked, k=k, where=where, settings=settings, **options)[0]

    async def asearch(
        self,
        query: str | Query,
        *,
        k: int = 10,
        where: Where = None,
        settings: ThoughtSettings | None = None,
        history: History = None,
        thoughts: Given = None,
        **options: Unpack[SearchOptions],
    ) -> SearchResult:
        """`search` for coroutines: the event loop goes on meanwhile.

        Queries that are awaited at the same time are thought about together (see
        `ThinkingEmbedder.aembed_queries`) and, with the same parameters, looked up together.
        """
        checked = [as_query(query, history, thoughts)]
        return (await self._prepared(k, where, settings, False, options, blocking=False).results(checked))[0]

    def search_many(
        self,
        queries: Sequence[str | Query],
        *,
        k: int = 10,
        where: Where = None,
        settings: ThoughtSettings | None = None,
        show_progress_bar: bool | None = None,
        histories: Sequence[History] | None = None,
        thoughts: Sequence[Given] | None = None,
        **options: Unpack[SearchOptions],
    ) -> list[SearchResult]:
        """The `k` passages nearest to each query, in the order of the queries.

        They are thought about together and looked up together. `where` filters by metadata as in
        `Index.search`; `settings` None takes the embedder's own; `options` are those of the class, for this
        search. Where `settings` say `thinking="never"` and no `thinking` is passed here, no thought is
        written. `histories` are the conversations before each query (None: none). Only the thinker reads
        them: the vectors, and what thinking="auto" decides, belong to the query alone. `thoughts` are what
        you bring for each query (None: they are written), and are used whatever `thinking` says.

        Everything is checked before any model runs: `InputError` with the position of a query that cannot
        be used, `FilterError`, `SettingsError` for `k` and options, `MissingExtraError` without bm25s.
        """
        checked = as_queries(queries, histories, thoughts)
        search = self._prepared(k, where, settings, show_progress_bar, options)
        return finished(search.results(checked)) if checked else []

    async def asearch_many(
        self,
        queries: Sequence[str | Query],
        *,
        k: int = 10,
        where: Where = None,
        settings: ThoughtSettings | None = None,
        histories: Sequence[History] | None = None,
        thoughts: Sequence[Given] | None = None,
        **options: Unpack[SearchOptions],
    ) -> list[SearchResult]:
        """`search_many` for coroutines. See `asearch`."""
        checked = as_queries(queries, histories, thoughts)
        search = self._prepared(k, where, settings, False, options, blocking=False)
        return await search.results(checked) if checked else []

    def explain(
        self,
        query: str | Query,
        *,
        k: int = 10,
        where: Where = None,
        settings: ThoughtSettings | None = None,
        history: History = None,
        thoughts: Given = None,
        **options: Unpack[SearchOptions],
    ) -> Explanation:
        """Search, and say what each thought finds by itself and what moved because of thinking.

        Nothing is thought about twice; the searches for the query alone, for each thought and for the result
        go in one batch. All parameters are as in `search`.
        """
        checked = as_query(query, history, thoughts)
        return finished(self._prepared(k, where, settings, None, options).explanation(checked))

    async def aexplain(
        self,
        query: str | Query,
        *,
        k: int = 10,
        where: Where = None,
        settings: ThoughtSettings | None = None,
        history: History = None,
        thoughts: Given = None,
        **options: Unpack[SearchOptions],
    ) -> Explanation:
        """`explain` for coroutines. See `asearch`."""
        checked = as_query(query, history, thoughts)
        return await self._prepared(k, where, settings, False, options, blocking=False).explanation(checked)

    @cached_property
    def _searching(self) -> Batches:
        return Batches("o1-retriever-search")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_searching"}

    def _prepared(
        self,
        k: int,
        where: Where,
        settings: ThoughtSettings | None,
        show: bool | None,
        options: SearchOptions,
        *,
        blocking: bool = True,
    ) -> _Search:
        """The search, when all but its queries has been checked."""
        check_count("k", k)
        chosen = as_filter(where)
        how = self.search_settings.with_changes(**options)
        if "thinking" not in options and settings is not None and not settings.thinks:
            how = how.with_changes(thinking=None)
        settings = settings or self.embedder.settings
        return _Search(self, how, k, chosen, settings, show, blocking, Cutoff.of(self.index, how, settings))


@dataclass(frozen=True, kw_only=True)
class _Embedded:
    """A query with the vectors to search with, and why it was thought about or not.

    Where the gate had to decide, `fast` is the query embedded without thoughts, and `decided_ms` the
    milliseconds of its search. `hits` is what that found, where it is the answer already.
    """

    embedding: QueryEmbedding
    decision: Decision
    fast: QueryEmbedding | None = None
    hits: Sequence[Hit] | None = None
    decided_ms: float = 0.0


@dataclass(frozen=True)
class _Search:
    """One call of a retriever: `results` for its hits, `explanation` for why. Nothing waits if `blocking`."""

    retriever: Retriever
    how: SearchSettings
    k: int
    where: Filter | None
    settings: ThoughtSettings
    show: bool | None
    blocking: bool
    cutoff: Cutoff | None

    async def results(self, queries: Sequence[Query]) -> list[SearchResult]:
        """Think about the queries, or about those that the gate chooses, and look all up together.

        With more rounds than one, those are thought about again whose hits the last round has changed.
        """
        started = time.perf_counter()
        await self._check_extra()
        found = await self._answered(await self._embedded(queries))
        open_ = {place for place, query in enumerate(queries) if query.thoughts is None}
        for _ in range(1, self.how.rounds):
            spent = (time.perf_counter() - started) * 1000
            if self.how.rounds_ms is not None and spent > self.how.rounds_ms:
                break
            open_ = {place for place in open_ if found[place] and found[place].embedding.thought_about}
            later = await self._grounded(queries, {place: found[place] for place in sorted(open_)})
            open_ = {
                place
                for place, result in later.items()
                if [hit.id for hit in result] != [hit.id for hit in found[place]]
            }
            found = [later.get(place, result) for place, result in enumerate(found)]
        return [self._relevant(result) for result in found]

    def _relevant(self, result: SearchResult) -> SearchResult:
        """The result without hits that are too unlikely to be relevant."""
        return result if self.cutoff is None else self.cutoff.applied(result, self.settings)

    async def _check_extra(self) -> None:
        """Say before anything is thought which extra is missing; importing it takes long for a loop."""
        if self.how.hybrid:
            await called(self.blocking, Bm25.identity)

    async def _grounded(
        self, queries: Sequence[Query], before: dict[int, SearchResult]
    ) -> dict[int, SearchResult]:
        """Think again about queries by their hits, and search anew for those with new thoughts."""
        started = time.perf_counter()
        read = {
            place: replace(
                queries[place], passages=tuple(hit.text for hit in result.hits[: self.how.rounds_read])
            )
            for place, result in before.items()
        }
        rows = await self._think(list(read.values())) if read else []
        share = (time.perf_counter() - started) * 1000 / max(1, len(read))
        fresh = {
            place: [
                thought
                for thought in row
                if not thought.failed and thought.text not in [each.text for each in before[place].thoughts]
            ]
            for place, row in zip(read, rows, strict=True)
        }
        left = {place: [*before[place].thoughts, *row] for place, row in fresh.items() if row}
        given = [
            replace(queries[place], thoughts=tuple(each.text for each in thoughts if not each.failed))
            for place, thoughts in left.items()
        ]
        # They are the thinker's, though a query carries them.
        written = replace(self, settings=self.settings.with_changes(query_weight=self.settings.weight()))
        embeddings = await written._thought_about(given, None) if given else []
        embedded = [
            _Embedded(
                embedding=_of_rounds(before[place].embedding, embedding, thoughts, share),
                decision=before[place].decision,
            )
            for (place, thoughts), embedding in zip(left.items(), embeddings, strict=True)
        ]
        results = zip(left, await self._answered(embedded) if embedded else (), strict=True)
        return {
            place: replace(
                result, rounds=before[place].rounds + 1, search_ms=result.search_ms + before[place].search_ms
            )
            for place, result in results
        }

    async def _think(self, queries: Sequence[Query]) -> list[list[Thought]]:
        embedder, settings = self.retriever.embedder, self.settings
        if self.blocking:
            return embedder.think(queries, settings=settings)
        return await embedder.athink(queries, settings=settings)

    async def _answered(self, embedded: Sequence[_Embedded]) -> list[SearchResult]:
        """Look up together what is not answered yet."""
        searched = [each for each in embedded if each.hits is None]
        rankings, search_ms = await self._ranked(
            [self.how.pooled(each.embedding) for each in searched],
            [self._read(each.embedding.query, each.embedding.thoughts) for each in searched],
            self.k,
        )
        left = iter(rankings)
        return [
            self._result(each, next(left), search_ms)
            if each.hits is None
            else self._result(each, each.hits, 0.0)
            for each in embedded
        ]

    async def explanation(self, query: Query) -> Explanation:
        """Search without thinking, for each thought, and for all of them; nothing is thought about twice."""
        await self._check_extra()
        # Before the thoughts: writing them leaves the query's own vector in the cache, where it is free.
        asked = self.how.thinking in ("always", None) or query.thoughts is not None or self.how.rounds > 1
        before = await self._embed([query.alone()], "never") if asked else []
        chosen, rounds = await self._chosen(query)
        embedding = chosen.embedding
        fast = chosen.fast or next(iter(before), embedding)
        usable = [thought for thought in embedding.thoughts if thought.usable]
        own = [vector[None] for vector in embedding.vectors] if usable else []
        texts = [
            self._read(query.text, each)
            for each in ((), *([thought] for thought in usable), embedding.thoughts)
        ]
        (without, *alone, after), each_ms = await self._ranked(
            [fast.vector[None], *own, self.how.pooled(embedding)],
            texts,
            max(self.k, min(RANKED, self.how.depth)),
        )
        hits = iter(alone)
        per_thought = tuple(
            (thought, tuple(next(hits)[: self.k]) if thought.usable else ()) for thought in embedding.thoughts
        )
        timings = ExplanationTimings(
            think_ms=embedding.timings.think_ms if embedding.thoughts else 0.0,
            embed_ms=embedding.timings.embed_ms if embedding.thoughts else 0.0,
            search_ms=each_ms * (2 + len(own)) + chosen.decided_ms,
            without_ms=fast.timings.total_ms,
        )
        return Explanation(
            result=self._relevant(replace(self._result(chosen, after[: self.k], each_ms), rounds=rounds)),
            per_thought=per_thought,
            without=tuple(without[: self.k]),
            moves=moves(after, without, self.k, [ranking for _, ranking in per_thought]),
            timings=timings,
        )

    async def _chosen(self, query: Query) -> tuple[_Embedded, int]:
        """A query with all its thoughts, and after how many rounds."""
        if self.how.rounds == 1:
            (chosen,) = await self._embedded([query])
            return chosen, 1
        (result,) = await self.results([query])
        return _Embedded(embedding=result.embedding, decision=result.decision), result.rounds

    async def _embedded(self, queries: Sequence[Query]) -> list[_Embedded]:
        """Think about all queries, about none, or about those whose fast ranking the gate finds unclear.

        About those that bring thoughts there is nothing to decide.
        """
        gated = self.how.thinking == "auto"
        unsettled = [query for query in queries if gated and query.thoughts is None]
        settled = [query for query in queries if not gated or query.thoughts is not None]
        thinking = None if gated else self.how.thinking
        embeddings = await self._thought_about(settled, thinking) if settled else []
        now = (
            _Embedded(embedding=embedding, decision=self._decision(query))
            for query, embedding in zip(settled, embeddings, strict=True)
        )
        later = iter(await self._gated(unsettled) if unsettled else ())
        return [next(later if gated and query.thoughts is None else now) for query in queries]

    def _decision(self, query: Query) -> Decision:
        """That of a query for which no gate is asked."""
        if query.thoughts is not None:
            return Decision(
                think=bool(query.thoughts), reason=f"{counted(len(query.thoughts), 'thought')} given"
            )
        thinking = self.how.thinking or self.settings.thinking
        whose = "thinking=" if self.how.thinking else "the thought settings say "
        return Decision(think=thinking == "always", reason=f"{whose}{thinking!r}")

    async def _gated(self, queries: Sequence[Query]) -> list[_Embedded]:
        """Think about those queries whose fast ranking the gate finds unclear."""
        fast = await self._embed(queries, "never")
        groups = [each.vector[None] for each in fast]
        rankings, decided_ms = await self._ranked(groups, None, max(self.k, LOOKED_AT))
        decisions = [self.how.gate.decide([hit.score for hit in hits]) for hits in rankings]
        unclear = [query for query, decision in zip(queries, decisions, strict=True) if decision.think]
        thought_about = iter(await self._thought_about(unclear, "always") if unclear else ())
        return [
            _Embedded(
                embedding=next(thought_about) if decision.think else before,
                decision=decision,
                fast=before,
                hits=None if decision.think or self.how.hybrid else hits[: self.k],
                decided_ms=decided_ms,
            )
            for before, hits, decision in zip(fast, rankings, decisions, strict=True)
        ]

    def _read(self, query: str, thoughts: Sequence[Thought]) -> Reading:
        return Reading.of(query, thoughts, self.settings.weight(thoughts))

    async def _thought_about(
        self, queries: Sequence[Query], thinking: Thinking | None
    ) -> list[QueryEmbedding]:
        """The queries embedded with their thoughts, but for those that the guard finds off the subject."""
        embeddings = await self._embed(queries, thinking)
        if not self.settings.guard or not any(each.thought_about for each in embeddings):
            return embeddings
        embedder, index = self.retriever.embedder, self.retriever.index
        passages = await called(self.blocking, index.sample)
        if self.blocking:
            return embedder.on_subject(embeddings, passages, settings=self.settings)
        return await embedder.aon_subject(embeddings, passages, settings=self.settings)

    async def _embed(self, queries: Sequence[Query], thinking: Thinking | None) -> list[QueryEmbedding]:
        settings = self.settings.with_changes(thinking=thinking)
        self.retriever.index.warm()
        if not self.blocking:
            return await self.retriever.embedder.aembed_queries(queries, settings=settings)
        show = False if thinking == "never" and self.how.thinking == "auto" else self.show
        return self.retriever.embedder.embed_queries(queries, settings=settings, show_progress_bar=show)

    async def _ranked(
        self, groups: Sequence[Vector], texts: Sequence[Reading] | None, k: int
    ) -> tuple[list[list[Hit]], float]:
        """The first `k` hits for each group of vectors, by the texts too, and the milliseconds for each."""
        if not groups:
            return [], 0.0
        started, texts = time.perf_counter(), texts if self.how.hybrid else None
        where, depth, index = self.where, self.how.depth, self.retriever.index
        if self.blocking:
            rankings = index.search_groups(groups, k=k, where=where, texts=texts, depth=depth)
        else:
            shared = k, depth, texts is None, repr(where)
            rankings = await self.retriever._searching.ask(
                _look_up, index, *shared, item=(groups, texts, where)
            )
        return rankings, (time.perf_counter() - started) * 1000 / len(groups)

    def _result(self, embedded: _Embedded, hits: Sequence[Hit], search_ms: float) -> SearchResult:
        embedding = embedded.embedding
        if embedded.fast is not None and embedded.decision.think:
            # Embedding the query alone, before it was thought about, was work for this result too.
            spent = embedding.timings.embed_ms + embedded.fast.timings.total_ms
            timings = Timings(think_ms=embedding.timings.think_ms, embed_ms=spent)
            embedding = replace(embedding, timings=timings)
        return SearchResult(
            embedding=embedding,
            hits=tuple(hits),
            search_ms=search_ms + embedded.decided_ms,
            how=self.how,
            decision=embedded.decision,
        )


def _of_rounds(
    before: QueryEmbedding, embedding: QueryEmbedding, thoughts: Sequence[Thought], think_ms: float
) -> QueryEmbedding:
    """The embedding with all thoughts as they were written, and with the time of all rounds."""
    timings = Timings(
        think_ms=before.timings.think_ms + think_ms,
        embed_ms=before.timings.embed_ms + embedding.timings.total_ms,
    )
    judged = iter(embedding.thoughts)
    kept = (each if each.failed else replace(each, dropped=next(judged).dropped) for each in thoughts)
    return replace(embedding, thoughts=tuple(kept), timings=timings)


def _look_up(
    tickets: Sequence[Ticket[Any, list[list[Hit]]]],
    index: Index | ForeignIndex,
    k: int,
    depth: int,
    *_same: object,
) -> None:
    """Look up together what several coroutines want with the same parameters."""
    groups = [group for ticket in tickets for group in ticket.item[0]]
    _, by_words, where = tickets[0].item
    texts = None if by_words is None else [text for ticket in tickets for text in ticket.item[1]]
    rankings = iter(index.search_groups(groups, k=k, where=where, texts=texts, depth=depth))
    for ticket in tickets:
        ticket.settle([next(rankings) for _ in ticket.item[0]])
