"""The ledger with what is made from it: the search graph kept in step, and the words for BM25.

The words are kept beside the ledger when a search has first needed them, for one generation. They are read
and made while the ledger's lock is held, so that no document can come or go meanwhile, and appear under their
name only when they are whole. Whoever finds none of its generation, or damaged ones, makes them again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from o1_retriever.concurrency.processes import Renewed
from o1_retriever.errors import StoreError
from o1_retriever.index.fields import Numbers
from o1_retriever.index.graph import DamagedGraphError, Graph, WrongGraphError
from o1_retriever.index.ledger import (
    LEDGER_FILE,
    LOCK_FILES,
    EmbeddedDocument,
    Ledger,
    Session,
    State,
    Version,
)
from o1_retriever.ranking.bm25 import Bm25, Reading
from o1_retriever.ranking.ranking import Places
from o1_retriever.reporting import counted

logger = logging.getLogger(__name__)

T = TypeVar("T")

# What a creation that was cut short leaves behind.
_OURS = {LEDGER_FILE, f"{LEDGER_FILE}-journal", *LOCK_FILES}
# Documents in memory while the graph is built anew.
_PAGE = 1000
# How often a read is tried while other processes change the index in between.
_ATTEMPTS = 5
# Of what is kept of the words.
_WORDS_FORMAT = 1
_IDS, _MANIFEST = "ids.json", "manifest.json"


class Store:
    """Runs reads and writes so that they see one generation of the documents, in any thread and process.

    A write is: documents to the ledger together with `dirty`, then to the graph, then `dirty` is cleared.
    Whoever finds `dirty` set while it holds the lock knows that the writer died, and builds the graph anew
    from the ledger before anything of it is loaded.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.ledger = Ledger(folder)
        self._name = name
        self._shared: Graph | None = None
        self._warming: threading.Thread | None = None
        self._unsealed = False
        self._begins = threading.Lock()

    def check_vacant(self) -> None:
        """Raise `StoreError` where no index can be made: at a file, or in a folder of something else."""
        for part in (self.folder.parent, self.folder):
            if part.exists() and not part.is_dir():
                raise StoreError(
                    f"{part} is a file; expected the folder of an index.", hint="Choose another path."
                )
        if (self.folder.parent / "chroma.sqlite3").exists():
            raise StoreError(
                f"{self.folder.parent} holds a Chroma database that o1-retriever did not write.",
                hint="Choose another folder for the index.",
            )
        if strange := sorted({entry.name for entry in self.folder.glob("*")} - _OURS):
            raise StoreError(
                f"{self.folder} is not an index: found {strange[0]!r}; expected {LEDGER_FILE}.",
                hint="Choose another folder or another collection.",
            )

    def open(self) -> None:
        """Begin to use the graph; give it back with `close`."""
        self._shared = Graph.shared(self.folder, self._name)

    def warm(self) -> None:
        """Begin to load the graph in a thread, once, unless it is open; who needs it waits for the rest."""
        with self._begins:
            if self._warming is None and not self._graph.is_open:
                # Not a daemon: a program that ends meanwhile would end inside of Chroma's loading.
                self._warming = threading.Thread(target=self._warm, name="o1-retriever-graph")
                self._warming.start()

    def _warm(self) -> None:
        with suppress(Exception):  # whoever needs the graph meets the same error and says it
            self.read(lambda session, graph: None)

    def close(self) -> None:
        """Stop using the graph. Closing twice does nothing."""
        if self._warming is not None:
            self._warming.join()
        if self._unsealed and self._shared is not None:
            self._seal()
        graph, self._shared = self._shared, None
        if graph is not None:
            graph.release()

    @property
    def _graph(self) -> Graph:
        if self._shared is None:
            raise StoreError(
                f"The index at {self.folder} has been closed.", hint="Open it again: Index(path, embedder)"
            )
        return self._shared

    @property
    def chroma_path(self) -> Path:
        """The folder of Chroma's own files."""
        with self.ledger.session() as session:
            return self._graph.path(session.state().graph)

    def look(self, work: Callable[[Session], T]) -> T:
        """Read from the ledger alone."""
        self._graph  # noqa: B018  (a closed index reads nothing)
        with self.ledger.session() as session:
            session.state()
            return work(session)

    def read(self, work: Callable[[Session, Graph], T]) -> T:
        """Read from ledger and graph at one generation.

        Where `work` fails, Chroma is opened again and searched: if that fails, the graph is built anew, once.
        `work` then runs again. Raises `StoreError` where it fails all the same.
        """
        rebuilt = reopened = False
        for _ in range(_ATTEMPTS):
            with self.ledger.session() as session:
                state = session.state()
                try:
                    self._graph.open(state, reading=True)
                    return work(session, self._graph)
                except DamagedGraphError as error:
                    failure = error
            with self.ledger.session(write=True) as session:
                if session.state() != state:
                    continue  # another process has written or built it meanwhile
                wrong = failure if isinstance(failure, WrongGraphError) else None
                damage = wrong or self._graph.damage(state)
                if reopened and not damage:
                    raise self._refused(failure)
                if damage and rebuilt:
                    break
                if damage:
                    self._rebuild(session, state, damage)
                    rebuilt = True
                reopened = not damage
        raise self._useless(failure)

    def write(self, *, put: Sequence[EmbeddedDocument] = (), remove: Sequence[str] = ()) -> int:
        """Put documents and remove others, all of it or nothing; return how many were removed.

        Where Chroma fails, it is opened again and searched. A damaged graph is built anew, once, and the
        write is tried again; one that proves to be whole has refused the request: nothing of it is kept, and
        `StoreError` says so.
        """
        with self.ledger.session(write=True) as session:
            state = session.state()
            rebuilt = False
            try:
                self._graph.open(state)
            except DamagedGraphError as damage:
                state, rebuilt = self._rebuild(session, state, damage), True
            for _ in range(2):
                try:
                    return self._put(session, state, put, remove)
                except DamagedGraphError as error:
                    failure = error
                except KeyboardInterrupt:
                    self._undo(session, state, put, remove)
                    raise
                proof = self._graph.damage(state, written=True)
                if proof is None:
                    self._undo(session, state, put, remove)
                    raise self._refused(failure)
                if rebuilt:
                    break
                state, rebuilt = self._rebuild(session, replace(state, dirty=True), proof), True
            raise self._useless(failure)

    def _put(
        self, session: Session, state: State, put: Sequence[EmbeddedDocument], remove: Sequence[str]
    ) -> int:
        """Change ledger and graph; the ledger as it was, but dirty, where the graph refuses."""
        with session.transaction():
            session.write_state(replace(state, dirty=True))
        with session.transaction():
            session.put(put)
            removed = session.remove(remove)
            self._graph.put(put)
            self._graph.remove(remove)
            done = self._followed(state)
            session.write_state(done)
        self._graph.advance(done)
        return removed

    def _undo(
        self, session: Session, state: State, put: Sequence[EmbeddedDocument], remove: Sequence[str]
    ) -> None:
        """Give the graph what the ledger has under these ids: a write may have got there in parts."""
        ids = list(dict.fromkeys([*(each.document.id for each in put), *remove]))
        known = session.documents(ids)
        try:
            self._graph.put([*known.values()])
            self._graph.remove([identity for identity in ids if identity not in known])
        except DamagedGraphError as error:
            raise self._useless(error) from error
        self._clean(session, state)

    def _followed(self, state: State) -> State:
        """The next generation, which the graph has."""
        sizes, sums = self._graph.sizes(state.graph), self._graph.sums(state.graph)
        self._unsealed = len(sums) < len(sizes)
        return replace(state, dirty=False, generation=state.generation + 1, sizes=sizes, sums=sums)

    def _seal(self) -> None:
        """Note the checksums of files that are too large for one after every write."""
        with suppress(StoreError, OSError), self.ledger.session(write=True) as session:
            state = session.state()
            if self._graph.holds(state):
                with session.transaction():
                    session.write_state(replace(state, sums=self._graph.sums(state.graph, large=True)))
        self._unsealed = False

    def _clean(self, session: Session, state: State) -> State:
        done = self._followed(state)
        with session.transaction():
            session.write_state(done)
        self._graph.advance(done)
        return done

    def _rebuild(self, session: Session, state: State, damage: DamagedGraphError) -> State:
        """Build the graph from the ledger, in a folder that no process has open."""
        count = session.count()
        if count:
            logger.warning(
                "Building the search graph of %s anew from its %s: %s.",
                self.folder,
                counted(count, "document"),
                damage,
            )
        if not state.dirty:
            with session.transaction():
                session.write_state(replace(state, dirty=True))
        number = state.graph + 1
        shutil.rmtree(self._graph.path(number), ignore_errors=True)
        try:
            self._graph.begin(number, state.description())
            for page in session.pages(_PAGE):
                self._graph.put(page)
        except DamagedGraphError as error:
            raise self._useless(error) from error
        state = self._clean(session, replace(state, graph=number))
        for old in self.folder.glob("chroma-*"):
            if old != self._graph.path(number):
                shutil.rmtree(old, ignore_errors=True)
        return state

    def _refused(self, error: DamagedGraphError) -> StoreError:
        return StoreError(
            f"Chroma refused what was asked of the index at {self.folder}, whose files are whole: {error}.",
            hint="Nothing was changed. If you did nothing unusual, type: pip install -U chromadb",
        )

    def _useless(self, error: DamagedGraphError) -> StoreError:
        return StoreError(
            f"Chroma cannot keep or search the vectors of {self.folder}: {error}.",
            hint="Check the disk and type: pip install -U chromadb",
        )


@dataclass(frozen=True, slots=True, eq=False)
class Lexicon:
    """BM25 over the documents of one generation. `ids` are in ascending order, the order of equal scores.

    `numbers` are those of the ledger, in the order of the ids.
    """

    ids: list[str]
    numbers: Numbers
    bm25: Bm25

    def places(self, numbers: Numbers) -> Places:
        """Where those documents stand among `ids`."""
        return np.flatnonzero(np.isin(self.numbers, numbers, assume_unique=True))

    def best(self, text: str | Reading, depth: int, among: Places | None = None) -> dict[str, float]:
        """The scores of the `depth` best that share a word with the text, best first, by id.

        `among` are the places allowed.
        """
        return self.bm25.best(text, depth, among=among).by_id(self.ids)


class LexiconKeeper(Renewed):
    """Hands out the lexicon of the generation that is current; safe for several threads and processes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        super().__init__()
        self._known: tuple[Version, Lexicon] | None = None

    def renew(self) -> None:
        """A free lock; what is known stays."""
        self._lock = threading.Lock()

    def current(self, session: Session) -> Lexicon:
        """The lexicon of what is in the ledger now. The lock must be held, and the state must be clean."""
        version = session.state().version
        with self._lock:
            if self._known is None or self._known[0] != version:
                _, graph, generation = version
                path = self._folder / f"bm25-{graph}-{generation}"
                self._known = version, self._load(path, session) or self._make(path, session)
            return self._known[1]

    def _load(self, path: Path, session: Session) -> Lexicon | None:
        if not path.is_dir():
            return None
        try:
            count = session.count()
            if json.loads((path / _MANIFEST).read_text(encoding="utf-8")) != _manifest(path, count):
                raise ValueError("files have been changed, or another version wrote them")
            ids = json.loads((path / _IDS).read_text(encoding="utf-8"))
            return Lexicon(ids, session.numbers(), Bm25.load(path, count))
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("Making the word index of %s anew: %s.", self._folder, error)
            shutil.rmtree(path, ignore_errors=True)
            return None

    def _make(self, path: Path, session: Session) -> Lexicon:
        ids, texts = session.texts()
        lexicon = Lexicon(ids, session.numbers(), Bm25(texts))
        try:
            self._keep(lexicon, path)
        except OSError as error:
            logger.warning("The word index of %s cannot be kept, only used: %s.", self._folder, error)
        return lexicon

    def _keep(self, lexicon: Lexicon, path: Path) -> None:
        fresh = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.new")
        try:
            fresh.mkdir()
            lexicon.bm25.save(fresh)
            (fresh / _IDS).write_text(json.dumps(lexicon.ids), encoding="utf-8")
            manifest = json.dumps(_manifest(fresh, len(lexicon.ids)))
            (fresh / _MANIFEST).write_text(manifest, encoding="utf-8")
            for file in fresh.iterdir():
                with file.open("rb+") as opened:
                    os.fsync(opened.fileno())
            fresh.rename(path)
        except OSError:
            # Where another process was first, what it made is the same.
            if not path.is_dir():
                raise
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        for old in self._folder.glob("bm25-*"):
            # Nobody reads or makes those of another generation: they would hold the lock.
            if old.name.split(".")[0] != path.name:
                shutil.rmtree(old, ignore_errors=True)


def _manifest(folder: Path, count: int) -> dict[str, Any]:
    digests = {
        file.name: hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest()
        for file in sorted(folder.iterdir())
        if file.name != _MANIFEST
    }
    return {"format": _WORDS_FORMAT, "count": count, **Bm25.identity(), "files": digests}
