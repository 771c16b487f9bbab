"""Which documents match a filter: found in the ledger, and remembered until a document changes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from functools import reduce

import numpy as np

from o1_retriever.concurrency.forks import Renewed
from o1_retriever.index.fields import Fields, Numbers, union
from o1_retriever.index.filters import Condition, Every, Filter, Not, Part
from o1_retriever.index.ledger import Session, Version

# What is remembered: so many filters, and for all together the numbers of so many documents (16 MB).
_FILTERS, _NUMBERS = 128, 2_000_000


class MatchKeeper(Renewed):
    """Hands out the documents that match a filter now; safe for several threads, and after a fork."""

    def __init__(self) -> None:
        super().__init__()
        self._version: Version | None = None
        self._known: OrderedDict[Filter, Numbers] = OrderedDict()

    def renew(self) -> None:
        """A free lock; what is known stays."""
        self._lock = threading.Lock()

    def current(self, session: Session, filter: Filter) -> Numbers:
        """The numbers of the documents that match, in ascending order. The ledger's lock must be held."""
        version = session.state().version
        with self._lock:
            if self._version != version:
                self._version = version
                self._known.clear()
            known = self._known.get(filter)
            if known is not None:
                self._known.move_to_end(filter)
                return known
        numbers = matching(session.fields, filter.part)
        with self._lock:
            if self._version == version:
                self._known[filter] = numbers
                while len(self._known) > _FILTERS or sum(map(len, self._known.values())) > _NUMBERS:
                    self._known.popitem(last=False)
        return numbers


def matching(fields: Fields, part: Part) -> Numbers:
    """The numbers of the documents that match, in ascending order."""
    if isinstance(part, Condition):
        return fields.passing(part)
    if isinstance(part, Not):
        return np.setdiff1d(fields.every(), matching(fields, part.part), assume_unique=True)
    if isinstance(part, Every):
        found = [matching(fields, each) for each in part.parts]
        return reduce(_both, sorted(found, key=len)) if found else fields.every()
    return union(*(matching(fields, each) for each in part.parts))


def _both(first: Numbers, second: Numbers) -> Numbers:
    return np.intersect1d(first, second, assume_unique=True)
