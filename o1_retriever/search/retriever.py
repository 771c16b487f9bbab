"""Questions in, passages out, with the thoughts that led there."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Unpack

import numpy as np

from o1_retriever.errors import FingerprintError
from o1_retriever.explain.explanation import RANKED, Explanation, ExplanationTimings, moves
from o1_retriever.guard import LOOKED_AT, Decision
from o1_retriever.index.graph import check_where
from o1_retriever.index.hits import Hit, check_count
from o1_retriever.index.index import Index
from o1_retriever.query import History, Query, as_queries, as_query
from o1_retriever.ranking.bm25 import Bm25, lexical_query
from o1_retriever.search.result import SearchOptions, SearchResult, SearchSettings, Thinking, thought_record
from o1_retriever.thought import QueryEmbedding, ThoughtSettings, Timings
from o1_retriever.vectors import VectorSpace

__all__ = ["Hit", "QueryEmbedder", "Retriever", "SearchResult", "SearchSettings", "thought_record"]


class QueryEmbedder(Protocol):
    """What turns questions into vectors; a `ThinkingEmbedder` does."""

    @property
    def space(self) -> VectorSpace:
        """Identity of the document space."""
        ...

    def embed_queries(
        self,
        queries: Sequence[Query],
        *,
        settings: ThoughtSettings | None = None,
        show_progress_bar: bool | None = None,
    ) -> list[QueryEmbedding]:
        """One embedding per query, in order."""
        ...


class Retriever:
    """Answers questions from an index: thinks about each, embeds it with its thoughts, finds the nearest.

    `options` are the fields of `SearchSettings`: `hybrid=True` fuses with BM25, `pooling="best"` searches for
    each thought, `thinking="auto"` thinks only where the query alone does not find something clear. Every
    search may pass others. The index must be of the embedder's own document space; `FingerprintError`
    otherwise.
    """

    def __init__(self, embedder: QueryEmbedder, index: Index, **options: Unpack[SearchOptions]) -> None:
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
        where: dict[str, Any] | None = None,
        settings: ThoughtSettings | None = None,
        history: History = None,
        **options: Unpack[SearchOptions],
    ) -> SearchResult:
        """The `k` passages nearest to one question. All else is as in `search_many`.

        `history` is what was said before it: a list of turns, in any form that `Conversation.of` reads.
        """
        return self.search_many([as_query(query, history)], k=k, where=where, settings=settings, **options)[0]

    def search_many(
        self,
        queries: Sequence[str | Query],
        *,
        k: int = 10,
        where: dict[str, Any] | None = None,
        settings: ThoughtSettings | None = None,
        show_progress_bar: bool | None = None,
        histories: Sequence[History] | None = None,
        **options: Unpack[SearchOptions],
    ) -> list[SearchResult]:
        """The `k` passages nearest to each question, in the order of the questions.

        They are thought about together and looked up together. `where` filters by metadata as in
        `Index.search`; `settings` None takes the embedder's own; `options` are those of the class, for this
        search. Where `settings` say `thinking="never"` and no `thinking` is passed here, nothing is thought.
        `histories` are what was said before each question (None: nothing). The thoughts are written after
        them; all else, and whether thinking="auto" thinks, is of the question alone.
        Everything is checked before any model runs: `InputError` with the position of a question that cannot
        be used or for a filter, `SettingsError` for `k` and options, `MissingExtraError` without bm25s.
        """
        asked = as_queries(queries, histories)
        search = self._prepared(k, where, settings, show_progress_bar, options)
        if not asked:
            return []
        return search.adaptive(asked) if search.how.thinking == "auto" else search.plain(asked)

    def explain(
        self,
        query: str | Query,
        *,
        k: int = 10,
        where: dict[str, Any] | None = None,
        settings: ThoughtSettings | None = None,
        history: History = None,
        **options: Unpack[SearchOptions],
    ) -> Explanation:
        """Search, and say what each thought finds by itself and what moved because of thinking.

        Nothing is thought about twice; the searches for the query alone, for each thought and for the result
        go in one batch. All parameters are as in `search`.
        """
        asked = as_query(query, history)
        return self._prepared(k, where, settings, None, options).explained(asked)

    def _prepared(
        self,
        k: int,
        where: dict[str, Any] | None,
        settings: ThoughtSettings | None,
        show: bool | None,
        options: SearchOptions,
    ) -> _Search:
        """The search, when all but its questions has been checked."""
        check_count("k", k)
        check_where(where)
        how = self.search_settings.with_changes(**options)
        if "thinking" not in options and settings is not None and not settings.thinks:
            how = how.with_changes(thinking=None)
        if how.hybrid:
            Bm25.identity()  # says which extra is missing
        return _Search(retriever=self, how=how, k=k, where=where, settings=settings, show=show)


@dataclass(frozen=True, kw_only=True)
class _Search:
    """One call of a retriever."""

    retriever: Retriever
    how: SearchSettings
    k: int
    where: dict[str, Any] | None
    settings: ThoughtSettings | None
    show: bool | None

    def plain(self, asked: Sequence[Query]) -> list[SearchResult]:
        """Think about all of them, or about none."""
        embeddings = self._embedded(asked, self.how.thinking)
        found, milliseconds = self._found(embeddings)
        return [
            self._result(embedding, hits, milliseconds, self._decided(embedding))
            for embedding, hits in zip(embeddings, found, strict=True)
        ]

    def adaptive(self, asked: Sequence[Query]) -> list[SearchResult]:
        """Look at the fast ranking of all of them first, and think where the gate says so."""
        fast = self._embedded(asked, "never")
        first, first_ms = self._fast_hits(fast)
        decisions = [self.how.gate.decide([hit.score for hit in hits]) for hits in first]
        results: dict[int, SearchResult] = {}
        for think in (True, False):
            places = [place for place, decision in enumerate(decisions) if decision.think == think]
            if not places:
                continue
            chosen = [fast[place] for place in places]
            if think:
                embeddings = self._embedded([asked[place] for place in places], "always")
                chosen = [_with_fast(one, before) for one, before in zip(embeddings, chosen, strict=True)]
            again = think or self.how.hybrid
            found, spent = self._found(chosen) if again else ([first[at][: self.k] for at in places], 0.0)
            for place, embedding, hits in zip(places, chosen, found, strict=True):
                results[place] = self._result(embedding, hits, first_ms + spent, decisions[place])
        return [results[place] for place in range(len(asked))]

    def explained(self, query: Query) -> Explanation:
        """Search without thinking, for each thought, and for all of them."""
        (fast,) = self._embedded([query], "never")
        embedding, decision, decided_ms = self._thought_about(query, fast)
        usable = [thought for thought in embedding.thoughts if not thought.failed]
        how = self.how
        pooled = embedding.vectors if how.pooling == "best" else embedding.vector[None]
        own = [vector[None] for vector in embedding.vectors] if usable else []
        lexical = [
            lexical_query(query.text, thoughts) for thoughts in ((), *([one] for one in usable), usable)
        ]
        started = time.perf_counter()
        without, *found, after = self.retriever.index.search_groups(
            [fast.vector[None], *own, pooled],
            k=max(self.k, min(RANKED, how.depth)),
            where=self.where,
            texts=lexical if how.hybrid else None,
            depth=how.depth,
        )
        search_ms = _share_ms(started, [query])
        hits = iter(found)
        per_thought = tuple(
            (thought, () if thought.failed else tuple(next(hits)[: self.k])) for thought in embedding.thoughts
        )
        timings = ExplanationTimings(
            think_ms=embedding.timings.think_ms if embedding.thoughts else 0.0,
            embed_ms=embedding.timings.embed_ms if embedding.thoughts else 0.0,
            search_ms=search_ms + decided_ms,
            without_ms=fast.timings.total_ms,
        )
        share = decided_ms + search_ms / (2 + len(own))
        if how.thinking == "auto" and embedding.thoughts:
            embedding = _with_fast(embedding, fast)
        return Explanation(
            result=self._result(embedding, after[: self.k], share, decision),
            per_thought=per_thought,
            without=tuple(without[: self.k]),
            moves=moves(after, without, self.k, [own_hits for _, own_hits in per_thought]),
            timings=timings,
        )

    def _thought_about(self, query: Query, fast: QueryEmbedding) -> tuple[QueryEmbedding, Decision, float]:
        """The embedding to search with, why it was thought about or not, and the milliseconds to decide."""
        if self.how.thinking == "never":
            return fast, self._decided(fast), 0.0
        if self.how.thinking != "auto":
            (embedding,) = self._embedded([query], self.how.thinking)
            return embedding, self._decided(embedding), 0.0
        (first,), milliseconds = self._fast_hits([fast])
        decision = self.how.gate.decide([hit.score for hit in first])
        embedding = self._embedded([query], "always")[0] if decision.think else fast
        return embedding, decision, milliseconds

    def _fast_hits(self, fast: Sequence[QueryEmbedding]) -> tuple[list[list[Hit]], float]:
        """What the gate looks at for each, and the milliseconds for each."""
        started = time.perf_counter()
        vectors = np.stack([item.vector for item in fast])
        found = self.retriever.index.search(vectors, k=max(self.k, LOOKED_AT), where=self.where)
        return found, _share_ms(started, fast)

    def _embedded(self, asked: Sequence[Query], thinking: Thinking | None) -> list[QueryEmbedding]:
        embedder = self.retriever.embedder
        settings = self.settings
        if thinking is not None:
            base = settings or getattr(embedder, "settings", None) or ThoughtSettings()
            settings = base.with_changes(thinking=thinking)
        show = False if thinking == "never" and self.how.thinking == "auto" else self.show
        return embedder.embed_queries(asked, settings=settings, show_progress_bar=show)

    def _found(self, embeddings: Sequence[QueryEmbedding]) -> tuple[list[list[Hit]], float]:
        """The hits of each, and the milliseconds for each."""
        started = time.perf_counter()
        how = self.how
        groups = [item.vectors if how.pooling == "best" else item.vector[None] for item in embeddings]
        texts = [lexical_query(item.query, item.thoughts) for item in embeddings] if how.hybrid else None
        found = self.retriever.index.search_groups(
            groups, k=self.k, where=self.where, texts=texts, depth=how.depth
        )
        return found, _share_ms(started, embeddings)

    def _decided(self, embedding: QueryEmbedding) -> Decision:
        if self.how.thinking is not None:
            return Decision(think=self.how.thinking == "always", reason=f"thinking={self.how.thinking!r}")
        mode = "always" if embedding.thoughts else "never"
        return Decision(think=bool(embedding.thoughts), reason=f"the thought settings say {mode!r}")

    def _result(
        self, embedding: QueryEmbedding, hits: Sequence[Hit], search_ms: float, decision: Decision
    ) -> SearchResult:
        return SearchResult(
            embedding=embedding, hits=tuple(hits), search_ms=search_ms, how=self.how, decision=decision
        )


def _share_ms(started: float, questions: Sequence[object]) -> float:
    return (time.perf_counter() - started) * 1000 / len(questions)


def _with_fast(embedding: QueryEmbedding, fast: QueryEmbedding) -> QueryEmbedding:
    """The embedding with the milliseconds that embedding the query alone took before."""
    timings = embedding.timings
    spent = Timings(think_ms=timings.think_ms, embed_ms=timings.embed_ms + fast.timings.total_ms)
    return replace(embedding, timings=spent)
