"""Questions in, passages out, with the thoughts that led there."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Unpack

import numpy as np

from o1_retriever.adaptive import LOOKED_AT, Decision
from o1_retriever.errors import FingerprintError
from o1_retriever.hit import Hit, check_count
from o1_retriever.index import Index
from o1_retriever.inputs import check_text, check_texts
from o1_retriever.lexical import Bm25, lexical_query
from o1_retriever.search_result import SearchResult, thought_record
from o1_retriever.search_settings import SearchOptions, SearchSettings, Thinking
from o1_retriever.space import VectorSpace
from o1_retriever.storage.graph import check_where
from o1_retriever.thought import QueryEmbedding, ThoughtSettings, Timings

__all__ = ["Hit", "QueryEmbedder", "Retriever", "SearchResult", "SearchSettings", "thought_record"]


class QueryEmbedder(Protocol):
    """What turns questions into vectors; a `ThinkingEmbedder` does."""

    @property
    def space(self) -> VectorSpace:
        """Identity of the document space."""
        ...

    def embed_queries(
        self,
        queries: Sequence[str],
        *,
        settings: ThoughtSettings | None = None,
        show_progress_bar: bool | None = None,
    ) -> list[QueryEmbedding]:
        """One embedding per question, in order."""
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
        query: str,
        *,
        k: int = 10,
        where: dict[str, Any] | None = None,
        settings: ThoughtSettings | None = None,
        **options: Unpack[SearchOptions],
    ) -> SearchResult:
        """The `k` passages nearest to one question. All else is as in `search_many`."""
        check_text(query, what="query")
        return self.search_many([query], k=k, where=where, settings=settings, **options)[0]

    def search_many(
        self,
        queries: Sequence[str],
        *,
        k: int = 10,
        where: dict[str, Any] | None = None,
        settings: ThoughtSettings | None = None,
        show_progress_bar: bool | None = None,
        **options: Unpack[SearchOptions],
    ) -> list[SearchResult]:
        """The `k` passages nearest to each question, in the order of the questions.

        They are thought about together and looked up together. `where` filters by metadata as in
        `Index.search`; `settings` None takes the embedder's own; `options` are those of the class, for this
        search. Where `settings` say `mode="never"` and no `thinking` is passed here, nothing is thought.
        Everything is checked before any model runs: `InputError` with the position of a question that cannot
        be used or for a filter, `SettingsError` for `k` and options, `MissingExtraError` without bm25s.
        """
        texts = check_texts(queries, what="query")
        check_count("k", k)
        check_where(where)
        how = self.search_settings.with_changes(**options)
        if "thinking" not in options and settings is not None and not settings.thinks:
            how = how.with_changes(thinking=None)
        if how.hybrid:
            Bm25.identity()  # says which extra is missing
        if not texts:
            return []
        search = _Search(retriever=self, how=how, k=k, where=where, settings=settings, show=show_progress_bar)
        return search.adaptive(texts) if how.thinking == "auto" else search.plain(texts)


@dataclass(frozen=True, kw_only=True)
class _Search:
    """One call of a retriever."""

    retriever: Retriever
    how: SearchSettings
    k: int
    where: dict[str, Any] | None
    settings: ThoughtSettings | None
    show: bool | None

    def plain(self, texts: Sequence[str]) -> list[SearchResult]:
        """Think about all of them, or about none."""
        embeddings = self._embedded(texts, self.how.thinking)
        found, milliseconds = self._found(embeddings)
        return [
            self._result(embedding, hits, milliseconds, self._decided(embedding))
            for embedding, hits in zip(embeddings, found, strict=True)
        ]

    def adaptive(self, texts: Sequence[str]) -> list[SearchResult]:
        """Look at the fast ranking of all of them first, and think where the gate says so."""
        unique = list(dict.fromkeys(texts))
        fast = self._embedded(unique, "never")
        started = time.perf_counter()
        first = self.retriever.index.search(
            np.stack([item.vector for item in fast]), k=max(self.k, LOOKED_AT), where=self.where
        )
        first_ms = _share_ms(started, unique)
        decisions = [self.how.gate.decide([hit.score for hit in hits]) for hits in first]
        results: dict[str, SearchResult] = {}
        for think in (True, False):
            places = [place for place, decision in enumerate(decisions) if decision.think == think]
            if not places:
                continue
            chosen = [fast[place] for place in places]
            if think:
                embeddings = self._embedded([unique[place] for place in places], "always")
                chosen = [_with_fast(one, before) for one, before in zip(embeddings, chosen, strict=True)]
            again = think or self.how.hybrid
            found, spent = self._found(chosen) if again else ([first[at][: self.k] for at in places], 0.0)
            for place, embedding, hits in zip(places, chosen, found, strict=True):
                results[unique[place]] = self._result(embedding, hits, first_ms + spent, decisions[place])
        return [results[text] for text in texts]

    def _embedded(self, texts: Sequence[str], thinking: Thinking | None) -> list[QueryEmbedding]:
        embedder = self.retriever.embedder
        settings = self.settings
        if thinking is not None:
            base = settings or getattr(embedder, "settings", None) or ThoughtSettings()
            settings = base.with_changes(mode=thinking)
        show = False if thinking == "never" and self.how.thinking == "auto" else self.show
        return embedder.embed_queries(texts, settings=settings, show_progress_bar=show)

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
