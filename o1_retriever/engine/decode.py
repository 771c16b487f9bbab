"""Write the thoughts of a batch of queries, and embed them from the cache that writing left.

The k thoughts of a query share one prefill of its prompt. A row goes on until the model stops or its room is
used up; then an eos and `<emb>` are fed as its next two tokens, so that its embedding costs two short
steps and never a second pass over query and thought. Rows that are done leave the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from o1_retriever.engine.load import LocalModel
from o1_retriever.engine.padding import padded
from o1_retriever.engine.sampling import draw, stream_key, uniforms
from o1_retriever.thought import Finish, ThoughtSettings, Vector

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

# A batch is made smaller when this share of its rows is left: copying the cache costs about one step.
_COMPACT_BELOW = 0.75


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A prompt (token ids), the indices of the thoughts wanted of it, and the tokens each may have."""

    prompt: tuple[int, ...]
    indices: tuple[int, ...]
    room: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Draft:
    """A written thought: its token ids without eos, why it ended, and its `<emb>` state (dimension,)."""

    token_ids: tuple[int, ...]
    finish: Finish
    state: Vector


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Drafts:
    """The drafts of one job, in the order of its indices, and the fast state where the prompt holds it."""

    drafts: tuple[Draft, ...]
    fast: Vector | None


@contextmanager
def hidden_states(model: Any) -> Iterator[dict[str, torch.Tensor]]:
    """Collect the base model's last hidden state while the whole model gives the logits.

    Through the whole model, whatever an architecture does to its logits (scaling, soft caps) is kept.
    """
    seen: dict[str, torch.Tensor] = {}

    def keep(_module: Any, _arguments: Any, output: Any) -> None:
        seen["last"] = output.last_hidden_state

    handle = model.base_model.register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def write_thoughts(local: LocalModel, jobs: Sequence[Job], settings: ThoughtSettings) -> list[Drafts]:
    """Write all thoughts of the jobs as one batch; results are in the order of the jobs."""
    import torch

    with local.lock, torch.inference_mode(), hidden_states(local.model) as seen:
        batch = _Batch(local, jobs, settings, seen)
        while batch.alive:
            batch.step()
        return batch.results()


class _Batch:
    """The state of one batch. Rows are (job, thought index) pairs; `row` maps what is left to all rows."""

    def __init__(
        self, local: LocalModel, jobs: Sequence[Job], settings: ThoughtSettings, seen: dict[str, Any]
    ) -> None:
        import torch

        self.local, self.jobs, self.settings, self.seen = local, jobs, settings, seen
        self.device = local.device
        pairs = [(place, index) for place, job in enumerate(jobs) for index in job.indices]
        self.keys = np.array(
            [stream_key(settings.seed, jobs[place].prompt, index) for place, index in pairs], np.uint64
        )
        self.job_of = torch.tensor([place for place, _ in pairs], device=self.device)
        self.room = torch.tensor(
            [min(jobs[p].room, settings.max_new_tokens) for p, _ in pairs], device=self.device
        )
        rows, longest = len(pairs), int(self.room.max())
        self.tokens = torch.zeros(rows, longest, dtype=torch.long, device=self.device)
        self.length = torch.zeros(rows, dtype=torch.long, device=self.device)
        self.stopped = torch.zeros(rows, dtype=torch.bool, device=self.device)
        self.states = torch.zeros(rows, local.dimension, device=self.device)
        self.row = torch.arange(rows, device=self.device)
        # What a row is fed next: 0 a sampled token, 1 eos, 2 <emb>; 3 nothing more, its state can be taken;
        # 4 its state has been taken, and it is only still there until the batch is compacted.
        self.stage = torch.zeros(rows, dtype=torch.long, device=self.device)
        self.stops = torch.tensor(local.stop_ids, device=self.device)
        self.steps = 0
        self._prefill(longest)

    def _prefill(self, longest: int) -> None:
        import torch
        from transformers import DynamicCache

        prompts = [job.prompt for job in self.jobs]
        ids, mask = padded(prompts, self.device, side="left")
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        self.cache = DynamicCache(config=self.local.model.config)
        logits = self._forward(ids, mask, positions)
        offset = self.local.template.fast_offset
        self.fast = None if offset is None else self.seen["last"][:, offset].float().cpu().numpy()
        self._forbid(logits.shape[-1])
        self.cache.batch_select_indices(self.job_of)
        self.logits = logits[self.job_of]
        width = ids.shape[1]
        self.mask = torch.ones(len(self.row), width + longest + 2, dtype=torch.long, device=self.device)
        self.mask[:, :width] = mask[self.job_of]
        self.width = width
        self.next_position = mask.sum(1)[self.job_of]

    def _forbid(self, vocabulary: int) -> None:
        import torch

        forbidden = self.local.template.suppressed(vocabulary)
        self.forbidden = torch.zeros(vocabulary, dtype=torch.bool, device=self.device)
        self.forbidden[forbidden] = True
        # A thought has at least one token: an empty one would be the fast path under another name.
        self.forbidden_first = self.forbidden.clone()
        self.forbidden_first[self.stops] = True

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        output = self.local.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]  # type: ignore[no-any-return]

    @property
    def alive(self) -> bool:
        """Whether any row is still to be fed."""
        return len(self.row) > 0

    def step(self) -> None:
        """Feed every row its next token, take the states of rows fed `<emb>`, drop finished rows."""
        fed = self._next_tokens()
        width = self.width + self.steps + 1
        self.logits = self._forward(fed[:, None], self.mask[:, :width], self.next_position[:, None])
        # A row that is done stays at its last position: it must not run past the model's positions.
        self.next_position = self.next_position + (self.stage < 3)
        self.steps += 1
        done = self.stage == 3
        if done.any():
            ready = self.row[done]
            self.states[ready] = self.seen["last"][done, -1].float()
            self._compact(done)

    def _next_tokens(self) -> torch.Tensor:
        import torch

        local, row, stage = self.local, self.row, self.stage
        forbidden = self.forbidden_first if self.steps == 0 else self.forbidden
        logits = self.logits.masked_fill(forbidden, -torch.inf)
        uniform = uniforms(self.keys[row.cpu().numpy()], self.steps)
        sampled = draw(logits, uniform, temperature=self.settings.temperature, top_p=self.settings.top_p)

        thinking = stage == 0
        stops = thinking & torch.isin(sampled, self.stops)
        writes = thinking & ~stops
        self.tokens[row[writes], self.length[row[writes]]] = sampled[writes]
        self.length[row[writes]] += 1
        self.stopped[row[stops]] = True
        full = writes & (self.length[row] >= self.room[row])

        eos, emb = torch.full_like(sampled, local.template.eos), torch.full_like(sampled, local.template.emb)
        fed = torch.where(stops | (stage == 1), eos, torch.where(stage >= 2, emb, sampled))
        after = torch.where(stops | (stage == 1), 2, torch.where(stage >= 2, (stage + 1).clamp(max=4), 0))
        self.stage = torch.where(full, 1, after)
        return fed

    def _compact(self, done: torch.Tensor) -> None:
        import torch

        self.stage[done] = 4
        left = self.stage < 4
        count = int(left.sum())
        if count == 0:
            self.row = self.row[:0]
            return
        if count > _COMPACT_BELOW * len(self.row):
            return
        keep = torch.nonzero(left)[:, 0]
        self.cache.batch_select_indices(keep)
        self.row, self.stage, self.logits = self.row[keep], self.stage[keep], self.logits[keep]
        self.mask, self.next_position = self.mask[keep], self.next_position[keep]

    def results(self) -> list[Drafts]:
        """The finished drafts, grouped by job."""
        tokens, lengths = self.tokens.tolist(), self.length.tolist()
        stopped, states = self.stopped.tolist(), self.states.cpu().numpy()
        grouped: list[list[Draft]] = [[] for _ in self.jobs]
        for row, job in enumerate(self.job_of.tolist()):
            ids = tuple(tokens[row][: lengths[row]])
            finish: Finish = "eos" if stopped[row] else "length"
            grouped[job].append(Draft(token_ids=ids, finish=finish, state=states[row]))
        return [
            Drafts(drafts=tuple(drafts), fast=None if self.fast is None else self.fast[job])
            for job, drafts in enumerate(grouped)
        ]
