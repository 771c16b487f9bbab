"""A question that was asked before: its embedding from the disk cache, and a whole search with it.

The cache and the index are filled here; they are read in a new process, as a program would that starts again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.record import ROOT, Figure
from benchmarks.speed.child import in_child
from benchmarks.speed.data import EVERYDAY
from benchmarks.speed.pairs import seconds
from benchmarks.speed.synthetic import SyntheticEmbedder, numbered
from o1_retriever import Index, Retriever, ThinkingEmbedder

MODEL = ROOT / "models" / "o1-embedder-22m"
_DRAWS = 1000
_BATCH = 500


def measure(*, full: bool = False) -> list[Figure]:
    """`cached_query/p50_ms`: `embed_query`; `cached_query/search_100k_p50_ms`: `Retriever.search`."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        embedder = ThinkingEmbedder.from_pretrained(MODEL, device="cpu", cache=folder / "cache")
        fill(folder, embedder, questions(), documents=100_000)
        found = in_child(__name__, "--folder", folder, "--draws", _DRAWS)
    return figures(found, "100k")


def questions() -> list[str]:
    """The questions of the repository's own collection."""
    lines = (EVERYDAY / "queries.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def fill(folder: Path, embedder: ThinkingEmbedder, texts: list[str], *, documents: int) -> None:
    """Think about the questions, and index so many synthetic documents near them."""
    embedded = embedder.embed_queries(texts, show_progress_bar=False)
    base = np.stack([item.vector for item in embedded])
    synthetic = SyntheticEmbedder(base, space=embedder.space, precision=embedder.precision)
    with Index(folder / "index", synthetic) as index:
        index.add(numbered(0, documents), batch_size=_BATCH, show_progress_bar=False)
    if embedder.cache is not None:
        embedder.cache.close()
    (folder / "questions.json").write_text(json.dumps([item.query for item in embedded]), encoding="utf-8")


def draw(folder: Path, embedder: ThinkingEmbedder, draws: int) -> dict[str, float]:
    """p50 milliseconds of so many embeddings and searches, none of which may run the model."""
    texts = json.loads((folder / "questions.json").read_text(encoding="utf-8"))
    asked = [texts[number % len(texts)] for number in range(draws)]
    embedding = [1000 * seconds(lambda text=text: embedder.embed_query(text)) for text in asked]  # type: ignore[misc]
    with Index(folder / "index") as index:
        retriever = Retriever(embedder, index)
        retriever.search(asked[0])  # loads Chroma
        searching = [1000 * seconds(lambda text=text: retriever.search(text)) for text in asked]  # type: ignore[misc]
    if not all(thought.cached for text in texts for thought in embedder.embed_query(text).thoughts):
        raise SystemExit("Some thoughts were not in the cache.")
    return {"embed_ms": median(embedding), "search_ms": median(searching)}


def figures(found: dict[str, float], documents: str) -> list[Figure]:
    """Both medians; `documents` says how many there are."""
    names = {"p50_ms": "embed_ms", f"search_{documents}_p50_ms": "search_ms"}
    return [
        Figure(name=f"cached_query/{name}", value=round(found[key], 3), unit="ms, p50", better="lower")
        for name, key in names.items()
    ]


def main() -> None:
    """Draw from what the parent process has filled."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--draws", type=int, required=True)
    options = parser.parse_args()
    embedder = ThinkingEmbedder.from_pretrained(MODEL, device="cpu", cache=options.folder / "cache")
    print(json.dumps(draw(options.folder, embedder, options.draws)))


if __name__ == "__main__":
    main()
