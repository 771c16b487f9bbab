"""What each row in flight has written, and what it is fed next."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from o1_retriever.engine.sampling import Sampler, penalise
from o1_retriever.thought import Finish, ThoughtSettings, Vector

if TYPE_CHECKING:
    import torch

    from o1_retriever.engine.load import LocalModel

# Stages of a row, by what it is fed next.
_TOKEN, _EOS, _EMB, _READY, _TAKEN = range(5)
_FINISHES: tuple[Finish, ...] = ("eos", "length", "budget")
_BY_LENGTH, _BY_BUDGET = 1, 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Draft:
    """A written thought: its token ids without eos, why it ended, and its `<emb>` state (dimension,)."""

    token_ids: tuple[int, ...]
    finish: Finish
    state: Vector


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRow:
    """A row to come: its owner (any two numbers), its stream, its room, its prompt's length and deadline.

    The deadline is a moment of `time.perf_counter`, infinite for none.
    """

    owner: tuple[int, int]
    key: int
    room: int
    position: int
    deadline: float


class Rows:
    """The state of all rows as tensors with one entry a slot, the living rows first."""

    def __init__(self, local: LocalModel, settings: ThoughtSettings, slots: int, longest: int) -> None:
        import torch

        self.local = local
        self.sampler = Sampler(settings.temperature, settings.top_p)
        self.penalty = settings.repetition_penalty
        device = local.device
        vocabulary = local.vocabulary
        self.stops = torch.tensor(local.stop_ids, dtype=torch.long, device=device)
        self.forbidden = torch.tensor(local.template.suppressed(vocabulary), dtype=torch.long, device=device)
        number: dict[str, Any] = {"dtype": torch.long, "device": device}
        self.timed = settings.budget_ms is not None
        self.owner = torch.zeros(slots, 2, **number)
        self.key = torch.zeros(slots, **number)
        self.room = torch.zeros(slots, **number)
        self.position = torch.zeros(slots, **number)
        self.deadline = torch.zeros(slots, dtype=torch.float64, device=device)
        self.stage = torch.zeros(slots, **number)
        self.finish = torch.zeros(slots, **number)
        self.length = torch.zeros(slots, **number)
        self.tokens = torch.zeros(slots, longest, **number)
        self.logits = torch.zeros(slots, vocabulary, dtype=local.model.dtype, device=device)
        self.states = torch.zeros(slots, local.dimension, device=device)

    def take_in(self, place: int, new: Sequence[NewRow], logits: torch.Tensor) -> None:
        """Put new rows at `place` and behind it, with the logits of their first tokens."""
        import torch

        at = slice(place, place + len(new))
        for name in ("owner", "key", "room", "position", "deadline"):
            tensor: torch.Tensor = getattr(self, name)
            tensor[at] = torch.tensor([getattr(row, name) for row in new], dtype=tensor.dtype)
        for tensor in (self.stage, self.finish, self.length):
            tensor[at] = 0
        self.logits[at] = logits

    def next_tokens(self, live: int, now: float) -> torch.Tensor:
        """What the first `live` rows are fed in this step (live,): sampled tokens, or eos and `<emb>`."""
        import torch

        stage, length = self.stage[:live], self.length[:live]
        sampled = self._sample(live)
        thinking = stage == _TOKEN
        stops = thinking & torch.isin(sampled, self.stops)
        # A thought has at least one token: an empty one would be the fast path under another name.
        late = thinking & ~stops & (length > 0) & (self.deadline[:live] < now) if self.timed else None
        writes = thinking & ~stops if late is None else thinking & ~stops & ~late
        place = length.clamp(max=self.tokens.shape[1] - 1)[:, None]
        written = self.tokens[:live].gather(1, place)
        self.tokens[:live].scatter_(1, place, torch.where(writes[:, None], sampled[:, None], written))
        length += writes
        full = writes & (length >= self.room[:live])

        ends = stops if late is None else stops | late
        fed = sampled.masked_fill(ends | (stage == _EOS), self.local.template.eos)
        fed = fed.masked_fill(stage >= _EMB, self.local.template.emb)
        moved = torch.where(thinking, ends * _EMB + full * _EOS, (stage + 1).clamp(max=_TAKEN))
        finish = full * _BY_LENGTH
        # A row ends once; until then its finish is 0, the model's own end.
        self.finish[:live] += finish if late is None else finish + late * _BY_BUDGET
        stage.copy_(moved)
        return fed

    def after_step(self, live: int, logits: torch.Tensor, hidden: torch.Tensor) -> None:
        """Keep what the pass gave: the next logits, and the states of rows that were fed `<emb>`."""
        import torch

        stage = self.stage[:live]
        self.logits[:live] = logits
        # A row that is done stays at its last position: it must not run past the model's positions.
        self.position[:live] += stage < _READY
        ready = (stage == _READY)[:, None]
        self.states[:live] = torch.where(ready, hidden.float(), self.states[:live])

    def done(self, live: int) -> torch.Tensor:
        """Places of the rows whose state has been kept."""
        done: torch.Tensor = self.stage[:live] >= _READY
        return done.nonzero()[:, 0]

    def drafts(self, places: torch.Tensor) -> list[tuple[tuple[int, int], Draft]]:
        """Owner and draft of finished rows."""
        owners, lengths = self.owner[places].tolist(), self.length[places].tolist()
        finishes, states = self.finish[places].tolist(), self.states[places].cpu().numpy()
        tokens = self.tokens[places, : max(lengths, default=0)].tolist()
        return [
            (
                (owners[i][0], owners[i][1]),
                Draft(token_ids=tuple(tokens[i][:length]), finish=_FINISHES[finishes[i]], state=states[i]),
            )
            for i, length in enumerate(lengths)
        ]

    def move(self, holes: torch.Tensor, movers: torch.Tensor) -> None:
        """Let the rows `movers` take the places `holes`."""
        for name in ("owner", "key", "room", "position", "deadline", "stage", "finish", "length", "tokens"):
            tensor: torch.Tensor = getattr(self, name)
            tensor[holes] = tensor[movers]
        self.logits[holes] = self.logits[movers]
        self.states[holes] = self.states[movers]

    def _sample(self, live: int) -> torch.Tensor:
        logits, length = self.logits[:live], self.length[:live]
        logits.index_fill_(1, self.forbidden, -math.inf)
        if self.penalty != 1:
            penalise(logits, self.tokens[:live], length, self.penalty)
        if len(self.stops):
            first = (length == 0)[:, None]
            stops = logits.index_select(1, self.stops).masked_fill(first, -math.inf)
            logits.index_copy_(1, self.stops, stops)
        return self.sampler.draw(logits, self.key[:live], length)
