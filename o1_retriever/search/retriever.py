"""Queries in, passages out, with the thoughts that led there."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Unpack

import numpy as np

from o1_retriever.embedder import ThinkingEmbedder
from o1_retriever.errors import FingerprintError
from o1_retriever.explain.explanation import RANKED, Explanation, ExplanationTimings, moves
from o1_retriever.guard import LOOKED_AT, Decision
from o1_retriever.index.filters import Filter, Where, as_filter
from o1_retriever.index.hits import Hit, check_count
from o1_retriever.index.index import Index
from o1_retriever.query import History, Query, as_queries, as_query
from o1_retriever.ranking.bm25 import Bm25, lexical_query
from o1_retriever.search.result import SearchOptions, SearchResult, SearchSettings
from o1_retriever.thought import QueryEmbedding, Thinking, ThoughtSettings, Timings, Vector


class Retriever:
    """Answers queries from an index: thinks about each, embeds it with its thoughts, finds the nearest.

    `options` are the fields of `SearchSettings`: `hybrid=True` fuses with BM25, `pooling="best"` searches for
    each thought, `thinking="auto"` thinks only where the query alone does not find something clear. Every
    search may pass others. The index must be of the embedder's own document space; `FingerprintError`
    otherwise.
    """

    def __init__(self, embedder: ThinkingEmbedder, index: Index, **options: Unpack[SearchOptions]) -> None:
        found, expected = index.info().space, embedder.space
        if found != expected:
            raise FingerprintError(
                f"The index in {index.path} is of the document space {found.fingerprint}, the embedder of "
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
        **options: Unpack[SearchOptions],
    ) -> SearchResult:
        """The `k` passages nearest to one query. All else is as in `search_many`.

        `history` is the conversation before it: a list of turns, in any form that `Conversation.of` reads.
        """
        return self.search_many([as_query(query, history)], k=k, where=where, settings=settings, **options)[0]

    def search_many(
        self,
        queries: Sequence[str | Query],
        *,
        k: int = 10,
        where: Where = None,
        settings: ThoughtSettings | None = None,
        show_progress_bar: bool | None = None,
        histories: Sequence[History] | None = None,
        **options: Unpack[SearchOptions],
    ) -> list[SearchResult]:
        """The `k` passages nearest to each query, in the order of the queries.

        They are thought about together and looked up together. `where` filters by metadata as in
        `Index.search`; `settings` None takes the embedder's own; `options` are those of the class, for this
        search. Where `settings` say `thinking="never"` and no `thinking` is passed here, nothing is thought.
        `histories` are the conversations before each query (None: none). The thoughts are written after
        them; all else, and whether thinking="auto" thinks, is of the query alone.
        Everything is checked before any model runs: `InputError` with the position of a query that cannot
        be used, `FilterError`, `SettingsError` for `k` and options, `MissingExtraError` without bm25s.
        """
        checked = as_queries(queries, histories)
        search = self._prepared(k, where, settings, show_progress_bar, options)
        return search.results(checked) if checked else []

    def explain(
        self,
        query: str | Query,
        *,
        k: int = 10,
        where: Where = None,
        settings: ThoughtSettings | None = None,
        history: History = None,
        **options: Unpack[SearchOptions],
    ) -> Explanation:
        """Search, and say what each thought finds by itself and what moved because of thinking.

        Nothing is thought about twice; the searches for the query alone, for each thought and for the result
        go in one batch. All parameters are as in `search`.
        """
        checked = as_query(query, history)
        return self._prepared(k, where, settings, None, options).explanation(checked)

    def _prepared(
        self,
        k: int,
        where: Where,
        settings: ThoughtSettings | None,
        show: bool | None,
        options: SearchOptions,
    ) -> _Search:
        """The search, when all but its queries has been checked."""
        check_count("k", k)
        chosen = as_filter(where)
        how = self.search_settings.with_changes(**options)
        if "thinking" not in options and settings is not None and not settings.thinks:
            how = how.with_changes(thinking=None)
        if how.hybrid:
            Bm25.identity()  # says which extra is missing
        return _Search(self, how, k, chosen, settings or self.embedder.settings, show)


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
    """One call of a retriever: `results` for its hits, `explanation` for why."""

    retriever: Retriever
    how: SearchSettings
    k: int
    where: Filter | None
    settings: ThoughtSettings
    show: bool | None

    def results(self, queries: Sequence[Query]) -> list[SearchResult]:
        """Think about the queries, or about those that the gate chooses, and look all up together."""
        embedded = self._embedded(queries)
        searched = [each for each in embedded if each.hits is None]
        rankings, search_ms = self._ranked(
            [self.how.pooled(each.embedding) for each in searched],
            [lexical_query(each.embedding.query, each.embedding.thoughts) for each in searched],
            self.k,
        )
        left = iter(rankings)
        return [
            self._result(each, next(left), search_ms)
            if each.hits is None
            else self._result(each, each.hits, 0.0)
            for each in embedded
        ]

    def explanation(self, query: Query) -> Explanation:
        """Search without thinking, for each thought, and for all of them; nothing is thought about twice."""
        # Before the thoughts: writing them leaves the query's own vector in the cache, where it is free.
        before = self._embed([query], "never") if self.how.thinking in ("always", None) else []
        (chosen,) = self._embedded([query])
        embedding = chosen.embedding
        fast = chosen.fast or next(iter(before), embedding)
        usable = [thought for thought in embedding.thoughts if not thought.failed]
        own = [vector[None] for vector in embedding.vectors] if usable else []
        texts = [lexical_query(query.text, each) for each in ((), *([thought] for thought in usable), usable)]
        (without, *alone, after), each_ms = self._ranked(
            [fast.vector[None], *own, self.how.pooled(embedding)],
            texts,
            max(self.k, min(RANKED, self.how.depth)),
        )
        hits = iter(alone)
        per_thought = tuple(
            (thought, () if thought.failed else tuple(next(hits)[: self.k])) for thought in embedding.thoughts
        )
        timings = ExplanationTimings(
            think_ms=embedding.timings.think_ms if embedding.thoughts else 0.0,
            embed_ms=embedding.timings.embed_ms if embedding.thoughts else 0.0,
            search_ms=each_ms * (2 + len(own)) + chosen.decided_ms,
            without_ms=fast.timings.total_ms,
        )
        return Explanation(
            result=self._result(chosen, after[: self.k], each_ms),
            per_thought=per_thought,
            without=tuple(without[: self.k]),
            moves=moves(after, without, self.k, [ranking for _, ranking in per_thought]),
            timings=timings,
        )

    def _embedded(self, queries: Sequence[Query]) -> list[_Embedded]:
        """Think about all queries, about none, or about those whose fast ranking the gate finds unclear."""
        if self.how.thinking != "auto":
            embeddings = self._embed(queries, self.how.thinking)
            thinking = self.how.thinking or self.settings.thinking
            whose = "thinking=" if self.how.thinking else "the thought settings say "
            decision = Decision(think=thinking == "always", reason=f"{whose}{thinking!r}")
            return [_Embedded(embedding=each, decision=decision) for each in embeddings]
        fast = self._embed(queries, "never")
        started = time.perf_counter()
        vectors = np.stack([each.vector for each in fast])
        rankings = self.retriever.index.search(vectors, k=max(self.k, LOOKED_AT), where=self.where)
        decided_ms = (time.perf_counter() - started) * 1000 / len(queries)
        decisions = [self.how.gate.decide([hit.score for hit in hits]) for hits in rankings]
        unclear = [query for query, decision in zip(queries, decisions, strict=True) if decision.think]
        thought_about = iter(self._embed(unclear, "always") if unclear else ())
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

    def _embed(self, queries: Sequence[Query], thinking: Thinking | None) -> list[QueryEmbedding]:
        settings = self.settings.with_changes(thinking=thinking)
        show = False if thinking == "never" and self.how.thinking == "auto" else self.show
        return self.retriever.embedder.embed_queries(queries, settings=settings, show_progress_bar=show)

    def _ranked(
        self, groups: Sequence[Vector], texts: Sequence[str], k: int
    ) -> tuple[list[list[Hit]], float]:
        """The first `k` hits for each group of vectors, and the milliseconds for each."""
        if not groups:
            return [], 0.0
        started = time.perf_counter()
        rankings = self.retriever.index.search_groups(
            groups,
            k=k,
            where=self.where,
            texts=texts if self.how.hybrid else None,
            depth=self.how.depth,
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
