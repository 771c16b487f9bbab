"""Real documents to embed."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.record import ROOT
from o1_retriever.evaluation.collection import CollectionReport, Corpus

# Where the evaluation data lies: `eval/scifact` in BEIR format.
VARIABLE = "O1_RETRIEVER_BENCHMARK_DATA"
EVERYDAY = ROOT / "cookbook" / "data" / "everyday"


def data_folder() -> Path:
    """The folder of the evaluation data, which may be absent."""
    return Path(os.environ.get(VARIABLE) or ROOT.parent / "shared" / "data")


def documents(count: int) -> tuple[str, list[str]]:
    """(the collection's name, so many of its documents): SciFact's, or the repository's own without them.

    They are taken at equal distances, so that their lengths are those of the collection.
    """
    scifact = data_folder() / "eval" / "scifact"
    folder = scifact if (scifact / "corpus.jsonl").is_file() else EVERYDAY
    corpus = Corpus(folder / "corpus.jsonl", CollectionReport(str(folder)))
    texts = corpus.texts(0, len(corpus.ids))
    return folder.name, texts[:: max(1, len(texts) // count)][:count]
