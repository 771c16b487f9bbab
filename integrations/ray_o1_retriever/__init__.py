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

All machines must see source and destination under the same paths, and have this library with the extras of
the work. What a worker or a machine had begun when it died is done again by another; a shard is written once.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from o1_retriever.errors import SettingsError
from o1_retriever.extras import require

require("ray", extra="ray", purpose="Work on a cluster")

import ray
from ray.data import ActorPoolStrategy, DataContext

from o1_retriever.index.index import DocumentEmbedder
from o1_retriever.index.shards import Maker, Plan, Shard, make_shard

__all__ = ["Cluster"]

_MOST_FAILURES = 10  # of one shard or row before the whole work ends with its error


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
                ray.init(address, log_to_driver=False)
            else:
                # One processor more, in name, for Ray's own tasks.
                own = max(os.cpu_count() or 1, round(actors * cpus + 1))
                ray.init(num_cpus=own, include_dashboard=False, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
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
            compute=ActorPoolStrategy(min_size=1, max_size=self.pool.actors, max_tasks_in_flight_per_actor=1),
            num_cpus=self.pool.cpus,
            num_gpus=self.pool.gpus,
            max_restarts=-1,
            max_task_retries=_MOST_FAILURES,
        )
        return (pickle.loads(row["done"]) for row in dataset.iter_rows())


class _Worker:
    """An actor's own: it is made once, and called with one item at a time.

    Items and results are pickled: a table has columns of one type, and values of numpy.
    """

    def __init__(self, worker: Callable[..., Callable[[Any], Any]], arguments: dict[str, Any]) -> None:
        import torch

        if not torch.cuda.is_available():
            # Several actors on one machine would take its processors from each other.
            given: dict[str, float] = ray.get_runtime_context().get_assigned_resources()  # type: ignore[no-untyped-call]
            torch.set_num_threads(max(1, int(given.get("CPU", 1))))
        self._work = worker(**arguments)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"done": [pickle.dumps(self._work(pickle.loads(item))) for item in batch["item"]]}


class _ShardMaker:
    """Makes one shard after another of a plan."""

    def __init__(self, embedder: DocumentEmbedder, plan: Plan, folder: Path) -> None:
        self._embedder, self._plan, self._folder = embedder, plan, folder

    def __call__(self, number: int) -> Shard:
        return make_shard(self._plan, self._folder, number, self._embedder)
