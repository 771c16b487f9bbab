"""The control of every claim about thoughts: the same systems with the thoughts about another question."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from o1_retriever.embedder import ThinkingEmbedder
from o1_retriever.evaluation.collection import Corpus
from o1_retriever.evaluation.corpus import EncodedCorpus
from o1_retriever.evaluation.systems import Dense, Hybrid, Lexical, System, bm25_over
from o1_retriever.query import Query
from o1_retriever.thinking import Backend, NewThoughts
from o1_retriever.thought import ThoughtSettings

# A system without thoughts, and what the same one is called with its thoughts, and with those about another
# query.
PAIRS = {
    "dense": ("dense with thoughts", "dense with another's"),
    "bm25": ("bm25 with thoughts", "bm25 with another's"),
    "hybrid": ("hybrid with thoughts", "hybrid with another's"),
}


def thinking_systems(
    embedder: ThinkingEmbedder,
    queries: Sequence[str],
    corpus: Corpus,
    encoded: EncodedCorpus,
    settings: ThoughtSettings | None = None,
) -> list[System]:
    """The systems of `PAIRS`: vectors, BM25 and both, without thoughts, with them, and with another query's.

    `queries` are all that will be searched for: the thoughts about each go to the one before it.
    """
    always, bm25 = settings or embedder.settings, bm25_over(corpus)
    never = always.with_changes(thinking="never")
    members = [(embedder, never), (embedder, always), (with_other_thoughts(embedder, queries), always)]
    found: list[System] = []
    for place, (who, how) in enumerate(members):
        dense, words, both = ((name, *PAIRS[name])[place] for name in PAIRS)
        vectors = Dense(name=dense, embedder=who, corpus=corpus, encoded=encoded, settings=how)
        read = Lexical(name=words, corpus=corpus, index=bm25, embedder=who, settings=how)
        found += [vectors, read, Hybrid(name=both, corpus=corpus, parts=(vectors, read))]
    return found


def with_other_thoughts(embedder: ThinkingEmbedder, queries: Sequence[str]) -> ThinkingEmbedder:
    """An embedder that embeds each of `queries` with what is thought about the one after it."""
    texts = list(dict.fromkeys(query.strip() for query in queries))
    after = dict(zip(texts, [*texts[1:], *texts[:1]], strict=True))
    return ThinkingEmbedder(_Others(embedder, after), settings=embedder.settings, cache=False)


class _Others:
    """A backend whose thoughts are about other queries; all else is the inner backend's."""

    def __init__(self, embedder: ThinkingEmbedder, after: dict[str, str]) -> None:
        self._embedder, self._after = embedder, after
        self._inner: Backend = embedder.backend
        self.thinker_identity = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def think(
        self, queries: Sequence[Query], *, settings: ThoughtSettings, start: int, batch_size: int | None
    ) -> Iterator[NewThoughts]:
        """What the inner embedder thinks about the other queries, from its cache where it has one."""
        texts = [self._after[query.text.strip()] for query in queries]
        written = self._embedder.think(texts, settings=settings)
        for place, thoughts in enumerate(written):
            yield NewThoughts(place=place, start=start, thoughts=thoughts[start:])
