"""Keys and values of the rows in flight, in memory that is taken once.

Every row ends at the same column, where the next token of all is written; a row that came later begins
further to the right. So a new row can take the place of a finished one at any time, attention reads one
block from the first column that a living row needs to the last, and nothing is copied from step to step.

On a processor the memory is in huge pages, kept from one use to the next. A step writes a few bytes for every
row, far apart: in pages of the usual size each of these writes misses the processor's table of pages. And
memory that is new to a process is slow at first, as the system clears it.
"""

from __future__ import annotations

import mmap
import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)

from o1_retriever.concurrency.processes import Renewed
from o1_retriever.errors import CheckpointError

# The size of a huge page on most systems; smaller blocks are left to torch.
_PAGE = 2 << 20
# What is kept idle at most: as much as a batch of a small model needs, and no flight of a large one.
_KEPT = 1 << 30


class Memory(Renewed):
    """Blocks of memory for tensors on a CPU; those given back are used again. Threads may share one."""

    def renew(self) -> None:
        """Begin without idle blocks."""
        self._lock = threading.Lock()
        self._idle: dict[int, list[mmap.mmap]] = {}

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> tuple[torch.Tensor, mmap.mmap | None]:
        """A tensor with any finite or other content, and its block to give back (None: there is none)."""
        count = int(torch.Size(shape).numel())
        size = -(-count * dtype.itemsize // _PAGE) * _PAGE
        if count * dtype.itemsize < _PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
            return torch.empty(*shape, dtype=dtype), None
        with self._lock:
            idle = self._idle.get(size)
            block = idle.pop() if idle else None
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


class Slots:
    """Room for `rows` sequences of at most `window` tokens, which end at the same column.

    `spare` columns are written before everything is moved back to the left. `clear` empties the memory for
    steps that read all of it: what a mask hides must still be a number, and fresh memory may hold NaN.
    `memory` is where large blocks come from on a CPU (None: torch's own). `shared` are each layer's keys
    and values (heads, tokens, head dimension) that stand before all rows and are held once. The living rows
    are the first `live` ones. `column` is where the next token is written, `first` the first column that a
    living row needs.
    """

    def __init__(
        self,
        model: Any,
        rows: int,
        window: int,
        *,
        spare: int,
        clear: bool = False,
        memory: Memory | None = None,
        shared: Sequence[tuple[torch.Tensor, torch.Tensor]] = (),
    ) -> None:
        self.clear, self.memory, self.shared = clear, memory, shared
        self.rows, self.capacity = rows, window + spare
        self.windows = layer_windows(model.config)
        self.layers = [_Layer(self) for _ in self.windows]
        self.cache = Cache(layers=list(self.layers))
        self._hidden = torch.finfo(model.dtype).min
        # What is added to the attention's scores: 0 where a row has a token, the least number elsewhere.
        self._bias = torch.full((rows, self.capacity), self._hidden, dtype=model.dtype, device=model.device)
        self._starts = torch.zeros(rows, dtype=torch.long, device=model.device)
        self.live = self.column = self.first = 0
        # Steps feed so many rows over all columns, in tensors that keep their place (None: as needed). Rows
        # beyond the living ones compute what nobody reads.
        self.fixed: int | None = None
        self.column_at = torch.zeros(1, dtype=torch.long, device=model.device)
        self.blocks: list[Any] = []

    @property
    def free(self) -> int:
        """Rows that nobody uses."""
        return self.rows - self.live

    def take_in(self, prompts: Sequence[tuple[torch.Tensor, torch.Tensor]], real: torch.Tensor) -> None:
        """Put new rows behind the living ones, with the keys and values of their prompts.

        Each layer's are (new, heads, width, head dimension), padded on the left; `real` (new, width) is 1
        where a prompt has a token. No prompt may be longer than the shortest living row.
        """
        new, width = real.shape
        if not self.live:
            self.column = self.first = width
        rows, columns = slice(self.live, self.live + new), slice(self.column - width, self.column)
        for layer, (keys, values) in zip(self.layers, prompts, strict=True):
            layer.put(rows, self.column, keys, values)
        self._bias[rows] = self._hidden
        self._bias[rows, columns] = self._bias[rows, columns].masked_fill(real.bool(), 0.0)
        self._starts[rows] = self.column - real.sum(1)
        self.live += new
        self._find_first()

    def open_column(self) -> None:
        """Make the next column ready to be written by a step of all living rows."""
        if self.column == self.capacity:
            self._shift()
        self._bias[: self.live, self.column] = 0.0
        self.column_at.fill_(self.column)

    def close_column(self) -> None:
        """The step is done."""
        self.column += 1

    def masks(self) -> Any:
        """The mask of a step, (live, 1, 1, columns): one tensor, or one for each kind of layer."""
        if self.fixed is not None:
            return self._bias[: self.fixed, None, None]
        full = self._bias[: self.live, None, None, self.first : self.column + 1]
        window = next((size for size in self.windows if size is not None), None)
        if window is None:
            return full
        near = full
        if near.shape[-1] > window:
            near = full.clone()
            near[..., :-window] = self._hidden
        if all(self.windows):
            return near
        return {"full_attention": full, "sliding_attention": near}

    def move(self, holes: torch.Tensor, movers: torch.Tensor) -> None:
        """Let living rows, `movers`, take the places `holes` of finished ones; both (moved,)."""
        columns = slice(self.first, self.column)
        for layer in self.layers:
            layer.move(holes, movers, columns)
        self._bias[holes] = self._bias[movers]
        self._starts[holes] = self._starts[movers]

    def shrink(self, live: int) -> None:
        """Only the first `live` rows are left."""
        self.live = live
        if live:
            self._find_first()

    def _find_first(self) -> None:
        self.first = int(self._starts[: self.live].min())

    def _shift(self) -> None:
        """Move everything to the left, over the columns that no living row needs."""
        by = self.first
        columns = slice(by, self.column)
        for layer in self.layers:
            layer.shift(self.live, columns)
        kept = self._bias[: self.live, columns].clone()
        self._bias[: self.live] = self._hidden
        self._bias[: self.live, : kept.shape[1]] = kept
        self._starts -= by
        self.column -= by
        self.first = 0


# transformers' own types are loose here: tensors or None, filled in later.
_CacheLayer: Any = CacheLayerMixin


class _Layer(_CacheLayer):  # type: ignore[misc]
    """One layer's keys and values, (rows, heads, capacity, head dimension), as a model uses it."""

    is_sliding = False

    def __init__(self, slots: Slots) -> None:
        super().__init__()
        # Not owned: in a ring of references the memory would stay until Python looks for rings.
        self.slots: Slots = weakref.proxy(slots)

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Take the memory, once the shapes are known."""
        self.keys, self.values = self._room(key_states), self._room(value_states)
        if self.slots.clear:
            self.keys.zero_()
            self.values.zero_()
        self.is_initialized = True

    def _room(self, states: torch.Tensor) -> torch.Tensor:
        slots = self.slots
        shape = (slots.rows, states.shape[1], slots.capacity, states.shape[3])
        if slots.memory is None:
            return states.new_empty(shape)
        tensor, block = slots.memory.empty(shape, states.dtype)
        slots.blocks.append(block)
        return tensor

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one token of every living row; all that the attention needs comes back."""
        slots = self.slots
        if slots.fixed is not None:
            keys, values = self.keys[: slots.fixed], self.values[: slots.fixed]
            keys.index_copy_(2, slots.column_at, key_states)
            values.index_copy_(2, slots.column_at, value_states)
            return keys, values
        self.keys[: slots.live, :, slots.column] = key_states[:, :, 0]
        self.values[: slots.live, :, slots.column] = value_states[:, :, 0]
        columns = slice(slots.first, slots.column + 1)
        return self.keys[: slots.live, :, columns], self.values[: slots.live, :, columns]

    def put(self, rows: slice, end: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write prompts that end before column `end`. A sliding layer may give their last tokens alone."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        start = end - keys.shape[2]
        for memory, new in ((self.keys, keys), (self.values, values)):
            # What was there before is masked; but fresh memory may hold NaN, which no mask hides.
            memory[rows, :, :start] = 0.0
            memory[rows, :, start:end] = new

    def move(self, holes: torch.Tensor, movers: torch.Tensor, columns: slice) -> None:
        """Copy rows to other places."""
        self.keys[holes, :, columns] = self.keys[movers, :, columns]
        self.values[holes, :, columns] = self.values[movers, :, columns]

    def shift(self, live: int, columns: slice) -> None:
        """Copy columns to the left end."""
        width = columns.stop - columns.start
        self.keys[:live, :, :width] = self.keys[:live, :, columns].clone()
        self.values[:live, :, :width] = self.values[:live, :, columns].clone()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset for a mask that transformers would make; ours are made in `Slots.masks`."""
        return self.slots.column + query_length - self.slots.first, 0

    def get_seq_length(self) -> int:
        """Columns in use."""
        return self.slots.column - self.slots.first

    def get_max_length(self) -> int:
        """Columns that there are."""
        return self.slots.capacity

    get_max_cache_shape = get_max_length  # its name in earlier versions of transformers


def layer_windows(config: Any) -> list[int | None]:
    """Each layer's attention window in tokens, None for a layer that sees everything.

    Raises `CheckpointError` for layers that are not attention over keys and values.
    """
    windows: list[int | None] = []
    layers: list[Any] = DynamicCache(config=config.get_text_config(decoder=True)).layers
    for layer in layers:
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            raise CheckpointError(
                f"The model has a {type(layer).__name__}; expected plain attention, full or sliding.",
                hint="Use it behind a server: ThinkingEmbedder.from_parts(OpenAIThinker(...), encoder).",
            )
        windows.append(getattr(layer, "sliding_window", None) if layer.is_sliding else None)
    return windows
