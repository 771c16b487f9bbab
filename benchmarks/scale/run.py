"""What many documents and many queries cost: embedding, one actor against two, loading, all of it, the queue.

Run from the repository's root, on a machine that does nothing else:

    python -m benchmarks.scale.run [embed] [ray] [load] [road] [queue]

The queue of a server is predicted from the times of a few batches and then measured with requests that come
by chance (`o1_retriever.evaluation.sizing`).
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import RESULTS, ROOT, Figure, record
from benchmarks.speed.child import in_child, resident
from benchmarks.speed.data import documents
from benchmarks.speed.serve import Connection, server
from benchmarks.speed.synthetic import SyntheticEmbedder, mixtures, numbered, random_base
from o1_retriever import Index, ThinkingEmbedder
from o1_retriever.evaluation.sizing import Costs, capacity, measure_costs, simulate, tiers
from o1_retriever.index.foreign import load_shards, opened_for
from o1_retriever.index.shards import Manifest, ShardOptions, embed_shards

MODEL = ROOT / "models" / "o1-embedder-22m"
_HERE = "benchmarks.scale.run"  # `__name__` is another where it is run
_SHARES = (0.3, 0.6, 0.8)  # of what one machine can do
_SECONDS = 60.0  # at each of them
_ROADS = (10_000, 100_000)  # documents that go the whole way


def written(path: Path, count: int) -> str:
    """A file of so many real documents, each with another number before it: equal ones are embedded once."""
    _, texts = documents(1000)
    with path.open("w", encoding="utf-8") as file:
        for number, text in zip(range(count), itertools.cycle(texts)):
            file.write(json.dumps({"id": str(number), "text": f"{number}. {text}"}) + "\n")
    return str(path)


def embed() -> Iterator[Figure]:
    """`scale/embed/...`: documents a second of one process, and its memory as the source grows."""
    found = {count: in_child(_HERE, "--embed", count) for count in (500, 2000)}
    for count, each in found.items():
        yield Figure(
            name=f"scale/embed/{count}_documents_per_s",
            value=round(count / each["seconds"], 1),
            unit="documents/s, o1-embedder-22m",
        )
    growth = found[2000]["peak_mb"] / found[500]["peak_mb"]
    yield Figure(
        name="scale/embed/memory_growth_500_to_2000",
        value=round(growth, 3),
        unit="ratio of the peaks of whole processes",
        better="lower",
    )


def _embed(count: int) -> dict[str, float]:
    import resource

    import torch

    torch.set_num_threads(1)
    embedder = ThinkingEmbedder.from_pretrained(MODEL, cache=False)
    with tempfile.TemporaryDirectory() as name:
        source = written(Path(name) / "rows.jsonl", count)
        started = time.perf_counter()
        embed_shards(source, Path(name) / "out", embedder, options=ShardOptions(rows=500))
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000}


def with_ray() -> Iterator[Figure]:
    """`scale/ray/...`: one actor against two, each with a processor, after the cluster has begun.

    Shards of documents as `embed --ray` makes them, and thoughts and vectors of queries as `eval --ray` does.
    """
    import ray

    from ray_o1_retriever import Cluster

    count, asked = 1200, 128
    embedder = ThinkingEmbedder.from_pretrained(MODEL, cache=False)
    started = time.perf_counter()
    Cluster(actors=2)
    begun = time.perf_counter() - started
    spent: dict[str, dict[int, float]] = {"documents": {}, "queries": {}}
    contents, vectors = set(), []
    with tempfile.TemporaryDirectory() as name:
        source = written(Path(name) / "rows.jsonl", count)
        for actors in (1, 2):
            cluster = Cluster(actors=actors)
            started = time.perf_counter()
            manifest = embed_shards(
                source,
                Path(name) / f"out-{actors}",
                embedder,
                options=ShardOptions(rows=100),
                maker=cluster.shard_maker(embedder),
            )
            spent["documents"][actors] = time.perf_counter() - started
            contents.add(manifest.content)
            started = time.perf_counter()
            found = cluster.embedder(embedder).embed_queries([_query(number) for number in range(asked)])
            spent["queries"][actors] = time.perf_counter() - started
            vectors.append(np.stack([each.vector for each in found]))
            print(f"   {actors} actors: { {what: each[actors] for what, each in spent.items()} }", flush=True)
    ray.shutdown()
    assert len(contents) == 1, "one actor and two gave different shards"
    assert np.abs(vectors[0] - vectors[1]).max() < 1e-4, "one actor and two gave different vectors"
    yield Figure(
        name="scale/ray/begin_s", value=round(begun, 1), unit="s, a cluster of this machine", better="lower"
    )
    for what, number in (("documents", count), ("queries", asked)):
        yield from _of_actors(what, number, spent[what])


def _of_actors(what: str, count: int, spent: dict[int, float]) -> Iterator[Figure]:
    """The speed of each number of actors, what a thousand cost, and how much more two do than one."""
    kind = f"{count} {what}, loading the model included"
    for actors, seconds in spent.items():
        name = f"scale/ray/{actors}_actors_{what}"
        yield Figure(name=f"{name}_per_s", value=round(count / seconds, 2), unit=f"{what}/s, {kind}")
        cost = round(1000 * actors * seconds / count, 1)
        yield Figure(
            name=f"{name}_cost", value=cost, unit=f"core seconds for 1,000 {what}, {kind}", better="lower"
        )
    ratio = round(spent[1] / spent[2], 2)
    yield Figure(name=f"scale/ray/two_over_one_{what}", value=ratio, unit="ratio, 2 cores, a thread each")


def road(counts: Sequence[int] = _ROADS) -> Iterator[Figure]:
    """`scale/road/<n>/...`: rows become shards, shards an index of ours, which is opened anew and searched.

    The vectors, of 384 numbers, are given: what a model takes is in `scale/embed/...`.
    """
    for count in counts:
        with tempfile.TemporaryDirectory() as name:
            found = in_child(_HERE, "--road", count, "--folder", name)
            found |= in_child(_HERE, "--folder", name)
        for what, value in found.items():
            more = what.endswith("per_s")
            yield Figure(
                name=f"scale/road/{count}/{what}",
                value=round(value, 2),
                unit=f"{_ROAD_UNITS[what]}, {count} of 384 numbers",
                better="higher" if more else "lower",
            )


_ROAD_UNITS = {
    "embed_documents_per_s": "documents/s to shards",
    "embed_peak_mb": "MB at the most, while shards are made",
    "shards_mb": "MB of shards",
    "load_documents_per_s": "documents/s into an index",
    "load_peak_mb": "MB at the most, while shards are loaded",
    "index_mb": "MB of an index, texts included",
    "open_s": "s, from the files to the first answer",
    "search_p50_ms": "ms, p50",
    "search_p95_ms": "ms, p95",
    "memory_mb": "MB resident after the searches",
}


def _road(count: int, folder: Path) -> dict[str, float]:
    import resource

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000

    rows, shards = folder / "rows.jsonl", folder / "shards"
    with rows.open("w", encoding="utf-8") as file:
        for each in numbered(0, count):
            file.write(json.dumps({"id": each.id, "text": each.text}) + "\n")
    embedder = SyntheticEmbedder(random_base())
    began = time.perf_counter()
    embed_shards(str(rows), shards, embedder)
    embedded, most = time.perf_counter() - began, peak()
    began = time.perf_counter()
    with opened_for(str(folder / "index"), "documents", shards) as target:
        load_shards(shards, target, show_progress_bar=False)
    loaded = time.perf_counter() - began
    return {
        "embed_documents_per_s": count / embedded,
        "embed_peak_mb": most,
        "shards_mb": sum(path.stat().st_size for path in shards.iterdir()) / 1e6,
        "load_documents_per_s": count / loaded,
        "load_peak_mb": peak(),
    }


def _opened(folder: Path) -> dict[str, float]:
    """Open the index and search it, in a process that has done nothing before."""
    import chromadb  # noqa: F401 - to load the library is not to open an index

    asked = mixtures(random_base(), 210, seed=0)[:, None]
    began = time.perf_counter()
    with Index(folder / "index") as index:
        index.search(asked[0], k=10)
        opened = time.perf_counter() - began
        spent = [_milliseconds(lambda row=row: index.search(row, k=10)) for row in asked][10:]  # type: ignore[misc]
        return {
            "open_s": opened,
            "search_p50_ms": float(np.percentile(spent, 50)),
            "search_p95_ms": float(np.percentile(spent, 95)),
            "memory_mb": resident(),
            "index_mb": index.info().bytes / 1e6,
        }


def load() -> Iterator[Figure]:
    """`scale/load/...`: given vectors of 384 numbers a second, into each store, and one search of it."""
    from tests.support.vector_stores import served

    count = 10_000
    embedder = SyntheticEmbedder(random_base())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "rows.jsonl"
        rows = ({"id": str(n), "text": f"Passage number {n}.", "tenth": n % 10} for n in range(count))
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        embed_shards(str(source), folder / "shards", embedder)
        yield from _loaded("ours", str(folder / "ours"), folder / "shards", count)
        for kind in ("chroma", "lancedb", "postgresql"):  # the local mode of Qdrant is for trials
            with served(kind, folder / kind) as address:
                yield from _loaded(kind, address, folder / "shards", count)


def _loaded(kind: str, address: str, shards: Path, count: int) -> Iterator[Figure]:
    assert Manifest.read(shards).documents == count
    with opened_for(address, "documents", shards) as target:
        started = time.perf_counter()
        load_shards(shards, target, show_progress_bar=False)
        seconds = time.perf_counter() - started
        vectors = SyntheticEmbedder(random_base()).encode_documents(["?"] * 100)
        index: Any = target
        spent = [_milliseconds(lambda row=row: index.search(row[None], k=10)) for row in vectors]  # type: ignore[misc]
        chosen = [
            _milliseconds(lambda row=row: index.search(row[None], k=10, where={"tenth": 3}))  # type: ignore[misc]
            for row in vectors
        ]
    unit = f"documents/s, {count} of 384 numbers"
    yield Figure(name=f"scale/load/{kind}/documents_per_s", value=round(count / seconds, 1), unit=unit)
    for what, times in (("search", spent), ("filtered", chosen)):
        for part in (50, 95):
            yield Figure(
                name=f"scale/load/{kind}/{what}_p{part}_ms",
                value=round(float(np.percentile(times[10:], part)), 2),
                unit=f"ms, p{part}, {count} documents",
                better="lower",
            )


def _milliseconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1000


def queue() -> Iterator[Figure]:
    """`scale/queue/...`: what the simulation says over what the server does, with thoughts.

    The costs are those measured right before and right after, as the speed of a machine that is shared with
    others drifts; of queries that are like those of the load, as half of what a query costs is how long its
    thoughts are.
    """
    embedder = ThinkingEmbedder.from_pretrained(MODEL, cache=False)
    numbers = itertools.count(10**7)
    *_, always = tiers(0)
    with server("--model", str(MODEL)) as (port, _):
        before = _costs(embedder, numbers)
        overhead = asyncio.run(_overhead(port, before, numbers))
        print(f"   {overhead * 1000:.1f} ms for a request", flush=True)
        for share in _SHARES:
            rate = share * capacity(before, always)
            waits = np.array(asyncio.run(_poisson(port, rate, numbers))) * 1000
            after = _costs(embedder, numbers)
            found = [
                simulate(costs, rate, always, overhead_s=overhead, queries=6000) for costs in (before, after)
            ]
            before = after
            for what, said, seen in (
                ("mean", [each.mean_ms for each in found], waits.mean()),
                ("p50", [each.p50_ms for each in found], np.percentile(waits, 50)),
                ("p95", [each.p95_ms for each in found], np.percentile(waits, 95)),
            ):
                print(f"   {share} of capacity, {what}: {said} ms predicted, {seen:.0f} measured", flush=True)
                yield Figure(
                    name=f"scale/queue/{share}/{what}_predicted_over_measured",
                    value=round(float(np.mean(said) / seen), 3),
                    unit=f"ratio, {rate:.1f} queries/s, {_SECONDS:.0f} s",
                )


def _costs(embedder: ThinkingEmbedder, numbers: Iterator[int]) -> Costs:
    costs = measure_costs(embedder, [_query(next(numbers)) for _ in range(200)])
    print(
        f"   step {costs.step * 1e3:.2f} ms, row {costs.row * 1e6:.0f} us, query {costs.query * 1e3:.2f} ms",
        flush=True,
    )
    return costs


def _query(number: int) -> str:
    return f"Why does it matter, case {number}?"


async def _overhead(port: int, costs: Costs, numbers: Iterator[int]) -> float:
    """Seconds that a lone request takes beside the model, on average."""
    spent = []
    async with Connection(port) as connection:
        for _ in range(40):
            started = time.perf_counter()
            status, _ = await connection.post("/v1/embeddings", {"input": _query(next(numbers))})
            assert status == 200
            spent.append(time.perf_counter() - started)
    model = float(np.mean([costs.batch([each])[0] for each in costs.lengths]))
    return max(0.0, float(np.mean(spent[10:])) - model)


async def _poisson(port: int, rate: float, numbers: Iterator[int]) -> list[float]:
    """Seconds that each request takes; they come by chance. The first tenth meets an empty server."""
    chance = random.Random(1)
    waits: list[float] = []

    async def ask(number: int, due: float) -> None:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        async with Connection(port) as connection:
            status, _ = await connection.post("/v1/embeddings", {"input": _query(number)})
            assert status == 200
        waits.append(time.perf_counter() - due)

    began = due = time.perf_counter() + 0.5
    tasks = []
    while due < began + _SECONDS:
        tasks.append(asyncio.create_task(ask(next(numbers), due)))
        due += chance.expovariate(rate)
    await asyncio.gather(*tasks)
    return waits[len(waits) // 10 :]


def _in_this_process(options: argparse.Namespace) -> dict[str, float]:
    """What one process has to do that is asked for some part of a measurement."""
    if options.embed:
        return _embed(options.embed)
    return _road(options.road, options.folder) if options.road else _opened(options.folder)


NAMES: dict[str, Callable[[], Iterator[Figure]]] = {
    "embed": embed,
    "ray": with_ray,
    "load": load,
    "road": road,
    "queue": queue,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--results", type=Path, default=RESULTS / "scale.jsonl")
    parser.add_argument("--counts", type=int, nargs="+", default=_ROADS, help="documents, for road")
    parser.add_argument("--embed", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--road", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.embed or options.folder:
        print(json.dumps(_in_this_process(options)))
        return
    for name in options.names or NAMES:
        print(f"== {name}", flush=True)
        for figure in road(options.counts) if name == "road" else NAMES[name]():
            record(options.results, [figure])
            print(f"{figure.name}: {figure.value} {figure.unit}", flush=True)


if __name__ == "__main__":
    main()
