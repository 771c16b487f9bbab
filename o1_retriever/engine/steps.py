"""Steps of all living rows, and the keys and values that they read, in memory that is taken once.

Every row ends at the same column, where the next token of all is written; a row that came later begins
further to the right. So a new row can take the place of a finished one at any time, attention reads one
block from the first column that a living row needs to the last, and nothing is copied from step to step.

On a processor the memory is in huge pages, kept from one use to the next. A step writes a few bytes for every
row, far apart: in pages of the usual size each of these writes misses the processor's table of pages. And
memory that is new to a process is slow at first, as the system clears it.

A large GPU computes a step of a few rows faster than Python can launch its kernels. A CUDA graph replays them
at once; it needs tensors that keep their place and shape, so the step reads all columns that there are, for a
number of rows rounded up.
"""

from __future__ import annotations

import logging
import mmap
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from o1_retriever.concurrency.processes import Renewed
from o1_retriever.engine.layers import layer_windows, sharing
from o1_retriever.engine.load import LocalModel
from o1_retriever.engine.passes import Prefix, forward, is_out_of_memory

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


logger = logging.getLogger(__name__)

Result = tuple[torch.Tensor, torch.Tensor]
Step = Callable[[torch.Tensor, torch.Tensor], Result]
# torch wants a pass or two outside the graph, in which libraries take their work space.
_WARM_UPS = 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Captured:
    ids: torch.Tensor
    positions: torch.Tensor
    logits: torch.Tensor
    hidden: torch.Tensor
    replay: Callable[[], None]


def _rounded(rows: int) -> int:
    """Few different numbers, so that graphs are used again; little more than needed, as large steps cost."""
    return 1 << (rows - 1).bit_length() if rows <= 32 else -(-rows // 32) * 32


class EagerSteps:
    """Steps over the columns that the living rows need."""

    def __init__(self, local: LocalModel, slots: Slots) -> None:
        self.local, self.slots = local, slots

    def __call__(self, fed: torch.Tensor, positions: torch.Tensor) -> Result:
        """Feed the tokens (live,) at their positions (live,): logits and hidden states, one row each."""
        local, slots = self.local, self.slots
        attention = sharing(local.model, slots.shared)
        logits, hidden = forward(
            local, fed[:, None], slots.masks(), positions[:, None], slots.cache, attention=attention
        )
        return logits, hidden[:, -1]


class StaticSteps:
    """Steps over tensors that keep their place; `capture` replays them as CUDA graphs.

    Without capturing, the same step is launched kernel by kernel on any device: slower, and equal.
    """

    def __init__(self, local: LocalModel, slots: Slots, *, capture: bool) -> None:
        self.local, self.slots, self.capture = local, slots, capture
        self._captured: dict[int, _Captured] = {}

    def __call__(self, fed: torch.Tensor, positions: torch.Tensor) -> Result:
        """As in `EagerSteps`."""
        slots, live = self.slots, len(fed)
        rows = min(slots.rows, _rounded(live))
        slots.fixed = rows
        try:
            step = self._captured.get(rows)
            if step is None:
                step = self._captured[rows] = self._prepared(rows)
            step.ids[:live] = fed
            step.positions[:live] = positions
            step.replay()
        finally:
            slots.fixed = None
        return step.logits[:live], step.hidden[:live]

    def _prepared(self, rows: int) -> _Captured:
        ids = torch.zeros(rows, dtype=torch.long, device=self.local.device)
        positions = torch.zeros_like(ids)
        logits = torch.zeros(rows, self.local.vocabulary, dtype=self.local.model.dtype, device=ids.device)
        hidden = torch.zeros(rows, self.local.dimension, dtype=self.local.model.dtype, device=ids.device)
        eager = EagerSteps(self.local, self.slots)

        def step() -> None:
            new, states = eager(ids, positions)
            logits.copy_(new)
            hidden.copy_(states)

        replay = _graph_of(step) if self.capture else step
        return _Captured(ids=ids, positions=positions, logits=logits, hidden=hidden, replay=replay)


def _graph_of(step: Callable[[], None]) -> Callable[[], None]:
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


class FallbackSteps:
    """Graphs as long as they work, then steps as usual, said once."""

    def __init__(self, local: LocalModel, slots: Slots, graphs: Step) -> None:
        self.shared, self.graphs = local.once(Shared), graphs
        self.eager = EagerSteps(local, slots)

    def __call__(self, fed: torch.Tensor, positions: torch.Tensor) -> Result:
        """As in `EagerSteps`."""
        if not self.shared.graphs_fail:
            try:
                return self.graphs(fed, positions)
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                self.shared.graphs_fail = True
                logger.warning(
                    "CUDA graphs do not work with this model (%s); its steps are launched one by one, "
                    "which is slower for few queries.",
                    error,
                )
        return self.eager(fed, positions)


class Shared(Renewed):
    """What flights of one model hand on to the next: memory for keys and values, on a GPU with its graphs."""

    def __init__(self, _local: LocalModel | None = None) -> None:
        self.graphs_fail = False
        self._memory = Memory()
        super().__init__()

    def renew(self) -> None:
        """Begin without idle slots."""
        self._lock = threading.Lock()
        self._idle: dict[tuple[int, int], tuple[Slots, Step]] = {}

    def borrow(
        self, local: LocalModel, rows: int, window: int, *, spare: int, prefix: Prefix
    ) -> tuple[Slots, Step]:
        """Slots for so many rows with steps over them: from an earlier flight where one had the same size."""
        if local.device.type != "cuda" or any(layer_windows(local.model.config)):
            memory = self._memory if local.device.type == "cpu" else None
            slots = Slots(local.model, rows, window, spare=spare, memory=memory, shared=prefix.for_rows())
            return slots, EagerSteps(local, slots)
        rows, columns = _rounded(rows), -(-(window + spare) // 128) * 128
        with self._lock:
            # One size is kept: an idle flight's memory is large.
            idle = self._idle.pop((rows, columns), None)
            self._idle.clear()
        if idle is not None:
            return idle
        slots = Slots(local.model, rows, columns, spare=0, clear=True)
        return slots, FallbackSteps(local, slots, StaticSteps(local, slots, capture=True))

    def give_back(self, slots: Slots, step: Step) -> None:
        """Keep a flight's slots for the next one; rows that it left behind are let go."""
        if isinstance(step, FallbackSteps):
            slots.shrink(0)
            with self._lock:
                self._idle[slots.rows, slots.capacity] = slots, step
        elif slots.memory is not None:
            slots.memory.give_back(slots.blocks)
