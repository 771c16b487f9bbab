"""From the switches of an evaluation to the systems that it compares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from o1_retriever.cache import default_cache_path
from o1_retriever.embedder import ThinkingEmbedder
from o1_retriever.errors import SettingsError
from o1_retriever.evaluation.collection import Corpus
from o1_retriever.evaluation.corpus import encode_corpus
from o1_retriever.evaluation.systems import Bm25Index, Dense, Hybrid, Hyde, Lexical, Scorer, System
from o1_retriever.search.result import Pooling
from o1_retriever.thought import ThoughtSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is compared: every combination of the numbers of thoughts and the dimensions, and the baselines.

    `thoughts` has 0 for the fast path. `dimensions` has None for all. `hybrid` fuses every dense system
    with BM25 that reads the same thoughts. `hyde` and `bm25` add these with every number of thoughts.
    `pooling` "best" adds a system whose documents score by the best thought, where there are several.
    `work` keeps encoded corpora (None: in the library's cache folder).
    """

    thoughts: Sequence[int] = (0, 1, 3)
    dimensions: Sequence[int | None] = (None,)
    hybrid: bool = False
    bm25: bool = False
    hyde: bool = False
    hnsw: bool = False
    pooling: Sequence[Pooling] = ("mean",)
    batch_size: int = 32
    work: Path | None = None

    def systems(
        self, corpus: Corpus, embedders: Mapping[str, ThinkingEmbedder], settings: ThoughtSettings
    ) -> list[System]:
        """The systems over a corpus, dense ones first; embedders go by the name in the table.

        The corpus is encoded with each embedder unless that was done before.
        """
        if not embedders or not self.thoughts:
            raise SettingsError("Nothing is compared; expected an embedder and a number of thoughts.")
        index = Bm25Index(corpus) if self.bm25 or self.hybrid else None
        systems: list[System] = []
        baselines: list[System] = []
        for name, embedder in embedders.items():
            lexical = {
                k: _lexical(corpus, index, embedder, _settings(settings, k))
                for k in self.thoughts
                if index is not None
            }
            systems += self._of_embedder(corpus, name, embedder, settings, lexical)
            # As baselines those with the first one's thoughts.
            baselines = baselines or list(lexical.values())
        return systems + baselines if self.bm25 else systems

    def _pooled(self) -> Iterator[tuple[int, Pooling]]:
        """Numbers of thoughts with each way to pool them; below two there is nothing to pool."""
        for k in self.thoughts:
            for pooling in self.pooling if k > 1 else ("mean",):
                yield k, pooling

    def _of_embedder(
        self,
        corpus: Corpus,
        name: str,
        embedder: ThinkingEmbedder,
        settings: ThoughtSettings,
        lexical: Mapping[int, Lexical],
    ) -> list[System]:
        dense: list[System] = []
        fused: list[System] = []
        work = self.work or default_cache_path() / "evaluation"
        for dimension in self.dimensions:
            encoded = encode_corpus(
                embedder, corpus, work, batch_size=self.batch_size, truncate_dim=dimension
            )
            label = name if dimension is None else f"{name} dim={dimension}"
            for k, pooling in self._pooled():
                said = _thinking(k) if pooling == "mean" else f"{_thinking(k)} {pooling}"
                system: Scorer = Dense(
                    name=f"{label} {said}",
                    embedder=embedder,
                    corpus=corpus,
                    encoded=encoded,
                    settings=_settings(settings, k),
                    hnsw=self.hnsw,
                    pooling=pooling,
                    batch_size=self.batch_size,
                )
                dense.append(system)
                if self.hybrid:
                    both = f"{label} + BM25 {said}"
                    fused.append(Hybrid(name=both, corpus=corpus, parts=[system, lexical[k]]))
                if self.hyde and k and pooling == self.pooling[0]:
                    fused.append(
                        Hyde(
                            name=f"HyDE {label} k={k}",
                            embedder=embedder,
                            corpus=corpus,
                            encoded=encoded,
                            settings=_settings(settings, k),
                        )
                    )
        return dense + fused


def parse_thoughts(text: str) -> tuple[int, ...]:
    """Numbers of thoughts from text such as "never,1,3"; `never` is 0. Raises `SettingsError`."""
    return tuple(
        0 if part == "never" else _whole(part, "never or a number of thoughts") for part in _parts(text)
    )


def parse_pooling(text: str) -> tuple[Pooling, ...]:
    """Ways to pool from text such as "mean,best". Raises `SettingsError`."""
    known: dict[str, Pooling] = {"mean": "mean", "best": "best"}
    for part in _parts(text):
        if part not in known:
            raise SettingsError(f"Found {part!r}; expected mean or best, or both separated by a comma.")
    return tuple(known[part] for part in _parts(text))


def parse_dimensions(text: str) -> tuple[int | None, ...]:
    """Dimensions from text such as "all,128"; `all` is None. Raises `SettingsError`."""
    return tuple(
        None if part == "all" else _whole(part, "all or a number of dimensions") for part in _parts(text)
    )


def _parts(text: str) -> list[str]:
    return list(dict.fromkeys(part.strip() for part in text.split(",")))


def _whole(text: str, expected: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise SettingsError(f"Found {text!r}; expected {expected}, or several separated by commas.")
    return int(text)


def _thinking(k: int) -> str:
    return f"k={k}" if k else "never"


def _settings(base: ThoughtSettings, k: int) -> ThoughtSettings:
    return base.with_changes(n_thoughts=k, thinking="always") if k else base.with_changes(thinking="never")


def _lexical(
    corpus: Corpus, index: Bm25Index, embedder: ThinkingEmbedder, settings: ThoughtSettings
) -> Lexical:
    name = f"BM25 {_thinking(settings.n_thoughts)}" if settings.thinks else "BM25"
    return Lexical(name=name, corpus=corpus, index=index, embedder=embedder, settings=settings)
