"""Large memory on a processor, in huge pages, kept from one use to the next.

A step writes a few bytes for every row, far apart: in pages of the usual size each of these writes misses the
processor's table of pages. And memory that is new to a process is slow at first, as the system clears it.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Sequence
from contextlib import suppress

import torch

# The size of a huge page on most systems; smaller blocks are left to torch.
_PAGE = 2 << 20
# What is kept idle at most: as much as a batch of a small model needs, and no flight of a large one.
_KEPT = 1 << 30


class Memory:
    """Blocks of memory for tensors on a CPU; those given back are used again. Threads may share one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: dict[int, list[mmap.mmap]] = {}

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> tuple[torch.Tensor, mmap.mmap | None]:
        """A tensor with any finite or other content, and its block to give back (None: there is none)."""
        count = int(torch.Size(shape).numel())
        size = -(-count * dtype.itemsize // _PAGE) * _PAGE
        if count * dtype.itemsize < _PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
            return torch.empty(*shape, dtype=dtype), None
        with self._lock:
            found = self._idle.get(size)
            block = found.pop() if found else None
        if block is None:
            block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            # A wish: a system that was built without huge pages refuses, and the memory is as good.
            with suppress(OSError):
                block.madvise(mmap.MADV_HUGEPAGE)
        return torch.frombuffer(block, dtype=dtype, count=count).view(*shape), block

    def give_back(self, blocks: Sequence[mmap.mmap | None]) -> None:
        """Keep blocks for the next use, unless that were too much. Their tensors must not be used again."""
        with self._lock:
            for block in blocks:
                if block is None:
                    continue
                kept = sum(size * len(idle) for size, idle in self._idle.items())
                if kept + len(block) > _KEPT:
                    # Of other sizes, most likely for queries of another length: these are wanted now.
                    self._idle = {size: idle for size, idle in self._idle.items() if size == len(block)}
                    kept = sum(size * len(idle) for size, idle in self._idle.items())
                if kept + len(block) <= _KEPT:
                    self._idle.setdefault(len(block), []).append(block)
