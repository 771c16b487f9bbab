"""Work of many machines: a cluster of Ray makes the shards of `o1-retriever embed`, or maps any function of
ours.

```python
from o1_retriever import ThinkingEmbedder
from o1_retriever.index.shards import embed_shards
from ray_o1_retriever import Cluster

embedder = ThinkingEmbedder.from_pretrained("models/o1-embedder-22m")
maker = Cluster("auto", actors=8, gpus=1).shard_maker(embedder)
embed_shards("rows.jsonl", "shards", embedder, maker=maker)
```

`models/o1-embedder-22m` is a folder of the repository; any other `ThinkingEmbedder` does as well.

All machines must see source and destination under the same paths, and have this library with the extras of
the work. What a worker or a machine had begun when it died is done again by another; a shard is written once.
"""

from __future__ import annotations

import os
import pickle
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from o1_retriever.errors import SettingsError, require

require("ray", extra="ray", purpose="Work on a cluster")

import ray
from ray.data import ActorPoolStrategy, DataContext

from o1_retriever.embedder import ThinkingEmbedder
from o1_retriever.index.index import DocumentEmbedder
from o1_retriever.index.shards import Maker, Plan, Shard, make_shard
from o1_retriever.query import Query
from o1_retriever.thinking import NewThoughts
from o1_retriever.thought import Thought, ThoughtSettings, Vector

__all__ = ["Cluster"]

_AT_ONCE, _PARTS = 64, 4  # queries or documents of one call at most, and calls for each actor at least
_REACHED_S = 10.0
_MOST_FAILURES = 10  # actors that die over one call before the work ends with an error


@dataclass(frozen=True, kw_only=True)
class Pool:
    """So many `actors`, each of which has so many processors and GPUs to itself."""

    actors: int = 1
    cpus: float = 1
    gpus: float = 0


class Cluster:
    """A cluster of Ray at an address ("auto": the one of this machine; None: one that is begun here).

    `actors` load the model once each, on so many `cpus` and `gpus` (shares are allowed). Raises
    `SettingsError` where there is no cluster at the address.
    """

    def __init__(
        self, address: str | None = None, *, actors: int = 1, cpus: float = 1, gpus: float = 0
    ) -> None:
        self.pool = Pool(actors=actors, cpus=cpus, gpus=gpus)
        if ray.is_initialized():
            return
        try:
            if address:
                _reach(address)
                ray.init(address, log_to_driver=False)
            else:
                # One processor more, in name, for Ray's own tasks.
                own = max(os.cpu_count() or 1, round(actors * cpus + 1))
                ray.init("local", num_cpus=own, include_dashboard=False, log_to_driver=False)
        except (OSError, ValueError, RuntimeError) as error:
            raise SettingsError(
                f"There is no cluster of Ray at {address!r} ({error!s:.120}).",
                hint="Type: ray start --head, and on every other machine: ray start --address=HEAD:6379",
            ) from error

    def shard_maker(self, embedder: DocumentEmbedder) -> Maker:
        """Who makes the shards of a plan on the cluster, for `embed_shards`."""

        def make(plan: Plan, folder: Path, numbers: Sequence[int]) -> Iterator[Shard]:
            absolute = Path(folder).absolute()
            made = self.map(_ShardMaker, numbers, embedder=embedder, plan=plan, folder=absolute)
            return iter(made)

        return make

    def embedder(self, embedder: ThinkingEmbedder) -> ThinkingEmbedder:
        """The same embedder, whose thoughts and vectors the actors make."""
        backend: Any = ClusterBackend(embedder, self.pool)
        cache = embedder.cache if embedder.cache is not None else False
        return ThinkingEmbedder(backend, settings=embedder.settings, cache=cache)

    def map(
        self, worker: Callable[..., Callable[[Any], Any]], items: Iterable[Any], **arguments: Any
    ) -> Iterator[Any]:
        """What `worker(**arguments)(item)` gives for each item, in the order in which they are done.

        Each actor makes one worker. An item that was begun where a worker or a machine died is begun again.
        """
        given = [{"item": pickle.dumps(item)} for item in items]
        context = DataContext.get_current()
        context.enable_progress_bars = False
        dataset = ray.data.from_items(given, override_num_blocks=max(1, len(given))).map_batches(
            _Worker,
            batch_size=1,
            fn_constructor_args=(worker, arguments),
            compute=ActorPoolStrategy(min_size=1, max_size=self.pool.actors, initial_size=self.pool.actors),
            num_cpus=self.pool.cpus,
            num_gpus=self.pool.gpus,
        )
        return (pickle.loads(row["done"]) for row in dataset.iter_rows())  # ours  # nosec B301


class ClusterBackend:
    """The backend of an embedder, whose work is done by actors of a pool, some queries or documents at a
    time.

    What needs no model, such as its names, is that of the embedder here. An actor that dies is begun again,
    and what it had to do with it.
    """

    def __init__(self, embedder: ThinkingEmbedder, pool: Pool) -> None:
        self._own = embedder.backend
        kind: Any = ray.remote(_BackendActor).options(
            num_cpus=pool.cpus, num_gpus=pool.gpus, max_restarts=-1, max_task_retries=_MOST_FAILURES
        )
        self._actors: list[Any] = [kind.remote(embedder) for _ in range(pool.actors)]

    def __getattr__(self, name: str) -> Any:
        """Names and settings of the backend; it is awaited through a thread, as any that computes."""
        if name.startswith("__") or name in ("_own", "awaits"):
            raise AttributeError(name)
        return getattr(self._own, name)

    def think(
        self, queries: Sequence[Query], *, settings: ThoughtSettings, start: int, batch_size: int | None
    ) -> Iterator[NewThoughts]:
        """Thoughts of the actors."""
        for first, found in self._parts(
            "think", queries, settings=settings, start=start, batch_size=batch_size
        ):
            yield from (replace(each, place=first + each.place) for each in found)

    def embed_queries(
        self, pairs: Sequence[tuple[str, Thought | None]], *, batch_size: int | None
    ) -> Iterator[tuple[int, Vector]]:
        """Vectors of the actors."""
        return self._rows("embed_queries", pairs, batch_size)

    def embed_documents(
        self, texts: Sequence[str], *, batch_size: int | None
    ) -> Iterator[tuple[int, Vector]]:
        """Vectors of the actors."""
        return self._rows("embed_documents", texts, batch_size)

    def _rows(self, what: str, items: Sequence[Any], batch_size: int | None) -> Iterator[tuple[int, Vector]]:
        for first, found in self._parts(what, items, batch_size=batch_size):
            yield from ((first + place, row) for place, row in found)

    def _parts(self, what: str, items: Sequence[Any], **options: Any) -> Iterator[tuple[int, list[Any]]]:
        """Where each part begins, and what an actor made of it, as they are done."""
        size = max(1, min(_AT_ONCE, -(-len(items) // (_PARTS * len(self._actors)))))
        waiting = deque(range(0, len(items), size))
        busy: dict[Any, tuple[int, Any]] = {}
        free = list(self._actors)
        while waiting or busy:
            while waiting and free:
                first, actor = waiting.popleft(), free.pop()
                busy[actor.call.remote(what, list(items[first : first + size]), options)] = first, actor
            (done, *_), _ = ray.wait(list(busy))
            first, actor = busy.pop(done)
            free.append(actor)
            yield first, ray.get(done)


class _BackendActor:
    """The backend of an embedder in a process of the cluster."""

    def __init__(self, embedder: ThinkingEmbedder) -> None:
        _one_thread_a_processor()
        self._backend = embedder.backend

    def call(self, what: str, items: list[Any], options: dict[str, Any]) -> list[Any]:
        """All that a method yields."""
        return list(getattr(self._backend, what)(items, **options))


def _reach(address: str) -> None:
    """Raise OSError where nobody listens at `[ray://]HOST:PORT`; Ray itself would ask for many minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACHED_S).close()


def _one_thread_a_processor() -> None:
    """Several actors on one machine would take its processors from each other."""
    import torch

    if not torch.cuda.is_available():
        given: dict[str, float] = ray.get_runtime_context().get_assigned_resources()  # type: ignore[no-untyped-call]
        torch.set_num_threads(max(1, int(given.get("CPU", 1))))


class _Worker:
    """An actor's own: it is made once, and called with one item at a time.

    Items and results are pickled: a table has columns of one type, and values of numpy.
    """

    def __init__(self, worker: Callable[..., Callable[[Any], Any]], arguments: dict[str, Any]) -> None:
        _one_thread_a_processor()
        self._work = worker(**arguments)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        items = [pickle.loads(item) for item in batch["item"]]  # of our own job  # nosec B301
        return {"done": [pickle.dumps(self._work(item)) for item in items]}


class _ShardMaker:
    """Makes one shard after another of a plan."""

    def __init__(self, embedder: DocumentEmbedder, plan: Plan, folder: Path) -> None:
        self._embedder, self._plan, self._folder = embedder, plan, folder

    def __call__(self, number: int) -> Shard:
        return make_shard(self._plan, self._folder, number, self._embedder)
