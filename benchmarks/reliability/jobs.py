"""What the harmed processes do: small jobs of every kind that writes, and what is there when they are done.

A job gets a folder that was prepared, does its work there, and says at its end what a user then has. `kill`
[n, half] ends it at the n-th change of the disk (`harm.end_at`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import sqlite3
import time
import traceback
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from benchmarks.reliability.harm import changes, end_at, fail_locks, jump_clock
from o1_retriever.cache import ThoughtCache, cache_key
from o1_retriever.documents import Chunking
from o1_retriever.errors import O1RetrieverError
from o1_retriever.index import graph
from o1_retriever.index.folder import FolderOptions, sync_folder
from o1_retriever.index.index import Index
from o1_retriever.thought import Thought
from tests.support.index_worker import TinyEmbedder

OPTIONS = FolderOptions(chunking=Chunking(max_characters=60, overlap=20), batch_size=8)
_ENTRIES = 40  # of the cache


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A kind of work: `prepare` lays a folder, `work` does it there, `found` is what a user then has."""

    prepare: Callable[[Path], None]
    work: Callable[[Path], None]
    found: Callable[[Path], Any]


def run(stage: str, folder: str, kill: list[int] | None = None, out: str | None = None) -> None:
    """Do a stage's work; at its end say in `out` what there is, and how often the disk was changed."""
    job, place = STAGES[stage], Path(folder)
    end_at(kill[0] if kill else 0, half=bool(kill and kill[1]))
    job.work(place)
    made = changes()
    if out is not None:
        Path(out).write_text(json.dumps({"changes": made, "found": job.found(place)}))


class _Listener(logging.Handler):
    """Keeps what is warned of."""

    def __init__(self, warned: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._warned = warned

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self._warned.append(record.getMessage())


def attempt(stage: str, folder: str, out: str, *, work: bool = True, locks: int = 0, clock: int = 0) -> None:
    """Do a stage's work, or only look at what is there, under some trouble; say in `out` how it went.

    `locks` is the errno of every lock, `clock` how many seconds the clock of the wall is wrong.
    """
    job, place = STAGES[stage], Path(folder)
    said: dict[str, Any] = {}
    warned: list[str] = []
    logging.getLogger().addHandler(_Listener(warned))
    jump_clock(clock)
    fail_locks(locks)
    try:
        if work:
            job.work(place)
        said["found"] = job.found(place)
    except O1RetrieverError as error:
        said["refused"] = f"{type(error).__name__}: {error}"
    except BaseException as error:
        said["uncaught"] = f"{type(error).__name__}: {error}"
        traceback.print_exc()
    jump_clock(0)
    fail_locks(0)
    said["warned"] = warned
    Path(out).write_text(json.dumps(said))


def together(stage: str, folder: str, out: str, go: str) -> None:
    """`attempt` in one of several processes, which begin when there is a file `go`; it says so beside `out`."""
    logging.basicConfig(level=logging.WARNING)
    ends = time.monotonic() + 120
    while not Path(go).exists() and time.monotonic() < ends:
        time.sleep(0.001)
    attempt(stage, folder, f"{out}.{os.environ['RANK']}")


def use_cache(folder: Path) -> None:
    """Put entries that all processes put, and others of one's own; what was put is there at once."""
    rank = int(os.environ.get("RANK", "0"))
    with ThoughtCache(folder / "cache") as cache:
        for number in (*range(_ENTRIES), *range(1000 * (rank + 1), 1000 * (rank + 1) + _ENTRIES)):
            cache.put_thoughts([(cache_key(n=number), place, thought(number, place)) for place in range(2)])
            cache.put_vectors([(cache_key(n=number), vector(number))])
            check_entry(cache, number, needed=True)


def prepare(stage: str, folder: str) -> None:
    """Lay the folder that the stage works in."""
    STAGES[stage].prepare(Path(folder))


# Documents. -------------------------------------------------------------------------------------------


def write_notes(folder: Path, seed: int) -> None:
    """A folder in some state: files of several passages, some with texts that others have too."""
    chance = random.Random(seed)
    for number in chance.sample(range(9), 6):
        path = folder / "notes" / f"{number % 2}" / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [f"Sentence {chance.randrange(60)} of a note." for _ in range(chance.randrange(3, 16))]
        path.write_text("\n\n".join(lines), encoding="utf-8")


def prepare_index(folder: Path) -> None:
    """An index of some files, which then change: some are new, some other, some gone."""
    write_notes(folder, 0)
    index_notes(folder)
    for path in sorted((folder / "notes").rglob("*.txt"))[:2]:
        path.unlink()
    write_notes(folder, 1)


def index_notes(folder: Path) -> None:
    """Bring the index to the state of the notes."""
    with Index(folder / "index", TinyEmbedder()) as index:
        sync_folder(index, folder / "notes", prune=True, options=OPTIONS)


def index_found(folder: Path) -> Any:
    """Every document with its vector, and what searches find: with the graph, one by one, with BM25."""
    with Index(folder / "index", TinyEmbedder()) as index:
        ids = sorted(index.ids())
        documents = [(each.id, each.text, each.metadata) for each in index.get(ids)]
        found = {"documents": documents, "vectors": index.vectors(ids).tolist(), "exact": _answers(index)}
        graph._EXACT = 0
        found["graph"] = _answers(index)
        found["all"] = sorted(hit.id for hit in index.search(index.vectors(ids[:1]), k=2 * len(ids))[0])
        graph._EXACT = 2000
        found["filtered"] = _answers(index, where={"source": documents[0][2].get("source", "")})
    return found


def _answers(index: Index, **options: Any) -> list[list[tuple[str, float]]]:
    embedder = TinyEmbedder()
    queries = np.stack([embedder.vector(f"question {number}") for number in range(6)])
    return [[(hit.id, round(hit.score, 5)) for hit in hits] for hits in index.search(queries, **options)]


# The cache. -------------------------------------------------------------------------------------------


def fill_cache(folder: Path) -> None:
    """Put thoughts and vectors, noting each that is there; whatever was noted before has to be there."""
    notes = folder / "noted"
    noted = [int(line) for line in notes.read_text().split()] if notes.exists() else []
    with ThoughtCache(folder / "cache") as cache, _appending(notes) as file:
        for number in noted:
            check_entry(cache, number, needed=True)
        for number in range(_ENTRIES):
            check_entry(cache, number)
            cache.put_thoughts([(cache_key(n=number), place, thought(number, place)) for place in range(2)])
            cache.put_vectors([(cache_key(n=number), vector(number))])
            if check_entry(cache, number) and number not in noted:
                with suppress(OSError):  # a full disk is the cache's affair
                    file.write(f"{number}\n".encode())


def _appending(path: Path) -> IO[bytes]:
    """A file to write to, or nowhere, where the disk is read-only."""
    try:
        return path.open("ab", buffering=0)
    except OSError:
        return Path(os.devnull).open("wb", buffering=0)


def check_entry(cache: ThoughtCache, number: int, *, needed: bool = False) -> bool:
    """Whether an entry is there; raises where it is another one, or is `needed` and is not there."""
    (thoughts,), (found,) = (
        cache.get_thoughts([cache_key(n=number)], 2),
        cache.get_vectors([cache_key(n=number)]),
    )
    for place, each in thoughts.items():
        if each.text != thought(number, place).text:
            raise AssertionError(f"entry {number} has the thought {each.text!r}")
    if found is not None and not np.array_equal(found, vector(number)):
        raise AssertionError(f"entry {number} has another vector")
    if needed and (len(thoughts) < 2 or found is None):
        raise AssertionError(f"entry {number} was put and is lost")
    return found is not None and len(thoughts) == 2


def thought(number: int, place: int) -> Thought:
    """A thought of some length that follows from its number."""
    return Thought(
        text=f"thought {place} about {number} " * 20, token_ids=(number, place), completion_tokens=2
    )


def vector(number: int) -> Any:
    """384 numbers that follow from a number."""
    return np.random.default_rng(number).standard_normal(384).astype(np.float32)


def cache_found(folder: Path) -> Any:
    """Every entry, SQLite's own check, and whether the counted bytes are those of the entries."""
    with ThoughtCache(folder / "cache") as cache:
        entries = [check_entry(cache, number) for number in range(_ENTRIES)]
        info = cache.info()
    with closing(sqlite3.connect(folder / "cache" / "thoughts.sqlite")) as file:
        sound = file.execute("PRAGMA integrity_check").fetchall()
        sums = "(SELECT TOTAL(size) FROM thoughts) + (SELECT TOTAL(size) FROM vectors)"
        (right,) = file.execute(f"SELECT bytes = {sums} FROM total").fetchone()
    aside = len(list((folder / "cache").glob("*.corrupt-*")))
    return {"entries": entries, "counts": [info.thoughts, info.vectors], "sound": [sound, right, aside]}


# Training data and training. --------------------------------------------------------------------------


def prepare_pairs(folder: Path) -> None:
    """Pairs without thoughts."""
    rows = [{"query": f"question {number}", "pos": [f"answer {number}"]} for number in range(80)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def synthesize_pairs(folder: Path) -> None:
    """Have thoughts written about every pair."""
    from tests.support.synthesis_worker import _synthesize

    _synthesize(str(folder / "pairs.jsonl"), str(folder / "thoughts.jsonl"))


def synthesized_found(folder: Path) -> Any:
    """The output, and what the manifest says."""
    manifest = json.loads((folder / "thoughts.jsonl.manifest.json").read_text())
    kept = {name: manifest[name] for name in ("finished", "rows")}
    return {"rows": (folder / "thoughts.jsonl").read_text().splitlines(), "manifest": kept}


def prepare_training(folder: Path) -> None:
    """A base model whose dropout draws random numbers, and rows."""
    from tests.support.joint_runs import base_folder, rows_file

    base_folder(folder / "base", attention_dropout=0.2)
    rows_file(folder / "rows.jsonl")


def train(folder: Path) -> None:
    """A few steps with checkpoints in between."""
    from tests.support.joint_runs import recipe_of
    from tests.support.joint_runs import run as train_run

    recipe = recipe_of(
        folder / "base", folder / "rows.jsonl", folder / "trained", model={"attention": "eager"}
    )
    train_run(recipe.to_dict())


def trained_found(folder: Path) -> Any:
    """The weights, the losses and the files."""
    out = folder / "trained"
    log = json.loads((out / "training.json").read_text())["log"]
    losses = [(entry["step"], entry["loss"]) for entry in log if "loss" in entry]
    weights = hashlib.blake2b((out / "model.safetensors").read_bytes()).hexdigest()
    return {"weights": weights, "losses": losses, "files": sorted(os.listdir(out))}  # noqa: PTH208


# Many documents. --------------------------------------------------------------------------------------


def prepare_rows(folder: Path) -> None:
    """Documents, some of which share a text."""
    rows = [
        {"id": f"d{n}", "text": f"text number {n % 50}", "source": f"f{n % 3}", "n": n} for n in range(60)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def embed_rows(folder: Path) -> None:
    """Embed them into shards of a few documents."""
    from o1_retriever.index.shards import ShardOptions, embed_shards

    options = ShardOptions(rows=8, batch_size=4)
    embed_shards(str(folder / "rows.jsonl"), folder / "shards", TinyEmbedder(), options=options)


def embedded_found(folder: Path) -> Any:
    """What the check of all shards says, and the files."""
    from o1_retriever.index.shards import check_shards

    check = check_shards(folder / "shards")
    files = sorted(path.name for path in (folder / "shards").iterdir() if "lock" not in path.name)
    return {
        "documents": check.documents,
        "problems": list(check.problems),
        "content": check.manifest.content,
        "files": files,
    }


def prepare_shards(folder: Path) -> None:
    """Documents that are embedded already."""
    prepare_rows(folder)
    embed_rows(folder)


def load_rows(folder: Path) -> None:
    """Load the shards into an index."""
    from o1_retriever.index.foreign import load_shards, opened_for

    with opened_for(str(folder / "index"), "documents", folder / "shards") as target:
        load_shards(folder / "shards", target)


# A model whose weights lie on the disk. ---------------------------------------------------------------

_QUERY, _TEXTS = "birch in a grove", ["amber and cedar", "delta", "a heron at the inlet"]


def prepare_model(folder: Path) -> None:
    """A tiny random model."""
    from tests.support.joint_runs import base_folder

    base_folder(folder / "model")


def index_with_model(folder: Path) -> None:
    """An index of some texts, by the model."""
    from o1_retriever import ThinkingEmbedder

    embedder = ThinkingEmbedder.from_pretrained(folder / "model", cache=folder / "cache")
    with Index(folder / "index", embedder) as index:
        index.add(_TEXTS)


def model_found(folder: Path) -> Any:
    """What the model makes of a query and finds; the index refuses other weights than its own."""
    from o1_retriever import ThinkingEmbedder, ThoughtSettings

    short = ThoughtSettings(n_thoughts=2, max_new_tokens=6)
    embedder = ThinkingEmbedder.from_pretrained(folder / "model", cache=folder / "cache")
    with Index(folder / "index", embedder, create=False) as index:
        asked = embedder.embed_query(_QUERY, settings=short)
        hits = [(hit.id, round(hit.score, 5)) for hit in index.search(asked.vector[None], k=3)[0]]
        rows = np.asarray(embedder.encode_documents(_TEXTS))
        return {"query": asked.vector.tolist(), "hits": hits, "documents": rows.tolist()}


# What a process imports before it is forked, for each stage; without it each child would.
HEAVY = {
    "index": ("chromadb.api.rust", "bm25s"),
    "cache": (),
    "shared cache": (),
    "synthesize": (
        "tests.support.synthesis_worker",
        "o1_retriever_training.experts",
        "o1_retriever_training.synthesize",
    ),
    "weights": ("tests.support.joint_runs", "chromadb.api.rust", "o1_retriever.embedder"),
    "embed": ("pyarrow.parquet", "pandas", "o1_retriever.index.shards"),
    "load": ("pyarrow.parquet", "o1_retriever.index.foreign", "chromadb.api.rust", "bm25s"),
    "train": (
        "tests.support.joint_runs",
        "o1_retriever_training.joint.run",
        "peft",
        "torch.utils.tensorboard",
    ),
}

STAGES = {
    "index": Stage(prepare=prepare_index, work=index_notes, found=index_found),
    "embed": Stage(prepare=prepare_rows, work=embed_rows, found=embedded_found),
    "load": Stage(prepare=prepare_shards, work=load_rows, found=index_found),
    "cache": Stage(prepare=lambda folder: None, work=fill_cache, found=cache_found),
    "shared cache": Stage(prepare=lambda folder: None, work=use_cache, found=cache_found),
    "synthesize": Stage(prepare=prepare_pairs, work=synthesize_pairs, found=synthesized_found),
    "weights": Stage(prepare=prepare_model, work=index_with_model, found=model_found),
    "train": Stage(prepare=prepare_training, work=train, found=trained_found),
}
