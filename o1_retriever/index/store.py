"""The ledger and its search graph kept in step, whatever happens to the process in between."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from o1_retriever.errors import StoreError
from o1_retriever.index.graph import DamagedGraphError, Graph
from o1_retriever.index.ledger import LEDGER_FILE, LOCK_FILES, EmbeddedDocument, Ledger, Session, State
from o1_retriever.reporting.text import counted

logger = logging.getLogger(__name__)

T = TypeVar("T")

# What a creation that was cut short leaves behind.
_OURS = {LEDGER_FILE, f"{LEDGER_FILE}-journal", *LOCK_FILES}
# Documents in memory while the graph is built anew.
_PAGE = 1000
# How often a read is tried while other processes change the index in between.
_ATTEMPTS = 5


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

    def close(self) -> None:
        """Stop using the graph. Closing twice does nothing."""
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
                damage = self._graph.damage(state)
                if (damage and rebuilt) or (reopened and not damage):
                    break
                if damage:
                    self._rebuild(session, state, damage)
                    rebuilt = True
                reopened = not damage
        raise self._useless(failure)

    def write(self, *, put: Sequence[EmbeddedDocument] = (), remove: Sequence[str] = ()) -> int:
        """Put documents and remove others, all of it or nothing; return how many were removed."""
        with self.ledger.session(write=True) as session:
            state = session.state()
            try:
                self._graph.open(state)
            except DamagedGraphError as damage:
                state = self._rebuild(session, state, damage)
            with session.transaction():
                session.put(put)
                removed = session.remove(remove)
                session.write_state(replace(state, dirty=True))
            try:
                self._graph.put(put)
                self._graph.remove(remove)
            except DamagedGraphError as damage:
                self._rebuild(session, state, damage)
            else:
                self._clean(session, replace(state, generation=state.generation + 1))
            return removed

    def _clean(self, session: Session, state: State) -> State:
        state = replace(state, dirty=False, sizes=self._graph.sizes(state.graph))
        with session.transaction():
            session.write_state(state)
        self._graph.advance(state)
        return state

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
        state = self._clean(session, replace(state, graph=number, generation=state.generation + 1))
        for old in self.folder.glob("chroma-*"):
            if old != self._graph.path(number):
                shutil.rmtree(old, ignore_errors=True)
        return state

    def _useless(self, error: DamagedGraphError) -> StoreError:
        return StoreError(
            f"Chroma cannot keep or search the vectors of {self.folder}: {error}.",
            hint="Check the disk and type: pip install -U chromadb",
        )
