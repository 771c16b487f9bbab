"""What a load costs: how a model's time grows with a batch, how long queries wait, and what an index takes.

A server does all that waits in one batch, and what comes meanwhile is the next one. Its time is that of the
steps in which tokens are written: so much for each step, so much for each row that still writes, and so much
for each query. These three are measured on a machine, and the queue is then simulated.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from typing import Any

import numpy as np

from o1_retriever.embedder import ThinkingEmbedder
from o1_retriever.errors import SettingsError
from o1_retriever.thought import ThoughtSettings, check_number

# Batches that are measured, and how often: a busy server has large ones, whose times cannot be told from
# those of small ones. One that would take longer than so many seconds is left out.
_BATCHES = {1: 6, 4: 4, 16: 3, 64: 2}
_PATIENCE_S = 30.0
_LARGEST = 512  # queries in a batch: that of `concurrency.shared`
# The part of its capacity that a machine should be given: beyond it, queries waited longer than predicted.
_BUSY = 0.6

# An index of ours, by the figures search/100000 and search/1000000 of benchmarks/results/speed.jsonl (384
# numbers a vector): what comes with each vector beside its numbers, in memory and on disk, in bytes.
_GRAPH_BYTES, _FILE_BYTES = 551, 1086
_COPIES_ON_DISK = 2  # the ledger's and the graph's
_ADD_S, _ADD_EXPONENT = 1094.7 / 1e6**1.14, 1.14
_OPEN_S = 2.77e-6  # a vector, after what opening any index takes


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """How long a machine takes, in seconds: `step` for a step of writing, `row` for a row in it, `query` for
    each query besides, and `fast` and `fast_query` for a batch without thoughts and a query in it.

    `lengths` are tokens of the thoughts about queries that were measured, one tuple a query.
    """

    step: float
    row: float
    query: float
    fast: float
    fast_query: float
    lengths: tuple[tuple[int, ...], ...]

    def batch(self, lengths: Sequence[Sequence[int]]) -> tuple[float, list[float]]:
        """The seconds of a batch of queries with thoughts so long, and when each query is done."""
        rows = np.concatenate([np.asarray(each, np.int64) for each in lengths])
        living = np.bincount(rows, minlength=int(rows.max()) + 1)[::-1].cumsum()[::-1][1:]
        times = np.concatenate([[0.0], np.cumsum(self.step + self.row * living)])
        begins = self.query * len(lengths)
        return begins + float(times[-1]), [begins + float(times[max(each)]) for each in lengths]

    def fast_batch(self, queries: int) -> float:
        """The seconds of a batch without thoughts."""
        return self.fast + self.fast_query * queries


def measure_costs(
    embedder: ThinkingEmbedder, queries: Sequence[str], *, settings: ThoughtSettings | None = None
) -> Costs:
    """Time batches of several sizes here, of queries of which 64 must be different.

    The embedder must have no cache, which would answer for the model: `SettingsError` otherwise.
    """
    texts, most = list(dict.fromkeys(queries)), max(_BATCHES)
    if embedder.cache is not None or len(texts) < most:
        raise SettingsError(
            f"Found {'a cache' if embedder.cache is not None else f'{len(texts)} queries'}; expected an "
            f"embedder with cache=False and {most} different queries."
        )
    chosen, following = settings or embedder.settings, cycle(texts)
    embedder.embed_query("Is it warm?", settings=chosen.with_changes(seed=chosen.seed + 1))
    rows, seconds, lengths = [], [0.0], []
    for size, times in _BATCHES.items():
        # Four times the queries take at most four times as long.
        for _ in range(times if 4 * seconds[-1] < _PATIENCE_S else 0):
            own = list(islice(following, size))
            spent, found = _timed(partial(embedder.embed_queries, own, settings=chosen))
            tokens = [tuple(max(1, each.completion_tokens) for each in row.thoughts) or (1,) for row in found]
            lengths += tokens
            rows.append((max(map(max, tokens)), sum(map(sum, tokens)), size))
            seconds.append(spent)
    step, row, query = _least_squares(np.array(rows, float), np.array(seconds[1:]))
    fast, fast_query = _fast_costs(embedder, texts, chosen)
    return Costs(step=step, row=row, query=query, fast=fast, fast_query=fast_query, lengths=tuple(lengths))


def _fast_costs(
    embedder: ThinkingEmbedder, queries: list[str], settings: ThoughtSettings
) -> tuple[float, float]:
    never = settings.with_changes(thinking="never")
    found = []
    for size, times in _BATCHES.items():
        own = queries[:size]
        embedder.embed_queries(own, settings=never)
        work = partial(embedder.embed_queries, own, settings=never)
        best = min(_timed(work)[0] for _ in range(times))
        found.append((1.0, float(size), best))
    batch, each = _least_squares(np.array([row[:2] for row in found]), np.array([row[2] for row in found]))
    return batch, each


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found


def _least_squares(rows: Any, seconds: Any) -> tuple[float, ...]:
    """Costs, none below 0, that explain the times best in relation to each."""
    active = list(range(rows.shape[1]))
    while True:
        scaled = rows[:, active] / seconds[:, None]
        found = np.linalg.lstsq(scaled, np.ones(len(seconds)), rcond=None)[0]
        if (found >= 0).all() or len(active) == 1:
            break
        active.pop(int(found.argmin()))
    costs = np.zeros(rows.shape[1])
    costs[active] = np.maximum(found, 0)
    return tuple(costs.tolist())


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """How many of the queries are thought about: none (fast), all (always), or a `share` of them (guarded).

    Where not all are, each is embedded without thoughts first, whose search decides.
    """

    name: str
    share: float

    def __post_init__(self) -> None:
        check_number("share", self.share, 0, 1)


def tiers(share: float) -> tuple[Tier, Tier, Tier]:
    """The three that there are; guarded thinks about `share` of the queries."""
    return Tier(name="fast", share=0.0), Tier(name="guarded", share=share), Tier(name="always", share=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """How a queue goes at some rate: milliseconds from a query's arrival to its answer.

    `busy` is the part of the time in which the model works, `batch` the mean number of queries in a batch.
    Where the rate is above what the machine can do, waiting has no end: it is `stable` no more.
    """

    mean_ms: float
    p50_ms: float
    p95_ms: float
    busy: float
    batch: float
    stable: bool


def simulate(
    costs: Costs, rate: float, tier: Tier, *, overhead_s: float = 0.0, queries: int = 4000, seed: int = 0
) -> Waiting:
    """A server's queue with Poisson arrivals of `rate` queries a second.

    `overhead_s` is what each request takes besides, which does not queue. Raises `SettingsError`.
    """
    check_number("rate", rate, 1e-9, 1e9)
    drawn = np.random.default_rng(seed)
    arrivals = np.cumsum(drawn.exponential(1 / rate, queries))
    thinks = drawn.random(queries) < tier.share
    lengths = [costs.lengths[place] for place in drawn.integers(len(costs.lengths), size=queries)]
    # What waits is a batch of one kind at a time: fast embeddings, or thinking. The oldest comes first.
    waits = {"fast": _Line(), "think": _Line()}
    now, coming, worked, sizes = 0.0, 0, 0.0, []
    done = np.zeros(queries)
    while coming < queries or any(line.places for line in waits.values()):
        if not any(line.places for line in waits.values()):
            now = max(now, arrivals[coming])
        while coming < queries and arrivals[coming] <= now:
            waits["think" if tier.share == 1 else "fast"].add(arrivals[coming], coming)
            coming += 1
        kind = min((name for name in waits if waits[name].places), key=lambda name: waits[name].since[0])
        batch = waits[kind].taken()
        if kind == "fast":
            spent = costs.fast_batch(len(batch))
            for place in batch:
                if thinks[place]:
                    waits["think"].add(now + spent, place)
                else:
                    done[place] = now + spent
        else:
            spent, each = costs.batch([lengths[place] for place in batch])
            done[batch] = now + np.array(each)
        now, worked = now + spent, worked + spent
        sizes.append(len(batch))
    # The first tenth meets an empty server.
    waited = (done - arrivals)[queries // 10 :] + overhead_s
    # Where the queue only grows, the second half waits three times as long as the first.
    half = len(waited) // 2
    stable = bool(waited[half:].mean() < 1.6 * waited[:half].mean())
    return Waiting(
        mean_ms=float(waited.mean() * 1000),
        p50_ms=float(np.percentile(waited, 50) * 1000),
        p95_ms=float(np.percentile(waited, 95) * 1000),
        busy=float(worked / now),
        batch=float(np.mean(sizes)),
        stable=stable,
    )


class _Line:
    """What waits for one kind of work, in the order of its coming."""

    def __init__(self) -> None:
        self.since: list[float] = []
        self.places: list[int] = []

    def add(self, since: float, place: int) -> None:
        self.since.append(since)
        self.places.append(place)

    def taken(self) -> list[int]:
        batch, self.places = self.places[:_LARGEST], self.places[_LARGEST:]
        self.since = self.since[_LARGEST:]
        return batch


def capacity(costs: Costs, tier: Tier, *, within_s: float | None = None) -> float:
    """Queries a second that one machine can do; with `within_s`, at which 95 of 100 wait no longer than that.

    0 where even a lone query takes longer.
    """
    most = _throughput(costs, tier)
    if within_s is None:
        return most
    low, high = 0.0, most
    for _ in range(12):
        rate = (low + high) / 2
        found = simulate(costs, rate, tier, queries=1500)
        low, high = (rate, high) if found.stable and found.p95_ms <= within_s * 1000 else (low, rate)
    return low


def _throughput(costs: Costs, tier: Tier) -> float:
    """Queries a second in full batches of a moderate size, beyond which little is gained."""
    batch = 64
    lengths = [costs.lengths[place % len(costs.lengths)] for place in range(batch)]
    thinking, _ = costs.batch(lengths)
    fast = 0.0 if tier.share == 1 else costs.fast_batch(batch)
    return batch / (fast + tier.share * thinking)


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexNeeds:
    """What an index takes beside the texts: bytes, and seconds on the machine that was measured."""

    memory: float
    disk: float
    add_s: float
    open_s: float


def index_needs(documents: int, dimension: int) -> IndexNeeds:
    """By the slopes between 100,000 and 1,000,000 documents, continued."""
    numbers = 4 * dimension
    return IndexNeeds(
        memory=documents * (numbers + _GRAPH_BYTES),
        disk=documents * (_COPIES_ON_DISK * numbers + _FILE_BYTES),
        add_s=_ADD_S * documents**_ADD_EXPONENT,
        open_s=0.1 + _OPEN_S * documents,
    )


def machines(rate: float, one: float) -> int:
    """How many machines a rate needs, each at six tenths of what it can do."""
    return max(1, int(np.ceil(rate / (_BUSY * one))))


def cost_of_a_million(one: float, price: float) -> float:
    """What a million queries cost where a machine does `one` a second and costs `price` an hour."""
    return 1e6 / (_BUSY * one) / 3600 * price
