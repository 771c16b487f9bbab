"""Embedding documents beside sentence-transformers: same checkpoint, same texts, same threads, one run."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks.record import ROOT, Figure
from benchmarks.speed.child import in_child
from benchmarks.speed.data import documents
from benchmarks.speed.pairs import ratio
from o1_retriever import ThinkingEmbedder
from o1_retriever.evaluation.comparison import peak_megabytes

MODEL = ROOT / "models" / "o1-embedder-22m"
SIDES = ("ours", "sentence-transformers")
_ALIKE = 1e-4
# Of the stream's texts one in so many is a whole document; the others are some words of one.
_WHOLE_EVERY, _WORDS = 50, (4, 40)
_FIRST = 5_000


def measure(*, full: bool = False) -> list[Figure]:
    """`encode_documents/...`: the other's time over ours, our peak memory over theirs, and its growth.

    The growth is the peak after all documents of one stream over that after the first 5,000.
    """
    name, texts = documents(768 if full else 192)
    many = 100_000 if full else 12_000
    peaks = {side: in_child(__name__, "--side", side, "--documents", len(texts))["peak_mb"] for side in SIDES}
    print(", ".join(f"{side}: {peak:.0f} MB" for side, peak in peaks.items()))
    grown = in_child(__name__, "--stream", many)
    print(f"stream: {grown['first_mb']:.0f} MB after {_FIRST}, {grown['peak_mb']:.0f} MB after {many}")
    return [
        Figure(
            name="encode_documents/ratio",
            value=compare(texts, pairs=5 if full else 3),
            unit=f"ratio, {len(texts)} documents of {name}",
        ),
        Figure(
            name="encode_documents/peak_ratio",
            value=round(peaks["ours"] / peaks["sentence-transformers"], 3),
            unit="ratio, whole process",
            better="lower",
        ),
        Figure(
            name=f"encode_documents/memory_growth/{_FIRST}_to_{many}",
            value=round(grown["peak_mb"] / grown["first_mb"], 3),
            unit="ratio, whole process",
            better="lower",
        ),
    ]


def compare(texts: Sequence[str], *, pairs: int) -> float:
    """How many times as fast our documents are; both sides must give the same vectors."""
    sides = {side: _encoder(side) for side in SIDES}
    found: dict[str, Any] = {side: encode(list(texts[:16])) for side, encode in sides.items()}

    def run(side: str) -> None:
        found[side] = sides[side](list(texts))

    faster = ratio(
        lambda: run("ours"), lambda: run("sentence-transformers"), pairs=pairs, said=f"{len(texts)} documents"
    )
    difference = float(np.abs(found["ours"] - found["sentence-transformers"]).max())
    if difference > _ALIKE:
        raise SystemExit(f"The vectors differ by {difference:.1e}; expected at most {_ALIKE:.0e}.")
    return faster


def _encoder(side: str) -> Any:
    """A function from texts to vectors, float32 on the processor, with each side's own batches."""
    if side == "ours":
        embedder = ThinkingEmbedder.from_pretrained(MODEL, device="cpu", dtype="float32", cache=False)
        return lambda texts: embedder.encode_documents(texts, show_progress_bar=False)
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(MODEL), device="cpu")
    return lambda texts: model.encode(texts, prompt_name="document", show_progress_bar=False)


def stream(count: int) -> dict[str, float]:
    """Embed so many generated documents; this process's peak before the 5,000th was read, and at the end."""
    embedder = ThinkingEmbedder.from_pretrained(MODEL, device="cpu", dtype="float32", cache=False)
    _, texts = documents(1000)
    first = 0.0

    def watched() -> Iterator[str]:
        nonlocal first
        for number, text in enumerate(variations(texts, count)):
            if number == _FIRST:
                first = peak_megabytes() or 0.0
            yield text

    embedded = sum(len(block) for block in embedder.stream_documents(watched(), show_progress_bar=False))
    assert embedded == count
    return {"first_mb": first, "peak_mb": peak_megabytes() or 0.0}


def variations(texts: Sequence[str], count: int) -> Iterator[str]:
    """Different texts of mixed length made of some: most a few words, some whole; the same at every call."""
    generator = random.Random(0)
    for number in range(count):
        words = generator.choice(texts).split()
        if number % _WHOLE_EVERY:
            length = generator.randint(*_WORDS)
            start = generator.randrange(max(1, len(words) - length))
            words = words[start : start + length]
        yield f"{number} {' '.join(words)}"


def main() -> None:
    """One measurement for the parent process."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--side", choices=SIDES)
    parser.add_argument("--documents", type=int, default=192)
    parser.add_argument("--stream", type=int, default=0)
    options = parser.parse_args()
    if options.stream:
        found = stream(options.stream)
    else:
        _encoder(options.side)(documents(options.documents)[1])
        found = {"peak_mb": peak_megabytes() or 0.0}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
