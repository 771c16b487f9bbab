"""What the engine's equality tests share: models in double precision, the slow way, and slots that tell."""

from __future__ import annotations

import asyncio
import functools
import threading
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from o1_retriever import ThinkingEmbedder
from o1_retriever.concurrency.shared import Ticket
from o1_retriever.engine.decode import write_thoughts
from o1_retriever.engine.load import LocalModel, assemble
from o1_retriever.engine.passes import Prefix
from o1_retriever.engine.rows import Drafts, Job, Sampler, stream_key
from o1_retriever.engine.steps import EagerSteps, Shared, Slots, StaticSteps, Step
from o1_retriever.engine.weights import PackedLinear, has_kernel, is_for_kernels
from o1_retriever.thought import ThoughtSettings
from tests.support.tiny import tiny_model

TOLERANCE = 1e-4
MakeSteps = Callable[[LocalModel, Slots], Step]


@functools.cache
def exact_model(
    architecture: str, instruction: str = "", layout: str = "paper", *, stops: int = 5
) -> LocalModel:
    """A tiny model in float64, in which a batch rounds nothing that a draw could notice.

    Gemma 2 stays in float32: transformers computes its attention's softmax in float32, where the masks of a
    float64 model are infinite.
    """
    model, tokenizer = tiny_model(architecture, layout, stops=stops)  # type: ignore[arg-type]
    model = model if architecture == "gemma2" else model.double()
    return assemble(architecture, model, tokenizer, instruction=instruction)


def job_for(local: LocalModel, query: str, indices: Sequence[int] = (0, 1, 2), room: int = 10_000) -> Job:
    """A job as the backend would make it, with less room where that is asked for."""
    prompt = tuple(local.template.prompt(local.template.text_ids([query])[0]))
    return Job(prompt=prompt, indices=tuple(indices), room=min(room, local.template.room(prompt)))


def slow_thought(
    local: LocalModel, job: Job, index: int, how: ThoughtSettings, guess: tuple[int, ...] = ()
) -> tuple[tuple[int, ...], str, np.ndarray]:
    """Ids, finish and state of one thought by transformers alone: the state costs a pass of its own."""
    key = local, job, index, how
    if key not in _slow:
        written, finish = slow_tokens(local, job, index, how, guess)
        _slow[key] = written, finish, plain_state(local, [*job.prompt, *written, *ending(local)])
    return _slow[key]


_slow: dict[Any, tuple[tuple[int, ...], str, np.ndarray]] = {}


@torch.inference_mode()
def slow_tokens(
    local: LocalModel, job: Job, index: int, how: ThoughtSettings, guess: tuple[int, ...] = ()
) -> tuple[tuple[int, ...], str]:
    """Ids and finish of one thought, each token by a pass over all before it: no cache, no batch.

    As far as a `guess` is right, all its tokens are in one pass, in which none sees those behind it.
    """
    key = torch.tensor([stream_key(how.seed, job.prompt, index)])
    forbidden = local.template.suppressed(local.vocabulary)
    guessed = _plain_logits(local, [*job.prompt, *guess]) if guess else None
    written: list[int] = []
    finish = ""
    while not finish:
        if guessed is not None and tuple(written) == guess[: len(written)]:
            logits = guessed[:, len(job.prompt) - 1 + len(written)].clone()
        else:
            logits = _plain_logits(local, [*job.prompt, *written])[:, -1]
        logits[:, forbidden] = -torch.inf
        for token in set(written):
            found = float(logits[0, token])
            logits[0, token] = found / how.repetition_penalty if found > 0 else found * how.repetition_penalty
        if not written:
            logits[:, list(local.stop_ids)] = -torch.inf
        drawn = Sampler(how.temperature, how.top_p).draw(logits, key, torch.tensor([len(written)]))
        if int(drawn) in local.stop_ids:
            finish = "eos"
        else:
            written.append(int(drawn))
            finish = "length" if len(written) == min(job.room, how.max_new_tokens) else ""
    return tuple(written), finish


def _plain_logits(local: LocalModel, ids: Sequence[int]) -> torch.Tensor:
    logits: torch.Tensor = local.model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits
    return logits


def can_pack(model: Any) -> bool:
    """Whether this machine and this torch have the kernels, and the model is one they compute."""
    return is_for_kernels(model) and has_kernel(PackedLinear, model.dtype)


def ending(local: LocalModel) -> list[int]:
    """What closes every thought."""
    return [local.template.eos, local.template.emb]


def plain_state(local: LocalModel, ids: Sequence[int]) -> np.ndarray:
    """The last hidden state of one sequence by transformers alone."""
    return _plain_state(local, tuple(ids))


@functools.lru_cache(maxsize=4096)
@torch.inference_mode()
def _plain_state(local: LocalModel, ids: tuple[int, ...]) -> np.ndarray:
    output = local.model.base_model(input_ids=torch.tensor([ids]), use_cache=False)
    return np.asarray(output.last_hidden_state[0, -1].float())


def gap(a: Any, b: Any) -> float:
    """The largest difference of two unit vectors, or of two stacks of them."""
    a, b = (np.asarray(x) / np.linalg.norm(x, axis=-1, keepdims=True) for x in (a, b))
    return float(np.abs(a - b).max())


def written_by(local: LocalModel, jobs: list[Job], how: ThoughtSettings, **options: Any) -> list[Drafts]:
    """All drafts in the order of the jobs; each job must be handed over exactly once."""
    found = list(write_thoughts(local, jobs, how, **options))
    assert sorted(place for place, _ in found) == list(range(len(jobs)))
    by_place = dict(found)
    return [by_place[place] for place in range(len(jobs))]


def assert_equal_to_slow(
    local: LocalModel, jobs: list[Job], written: list[Drafts], how: ThoughtSettings
) -> None:
    """Each draft is the one that `slow_thought` writes, and each fast state that of a plain pass."""
    for job, drafts in zip(jobs, written, strict=True):
        for index, draft in zip(job.indices, drafts.drafts, strict=True):
            ids, finish, state = slow_thought(local, job, index, how, tuple(draft.token_ids))
            assert (draft.token_ids, draft.finish) == (ids, finish)
            assert gap(draft.state, state) < TOLERANCE
        if drafts.fast is not None:
            # The paper's prompt is the fast query with one marker behind it.
            assert gap(drafts.fast, plain_state(local, job.prompt[:-1])) < TOLERANCE


def assert_same_drafts(some: list[Drafts], others: list[Drafts]) -> None:
    """The same thoughts in the same order, with the same states."""
    for one, other in zip(some, others, strict=True):
        for a, b in zip(one.drafts, other.drafts, strict=True):
            assert (a.token_ids, a.finish) == (b.token_ids, b.finish)
            assert gap(a.state, b.state) < TOLERANCE


@dataclass
class Watch:
    """What happened to the slots of all flights: counts by name, and the rows of each flight."""

    counts: Counter[str] = field(default_factory=Counter)
    flights: list[int] = field(default_factory=list)
    fail: Callable[[str], None] = lambda _: None
    lent: Callable[[weakref.ref[Slots]], None] = lambda _: None

    def note(self, name: str) -> None:
        """Count it; here memory may run out as well."""
        self.counts[name] += 1
        self.fail(name)


class WatchedSlots(Slots):
    """Slots that tell when living rows are joined by others, moved, or shifted to the left."""

    def __init__(self, watch: Watch, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.watch = watch

    def take_in(self, prompts: Any, real: torch.Tensor) -> None:
        """Count what comes in beside living rows."""
        self.watch.note("refill" if self.live else "start")
        super().take_in(prompts, real)

    def move(self, holes: torch.Tensor, movers: torch.Tensor) -> None:
        """Count compactions."""
        self.watch.note("move")
        super().move(holes, movers)

    def _shift(self) -> None:
        self.watch.note("shift")
        super()._shift()


class WatchedShared(Shared):
    """Lends watched slots with steps of the test's choice; `spare` columns at most (None: as asked)."""

    def __init__(self, watch: Watch, steps: MakeSteps, spare: int | None) -> None:
        super().__init__()
        self.watch, self.steps, self.most_spare = watch, steps, spare

    def borrow(
        self, local: LocalModel, rows: int, window: int, *, spare: int, prefix: Prefix
    ) -> tuple[Slots, Step]:
        """New ones for each flight."""
        self.watch.flights.append(rows)
        self.watch.note("borrow")
        spare = spare if self.most_spare is None else min(spare, self.most_spare)
        slots = WatchedSlots(
            self.watch, local.model, rows, window, spare=spare, clear=True, shared=prefix.for_rows()
        )
        self.watch.lent(weakref.ref(slots))
        return slots, self.steps(local, slots)


def static_steps(local: LocalModel, slots: Slots) -> Step:
    """What a GPU replays as a graph, launched kernel by kernel."""
    return StaticSteps(local, slots, capture=False)


@contextmanager
def watched(local: LocalModel, *, steps: MakeSteps = EagerSteps, spare: int | None = None) -> Iterator[Watch]:
    """Within it, flights of the model use watched slots."""
    watch = Watch()
    local.made[Shared] = WatchedShared(watch, steps, spare)
    try:
        yield watch
    finally:
        del local.made[Shared]


@contextmanager
def before_passes(module: Any, act: Callable[[int], None]) -> Iterator[list[int]]:
    """Call `act` with the number of each pass of a torch module before it runs; yields the numbers so far."""
    passes: list[int] = []

    def hook(*_: Any) -> None:
        passes.append(len(passes))
        act(passes[-1])

    handle = module.register_forward_pre_hook(hook)
    try:
        yield passes
    finally:
        handle.remove()


@asynccontextmanager
async def one_batch(embedder: ThinkingEmbedder, count: int) -> AsyncIterator[None]:
    """What is awaited inside is one batch of `count`: the model's thread is kept busy until all have come."""
    await embedder._awaited.ready()
    asked, go = embedder._awaited._computing, threading.Event()

    def hold(tickets: Sequence[Ticket[None, None]]) -> None:
        go.wait(200)
        tickets[0].settle(None)

    holding = asyncio.ensure_future(asked.ask(hold, item=None))
    yield
    while len(asked._waiting) < count:
        await asyncio.sleep(0.001)
    go.set()
    await holding
