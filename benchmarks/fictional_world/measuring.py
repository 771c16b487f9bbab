"""What a trained model finds on the held-out questions of a world, thinking and not thinking."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from o1_retriever.embedder import ThinkingEmbedder
from o1_retriever.evaluation.collection import EncodedCorpus, load_collection
from o1_retriever.evaluation.comparison import Evaluation, evaluate
from o1_retriever.evaluation.systems import NEVER, Dense
from o1_retriever.thought import ThoughtSettings

MEASURE = "nDCG@10"


def measure_world(
    model: str | Path,
    collection: str | Path,
    *,
    split: str,
    settings: ThoughtSettings | None = None,
) -> Evaluation:
    """Search a split with a model's folder: the systems "not_thinking" and "thinking", by nDCG@10.

    `settings` None takes the model's own, which for a model of a fictional world is one thought, greedy.
    Choose by the split dev; test is for reporting.
    """
    data = load_collection(collection, split=split, strict=True)
    embedder = ThinkingEmbedder.from_pretrained(model, cache=False)
    started = time.perf_counter()
    texts = data.corpus.texts(0, len(data.corpus.ids))
    matrix = np.asarray(embedder.encode_documents(texts, show_progress_bar=False), dtype=np.float32)
    encoded = EncodedCorpus(matrix=matrix, seconds=time.perf_counter() - started)
    ways = {"not_thinking": NEVER, "thinking": settings or embedder.settings}
    systems = [
        Dense(name=name, embedder=embedder, corpus=data.corpus, encoded=encoded, settings=way)
        for name, way in ways.items()
    ]
    return evaluate(data, systems, measures=[MEASURE])
