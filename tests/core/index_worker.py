"""A program for the tests that kill or race processes: `index_worker.py INDEX FOLDER|add N`."""

from __future__ import annotations

import hashlib
import sys
import time

import numpy as np

from o1_retriever.documents import Chunking, Document
from o1_retriever.folder import FolderOptions, sync_folder
from o1_retriever.index import Index
from o1_retriever.space import Precision, VectorSpace


class TinyEmbedder:
    """Unit vectors drawn from the hash of a text: the same in every process, and quick."""

    def __init__(
        self, dimension: int = 16, weights: str = "tiny", device: str = "cpu", delay: float = 0.0
    ) -> None:
        self.space = VectorSpace(weights=weights, layout="plain", pooling="hash", dimension=dimension)
        self.precision = Precision(device=device)
        self.delay = delay
        self.texts: list[str] = []

    def encode_documents(self, documents, *, batch_size=32, show_progress_bar=None):
        self.texts += documents
        time.sleep(self.delay)
        return np.stack([self.vector(text) for text in documents])

    def vector(self, text: str) -> np.ndarray:
        seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
        vector = np.random.default_rng(seed).normal(size=self.space.dimension)
        return (vector / np.linalg.norm(vector)).astype(np.float32)


def numbered(count: int) -> list[Document]:
    """Documents whose text and metadata follow from their number."""
    return [
        Document(id=f"d{n:05d}", text=f"text number {n}", metadata={"source": f"f{n % 7}", "n": n})
        for n in range(count)
    ]


OPTIONS = FolderOptions(chunking=Chunking(max_characters=60, overlap=20), batch_size=2)


def main() -> None:
    path, what, count = sys.argv[1:]
    with Index(path, TinyEmbedder(delay=0.002)) as index:
        sys.stdout.write("open\n")
        sys.stdout.flush()
        if what == "add":
            index.add(numbered(int(count)), batch_size=8)
        else:
            sync_folder(index, what, prune=True, options=OPTIONS)
    sys.stdout.write("done\n")


if __name__ == "__main__":
    main()
