"""Encodes a corpus and kills itself with SIGKILL at a given step: run by a test as a process."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np

import o1_retriever.evaluation.collection as corpus_module
from o1_retriever.evaluation.collection import load_collection
from o1_retriever.vectors import Precision, VectorSpace

DIMENSION = 8


class Encoder:
    """Vectors that depend on a text and, in the last digits, on the batch it shares, as real ones do."""

    space = VectorSpace(weights="hashed words", layout="none", pooling="sum", dimension=DIMENSION)
    precision = Precision()

    def __init__(self) -> None:
        self.calls = 0
        self.documents = 0

    def encode_documents(self, texts, *, batch_size, show_progress_bar=None):
        self.calls += 1
        self.documents += len(texts)
        rows = np.stack([vector(text) for text in texts])
        return (rows + np.float32(1e-4) * rows.mean()).astype(np.float32)


def vector(text: str) -> np.ndarray:
    rows = [np.random.default_rng(list(word.encode())).normal(size=DIMENSION) for word in text.split()]
    mean = np.mean(rows, axis=0)
    return (mean / np.linalg.norm(mean)).astype(np.float32)


def main(data: str, folder: str, step: str, count: int) -> None:
    """Die at the `count`-th call of `step`: before it (`fsync`, `replace`) or with half a block written."""
    seen = 0

    def deadly(real):
        def call(*arguments, **named):
            nonlocal seen
            seen += 1
            if seen == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **named)

        return call

    if step == "fsync":
        os.fsync = deadly(os.fsync)
    elif step == "replace":
        Path.replace = deadly(Path.replace)
    elif step == "encode":
        Encoder.encode_documents = deadly(Encoder.encode_documents)
    corpus_module.BLOCK = 4
    corpus_module.encode_corpus(Encoder(), load_collection(data).corpus, folder)


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]))
