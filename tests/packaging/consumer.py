"""What a program of somebody else's does with the package; read by the type checker, strictly."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from o1_retriever import Index, Retriever, ThinkingEmbedder, Thought, ThoughtSettings
from o1_retriever.documents import Document


def ask(folder: Path, question: str) -> tuple[list[str], NDArray[np.float32]]:
    embedder = ThinkingEmbedder.from_parts(
        "HuggingFaceTB/SmolLM2-135M-Instruct", "sentence-transformers/all-MiniLM-L6-v2"
    )
    with Index(folder, embedder) as index:
        index.add([Document(id="1", text="Yeast makes dough rise.")])
        result = Retriever(embedder, index).search(question, k=3, settings=ThoughtSettings(n_thoughts=1))
    thoughts: tuple[Thought, ...] = tuple(result.thoughts)
    return [thought.text for thought in thoughts], embedder.embed_query(question).vector


def wrong(embedder: ThinkingEmbedder) -> int:
    return embedder.dimension + embedder.embed_query("Why?").vector
