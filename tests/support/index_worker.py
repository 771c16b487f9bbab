"""An embedder, documents and processes for the tests of the index, without pytest."""

from __future__ import annotations

import hashlib
import multiprocessing
import time
from multiprocessing.connection import Connection

import numpy as np

from o1_retriever.documents import Chunking, Document
from o1_retriever.index.folder import FolderOptions, sync_folder
from o1_retriever.index.index import Index
from o1_retriever.vectors import Precision, VectorSpace


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


def work(path: str, what: str, count: int, opened: Connection) -> None:
    """Add `count` documents, or bring the index to the state of the folder `what`."""
    with Index(path, TinyEmbedder(delay=0.002)) as index:
        opened.send("open")
        if what == "add":
            index.add(numbered(count), batch_size=8)
        else:
            sync_folder(index, what, prune=True, options=OPTIONS)


def vectors(embedder, *texts):
    return np.stack([embedder.vector(text) for text in texts])


def contents(index):
    """Everything that a user can see of the documents."""
    ids = sorted(index.ids())
    return {document.id: document for document in index.get(ids)}, index.vectors(ids).tolist()


def answers(index, count=20, **options):
    queries = vectors(TinyEmbedder(), *(f"question {n}" for n in range(count)))
    return [[(hit.id, round(hit.score, 6)) for hit in hits] for hits in index.search(queries, **options)]


# A process forked from one that has imported Chroma, without ever having opened it, begins at once.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["tests.support.index_worker", "chromadb.api.rust"])


def worker(index, what, count):
    """A process that has opened the index and goes on to change it."""
    here, there = _PROCESSES.Pipe(duplex=False)
    process = _PROCESSES.Process(target=work, args=(str(index), str(what), count, there))
    process.start()
    there.close()
    assert here.recv() == "open"
    return process


def finish(process):
    process.join(250)
    assert process.exitcode == 0
