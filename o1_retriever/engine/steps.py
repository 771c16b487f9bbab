"""One step of all living rows: launched kernel by kernel, or on a GPU replayed as a CUDA graph.

A large GPU computes a step of a few rows faster than Python can launch its kernels. A graph replays them at
once; it needs tensors that keep their place and shape, so the step reads all columns that there are, for a
number of rows rounded up.

On a processor a step has an attention of its own, as two plain matrix products: the usual kernels are made
for many queries at once. For a single one they read keys and values for each of the query heads that share
them; a product reads them once for all.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from o1_retriever.engine.batching import is_out_of_memory
from o1_retriever.engine.load import LocalModel
from o1_retriever.engine.passes import Prefix, forward, takes_our_attention
from o1_retriever.engine.slots import Memory, Slots, layer_windows
from o1_retriever.errors import CheckpointError

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
        attention = step_attention(local.model, slots.shared)
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


class Shared:
    """What flights of one model hand on to the next: memory for keys and values, on a GPU with its graphs."""

    def __init__(self, _local: LocalModel | None = None) -> None:
        self.graphs_fail = False
        self._lock = threading.Lock()
        self._idle: dict[tuple[int, int], tuple[Slots, Step]] = {}
        self._memory = Memory()

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


_ATTENTION = "o1_step"
Layers = Sequence[tuple[torch.Tensor, torch.Tensor]]
_shared: ContextVar[Layers] = ContextVar("shared", default=())
# What a model may pass along that changes nothing here: a window is part of the mask already.
_HARMLESS = frozenset(
    ("dropout", "is_causal", "sliding_window", "position_ids", "use_cache", "cache_position")
)
# Half precision would round the scores, which the usual kernels keep in float32.
_DTYPES = (torch.float32, torch.float64)


@contextmanager
def step_attention(model: Any, shared: Layers = ()) -> Iterator[None]:
    """Within it, `model` takes this attention, where it is faster and means the same.

    That is on a CPU, for models that would take torch's scaled dot product attention. `shared` are keys and
    values that stand before those of every row; no other attention knows of them.
    """
    if not takes_our_attention(model) or not (shared or model.dtype in _DTYPES):
        yield
        return
    config = model.config.get_text_config(decoder=True)
    usual, before = config._attn_implementation, _shared.set(shared)
    config._attn_implementation = _ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = usual
        _shared.reset(before)


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it: query (rows, heads, 1, d), keys (rows, kv heads, columns, d).

    The mask is added to the scores. Gives (rows, 1, heads, d). What is asked for beyond that goes to
    transformers' own function.
    """
    rows, heads, queries, size = query.shape
    shared = _shared.get()
    unusual = any(value is not None for name, value in options.items() if name not in _HARMLESS)
    if shared and (unusual or attention_mask is None):
        raise CheckpointError(
            f"A {type(module).__name__} asks for an attention that cannot share a prompt's beginning.",
            hint="Load the model with attn_implementation='eager'.",
        )
    if unusual or queries != 1 or attention_mask is None or attention_mask.dtype == torch.bool:
        given: Any = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
        return given  # type: ignore[no-any-return]
    grouped = query.reshape(rows, key.shape[1], heads // key.shape[1], size)
    scaled = grouped * (size**-0.5 if scaling is None else scaling)
    # The long side first: products are a third faster so than the other way round.
    scores = torch.matmul(key, scaled.transpose(-1, -2)).transpose(-1, -2)
    scores = scores + attention_mask
    if not shared:
        attended = torch.matmul(torch.softmax(scores, -1), value)
    else:
        attended = _attend_both(scaled, scores, value, *shared[module.layer_idx])
    return attended.reshape(rows, 1, heads, value.shape[-1]), None


def _attend_both(
    query: torch.Tensor,
    scores: torch.Tensor,
    value: torch.Tensor,
    first_keys: torch.Tensor,
    first_values: torch.Tensor,
) -> torch.Tensor:
    """Attention over the tokens that all rows share, and each row's own, (rows, kv heads, group, d).

    `query` is (rows, kv heads, group, d); `scores` (rows, kv heads, group, columns) and `value` (rows, kv
    heads, columns, d) are of the own tokens, `first_keys` and `first_values` (kv heads, tokens, d) of the
    shared ones. All rows are one product with the shared tokens, which are so read once and not once a row.
    """
    rows, kv, group, size = query.shape
    tokens = first_keys.shape[1]
    together = query.transpose(0, 1).reshape(kv, rows * group, size)
    first = torch.matmul(together, first_keys.transpose(1, 2)).view(kv, rows, group, tokens).transpose(0, 1)
    weights = torch.softmax(torch.cat([first, scores], -1).float(), -1).to(value.dtype)
    shares = weights[..., :tokens].transpose(0, 1).reshape(kv, rows * group, tokens)
    before = torch.matmul(shares, first_values).view(kv, rows, group, -1).transpose(0, 1)
    return before + torch.matmul(weights[..., tokens:], value)


AttentionInterface.register(_ATTENTION, attend)
