"""Which rows make a batch: all of one source, in an order that the seed alone decides."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

Pick: TypeAlias = tuple[int, int]  # a row, and the epoch that it is drawn in


class SameSourceBatches(Sampler[list[Pick]]):
    """The batches of one process over a whole run of `steps`, so that step n is the same after any resume.

    `sources` (rows,) says where each row comes from. A batch of all `world` processes together has up to
    `size * world` rows of one source, each process every `world`-th of them; the last one of a source may
    be smaller, and what does not give every process a row waits for another epoch.
    """

    def __init__(
        self, sources: NDArray[np.int64], *, size: int, steps: int, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        self._rows = [np.flatnonzero(sources == source) for source in np.unique(sources)]
        self._size, self._steps, self._seed = size, steps, seed
        self._rank, self._world = rank, world

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[list[Pick]]:
        left, epoch = self._steps, 0
        while left > 0:
            for batch in self._epoch(epoch)[:left]:
                yield [(int(row), epoch) for row in batch[self._rank :: self._world]]
                left -= 1
            epoch += 1

    def _epoch(self, epoch: int) -> list[NDArray[np.int64]]:
        whole = self._size * self._world
        batches = []
        for source, rows in enumerate(self._rows):
            shuffled = rows[_generator(self._seed, epoch, source).permutation(len(rows))]
            parts = [shuffled[start : start + whole] for start in range(0, len(rows), whole)]
            batches += [part for part in parts if len(part) >= self._world]
        order = _generator(self._seed, epoch, len(self._rows)).permutation(len(batches))
        return [batches[place] for place in order]


def steps_per_epoch(sources: NDArray[np.int64], *, size: int, world: int = 1) -> int:
    """Batches in one pass over the rows."""
    whole = size * world
    counts = np.unique(sources, return_counts=True)[1]
    return sum(math.ceil(count / whole) - (0 < count % whole < world) for count in counts.tolist())


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
