"""What the scripts of this folder share: a collection with recorded thoughts, searched by our Retriever."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from o1_retriever import Index, Retriever, ThinkingEmbedder, ThoughtSettings
from o1_retriever.documents import Document
from o1_retriever.evaluation.collection import Collection, Corpus, encode_corpus, load_collection
from o1_retriever.evaluation.metrics import per_query
from o1_retriever.search.result import SearchOptions, SearchResult

MEASURE = "nDCG@10"
Values = NDArray[np.float64]


@dataclass(kw_only=True, eq=False)
class Bench:
    """One split of a collection: its judged queries with recorded thoughts, and a retriever over an index."""

    name: str
    collection: Collection
    retriever: Retriever
    index_folder: Path
    found: dict[str, list[SearchResult]] = field(default_factory=dict)

    @property
    def queries(self) -> list[str]:
        """The texts of the queries, in order."""
        return list(self.collection.queries.values())

    def search(self, *, thoughts: int, k: int = 10, **options: Unpack[SearchOptions]) -> list[SearchResult]:
        """Every query with so many thoughts; 0 does not think."""
        settings = ThoughtSettings(n_thoughts=thoughts) if thoughts else ThoughtSettings(thinking="never")
        return self.retriever.search_many(
            self.queries, k=k, settings=settings, show_progress_bar=False, **options
        )

    def values(self, results: Sequence[SearchResult]) -> Values:
        """nDCG@10 of each query."""
        run = {
            key: {hit.id: -float(hit.rank) for hit in result.hits}
            for key, result in zip(self.collection.queries, results, strict=True)
        }
        measured = per_query(self.collection.qrels, run, measures=[MEASURE])[MEASURE]
        return np.array([measured[key] for key in self.collection.queries], dtype=np.float64)


class Filed:
    """Documents' vectors from the file that the evaluation package keeps, made there when missing."""

    def __init__(self, embedder: ThinkingEmbedder, corpus: Corpus, folder: Path) -> None:
        self.space = embedder.space
        self.precision = embedder.precision
        self._matrix = encode_corpus(embedder, corpus, folder).matrix
        texts = corpus.texts(0, len(corpus.ids))
        self._place = {text: place for place, text in enumerate(texts)}

    def encode_documents(
        self, documents: Sequence[str], *, batch_size: int = 32, show_progress_bar: bool | None = None
    ) -> NDArray[np.float32]:
        """The vectors of texts of the corpus."""
        return np.asarray(self._matrix[[self._place[text] for text in documents]])


@contextmanager
def opened(data: Path, name: str, work: Path, encoder: Any, *, first: int | None = None) -> Iterator[Bench]:
    """The split `SET/SPLIT` with its index below `work`, made when missing; the `first` recorded queries."""
    folder, split = name.split("/")
    path = data / "expert_thoughts" / f"{folder}.{split}.jsonl"
    with path.open(encoding="utf-8") as file:
        recorded = {json.loads(line)["text"].strip() for line in list(file)[:first]}
    whole = load_collection(data / "eval" / folder, split=split)
    judged = whole.with_queries(
        {key: text for key, text in whole.queries.items() if text.strip() in recorded}
    )
    embedder = ThinkingEmbedder.from_parts(path, encoder, cache=work / "thoughts")
    corpus = judged.corpus
    with Index(work / folder, Filed(embedder, corpus, work / "corpora")) as index:
        texts = corpus.texts(0, len(corpus.ids))
        # Documents without any text, of which some collections have a few, cannot be embedded.
        index.add(
            (
                Document(id=key, text=text)
                for key, text in zip(corpus.ids, texts, strict=True)
                if text.strip()
            ),
            batch_size=1024,
            total=len(corpus.ids),
        )
        yield Bench(
            name=name if first is None else f"{name}:{first}",
            collection=judged,
            retriever=Retriever(embedder, index),
            index_folder=index.path,
        )
