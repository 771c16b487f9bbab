"""One step of all living rows: launched kernel by kernel, or on a GPU replayed as a CUDA graph.

A large GPU computes a step of a few rows faster than Python can launch its kernels. A graph replays them at
once; it needs tensors that keep their place and shape, so the step reads all columns that there are, for a
number of rows rounded up.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch

from o1_retriever.concurrency.processes import Renewed
from o1_retriever.engine.batching import is_out_of_memory
from o1_retriever.engine.layers import sharing
from o1_retriever.engine.load import LocalModel
from o1_retriever.engine.passes import Prefix, forward
from o1_retriever.engine.slots import Memory, Slots, layer_windows

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
