"""The words of an index's documents, for BM25: made from the ledger when first needed, and kept beside it.

What is kept belongs to one generation. It is read and made while the ledger's lock is held, so that no
document can come or go meanwhile; it appears under its name only when it is whole. Whoever finds none of its
generation, or a damaged one, makes it again from the ledger.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from o1_retriever.concurrency.forks import Renewed
from o1_retriever.index.fields import Numbers
from o1_retriever.index.ledger import Session, Version
from o1_retriever.ranking.bm25 import Bm25, Reading
from o1_retriever.ranking.ranking import Places

logger = logging.getLogger(__name__)

_FORMAT = 1
_IDS, _MANIFEST = "ids.json", "manifest.json"


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
    return {"format": _FORMAT, "count": count, **Bm25.identity(), "files": digests}
