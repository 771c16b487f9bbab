"""Indexes and caches that earlier versions wrote: they open and hold what was put in.

`tests/support/earlier` has what three earlier commits wrote, packed. Each is opened, searched, added to, and
opened again; what a later version wrote is refused with what to type.
"""

from __future__ import annotations

import sqlite3
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np

from benchmarks.record import ROOT, Figure
from o1_retriever.cache import ThoughtCache, cache_key
from o1_retriever.documents import Document
from o1_retriever.errors import StoreError
from o1_retriever.index.index import Index
from tests.support.index_worker import TinyEmbedder

EARLIER = ROOT / "tests" / "support" / "earlier"
_DOCUMENTS, _KEYS = 9, 4  # in each


def measure() -> Iterator[Figure]:
    """`upgrade/...`: how many were opened, and how many were not as they had been written."""
    wrong = tried = 0
    for packed in sorted(EARLIER.glob("*.tar.xz")):
        with tempfile.TemporaryDirectory() as folder:
            unpack(packed, Path(folder))
            for name, look in {"index": index_fault, "cache": cache_fault, "newer": newer_fault}.items():
                fault = look(Path(folder))
                tried, wrong = tried + 1, wrong + bool(fault)
                if fault:
                    print(f"   {packed.name}, {name}: {fault}", flush=True)
    yield Figure(name="upgrade/opened", value=tried, unit="stores")
    yield Figure(name="upgrade/wrong", value=wrong, unit="stores", better="lower")


def unpack(packed: Path, folder: Path) -> None:
    """Lay what an earlier version wrote into a folder: `index` and `cache`."""
    with tarfile.open(packed) as archive:
        archive.extractall(folder, filter="data")


def index_fault(folder: Path) -> str:
    """What is other in the index than it was; empty where nothing is."""
    embedder = TinyEmbedder()
    expected = {f"d{n}": f"text number {n}" for n in range(_DOCUMENTS)}
    for _ in range(2):
        with Index(folder / "index", embedder) as index:
            found = {document.id: document.text for document in index.documents()}
            if found != expected:
                return f"the documents are {found}"
            names = sorted(expected)
            if not np.array_equal(
                index.vectors(names), np.stack([embedder.vector(expected[name]) for name in names])
            ):
                return "the vectors are others"
            (hits,) = index.search(embedder.vector("text number 4")[None], k=1)
            if [hit.id for hit in hits] != ["d4"]:
                return f"a search found {hits}"
            if index.ids({"n": {"$gte": 7}}) not in (["d7", "d8"], ["d7", "d8", "new"]):
                return f"a filter found {index.ids({'n': {'$gte': 7}})}"
            if index.add([Document(id="new", text="text number 99", metadata={"n": 99})]) != (
                "new" not in expected
            ):
                return "adding changed something else"
            expected["new"] = "text number 99"
    return ""


def cache_fault(folder: Path) -> str:
    """What is other in the cache than it was; empty where nothing is."""
    keys = [cache_key(n=n) for n in range(_KEYS)]
    with ThoughtCache(folder / "cache") as cache:
        for n, (thoughts, vector) in enumerate(
            zip(cache.get_thoughts(keys, 2), cache.get_vectors(keys), strict=True)
        ):
            if [thoughts[place].text for place in sorted(thoughts)] != [
                f"thought {i} about {n}" for i in range(2)
            ]:
                return f"the thoughts of entry {n} are {thoughts}"
            if vector is None or not np.array_equal(
                vector, np.random.default_rng(n).standard_normal(8).astype(np.float32)
            ):
                return f"the vector of entry {n} is {vector}"
    return ""


def newer_fault(folder: Path) -> str:
    """How an index of a later version is refused otherwise than with what to type."""
    with closing(sqlite3.connect(folder / "index" / "documents" / "documents.sqlite3")) as ledger, ledger:
        ledger.execute("UPDATE state SET value = '99' WHERE key = 'format'")
    try:
        Index(folder / "index", TinyEmbedder())
    except StoreError as error:
        return "" if error.hint and "o1-retriever index" in error.hint else f"it says {error}"
    return "it was opened"
