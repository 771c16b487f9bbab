"""Document vectors on disk: encoded block by block, and continued exactly where a killed run stopped."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from o1_retriever.evaluation.collection import Corpus
from o1_retriever.index.index import DocumentEmbedder
from o1_retriever.progress import progress
from o1_retriever.storage.files import written_whole
from o1_retriever.storage.lock import locked
from o1_retriever.thought import Vector
from o1_retriever.vectors import check_dim, unit

logger = logging.getLogger(__name__)

# Documents per block. Blocks start at multiples of it whatever happened before, so that a document always
# shares its batch with the same others and has the same vector to the last bit.
BLOCK = 2048


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EncodedCorpus:
    """The unit vectors of a corpus: a read-only memory map of float32 (documents, dimension).

    `seconds` is what encoding took in all, over every run that did a part of it.
    """

    matrix: Vector
    seconds: float

    @property
    def documents_per_second(self) -> float:
        """The rate of encoding."""
        return len(self.matrix) / self.seconds if self.seconds else 0.0


def encode_corpus(
    embedder: DocumentEmbedder,
    corpus: Corpus,
    folder: str | os.PathLike[str],
    *,
    batch_size: int = 32,
    truncate_dim: int | None = None,
) -> EncodedCorpus:
    """Encode a corpus into a file below `folder`, or take what is there from before.

    The file belongs to this corpus, document space, precision and batch size. It grows by blocks, each on
    disk before it counts: a run killed anywhere is continued by the next one, and the vectors are the same.
    `truncate_dim` is applied on reading, so that every dimension shares one file.
    """
    dimension = embedder.space.dimension
    check_dim(truncate_dim, dimension)
    count = len(corpus.ids)
    path = Path(folder) / _name(embedder, corpus, batch_size)
    path.parent.mkdir(parents=True, exist_ok=True)
    # As long as it takes: another run may be encoding the same corpus.
    with locked(path.with_suffix(".lock"), patience=math.inf):
        seconds = _fill(embedder, corpus, path, batch_size=batch_size)
    matrix: Vector = np.memmap(path, dtype=np.float32, mode="r", shape=(count, dimension))
    if truncate_dim not in (None, dimension):
        matrix = unit(np.array(matrix[:, :truncate_dim], dtype=np.float32))
    return EncodedCorpus(matrix=matrix, seconds=seconds)


def _fill(embedder: DocumentEmbedder, corpus: Corpus, path: Path, *, batch_size: int) -> float:
    dimension, count = embedder.space.dimension, len(corpus.ids)
    done, seconds = _progress_of(path, dimension)
    with path.open("r+b" if done else "wb") as file, progress("Encoding", count, show=None) as advance:
        # Whatever follows the last counted block was under way when the run was killed.
        file.truncate(done * dimension * 4)
        file.seek(0, os.SEEK_END)
        advance(done)
        for first in range(done, count, BLOCK):
            started = time.perf_counter()
            texts = corpus.texts(first, min(first + BLOCK, count))
            rows = embedder.encode_documents(texts, batch_size=batch_size, show_progress_bar=False)
            file.write(np.ascontiguousarray(rows, dtype="<f4").tobytes())
            file.flush()
            os.fsync(file.fileno())
            seconds += time.perf_counter() - started
            with written_whole(path.with_suffix(".json")) as note:
                json.dump({"rows": first + len(texts), "seconds": seconds}, note)
            advance(len(texts))
    return seconds


def _name(embedder: DocumentEmbedder, corpus: Corpus, batch_size: int) -> str:
    key = {
        "space": embedder.space.to_dict(),
        "precision": embedder.precision.to_dict(),
        "corpus": corpus.digest,
        "batch_size": batch_size,
        "block": BLOCK,
    }
    digest = hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=16)
    return f"{digest.hexdigest()}.f32"


def _progress_of(path: Path, dimension: int) -> tuple[int, float]:
    """(rows that are on disk for certain, seconds they took)."""
    try:
        noted = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        rows, seconds = int(noted["rows"]), float(noted["seconds"])
        if path.stat().st_size >= rows * dimension * 4:
            return rows, seconds
        logger.warning("%s is shorter than it was: the corpus is encoded anew", path)
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError) as error:
        logger.warning("%s cannot be read (%s): the corpus is encoded anew", path.with_suffix(".json"), error)
    return 0, 0.0
