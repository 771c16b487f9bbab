"""Runs on a real cluster of two raylets, in a process of their own: `python -m tests.support.ray_runs
FOLDER`.

A worker is killed in the middle of the work, and then a node; what came out is printed as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.cluster_utils import Cluster as Raylets

from o1_retriever.index.shards import ShardOptions, check_shards, embed_shards
from ray_o1_retriever import Cluster
from tests.support.adapters import QUERY, TEXTS, of_two_minds
from tests.support.index_worker import TinyEmbedder
from tests.support.vector_stores import free_port

OPTIONS = ShardOptions(rows=8, batch_size=2)
CASES = 160  # queries that a server is asked
DELAY = 0.4  # seconds that a shard takes


class Placed(TinyEmbedder):
    """Says in a folder which process on which node embeds; slow enough to be killed at work."""

    def __init__(self, folder: str) -> None:
        super().__init__(delay=DELAY)
        self.folder = folder

    def encode_documents(self, documents, **options):
        node = ray.get_runtime_context().get_node_id()
        (Path(self.folder) / f"{os.getpid()}-{node}").touch()
        return super().encode_documents(documents, **options)


def embed(folder: Path) -> dict[str, Any]:
    """Embed on two nodes, kill a worker on the first and then the second node, and embed undisturbed."""
    places = folder / "places"
    places.mkdir()
    raylets = Raylets(initialize_head=True, head_node_args=_node(2))
    second = raylets.add_node(**_node(2))
    ray.init(raylets.address, log_to_driver=False)
    source = str(folder / "rows.jsonl")
    maker = Cluster(raylets.address, actors=3).shard_maker(Placed(str(places)))
    done: dict[str, Any] = {}

    def work() -> None:
        done["manifest"] = embed_shards(
            source, folder / "killed", TinyEmbedder(), options=OPTIONS, maker=maker
        )

    thread = threading.Thread(target=work)
    thread.start()
    made = folder / "killed"
    until(lambda: len(list(made.glob("*.parquet"))) >= 3 and len(_nodes(places)) == 2, thread)
    first = [int(name.partition("-")[0]) for name in _names(places) if not name.endswith(second.node_id)]
    os.kill(first[0], signal.SIGKILL)
    at_worker = len(list(made.glob("*.parquet")))
    until(lambda: len(list(made.glob("*.parquet"))) >= at_worker + 4, thread)
    at_node = len(list(made.glob("*.parquet")))
    raylets.remove_node(second, allow_graceful=False)
    alive = thread.is_alive()
    thread.join(120)
    plain = of_two_minds()
    spread = Cluster(actors=2).embedder(of_two_minds())
    alike = all(
        np.allclose(ours, theirs)
        for ours, theirs in (
            (plain.encode_documents(list(TEXTS.values())), spread.encode_documents(list(TEXTS.values()))),
            (plain.encode_queries([QUERY]), spread.encode_queries([QUERY])),
        )
    )
    whole = embed_shards(source, folder / "whole", TinyEmbedder(), options=OPTIONS)
    ray.shutdown()
    return {
        "alike": alike,
        "content": done["manifest"].content,
        "undisturbed": whole.content,
        "documents": done["manifest"].documents,
        "repeated": done["manifest"].repeated_ids,
        "problems": list(check_shards(made).problems),
        "shards": [at_worker, at_node, len(whole.shards)],
        "working_when_the_node_died": alive,
        "same_bytes": all(
            (made / shard.name).read_bytes() == (folder / "whole" / shard.name).read_bytes()
            for shard in whole.shards
        ),
        "left": [file.name for file in made.glob("*.new")],
    }


def _node(processors: int) -> dict[str, Any]:
    return {
        "num_cpus": processors,
        "object_store_memory": 100_000_000,
        "node_ip_address": "127.0.0.1",
        "include_dashboard": False,
    }


def _names(places: Path) -> list[str]:
    return sorted(path.name for path in places.iterdir())


def _nodes(places: Path) -> set[str]:
    return {name.partition("-")[2] for name in _names(places)}


def until(holds: Callable[[], bool], thread: threading.Thread) -> None:
    """Wait until something holds, which it must before the work ends."""
    ends = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < ends
        assert thread.is_alive()
        time.sleep(0.01)


def served(folder: Path) -> dict[str, Any]:
    """Two replicas of the server, one of which is killed while clients ask; they ask again after an error."""
    import urllib.error
    import urllib.request
    from concurrent.futures import ThreadPoolExecutor

    import psutil
    from ray import serve

    from o1_retriever import ThinkingEmbedder
    from o1_retriever_server.scaled import application

    model = str(Path("models/o1-embedder-22m").absolute())
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(application({"model": model, "least": "2", "most": "2"}), logging_config={"log_level": "ERROR"})
    queries = [f"Why does it matter, case {number}?" for number in range(CASES)]
    again: list[int] = []
    answered: list[float] = []

    def ask(query: str) -> list[float]:
        body = json.dumps({"input": query, "model": "o1-retriever"}).encode()
        for _ in range(200):
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/v1/embeddings", body, {"Content-Type": "application/json"}
            )
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    answered.append(time.monotonic())
                    found: list[float] = json.load(answer)["data"][0]["embedding"]
                    return found
            except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
                again.append(getattr(error, "code", 0))
                time.sleep(0.2)
        raise AssertionError(f"{query!r} was never answered")

    with ThreadPoolExecutor(8) as clients:
        answers = [clients.submit(ask, query) for query in queries]
        while len(answered) < CASES // 4:
            time.sleep(0.01)
        replicas = [
            each.pid
            for each in psutil.process_iter(["name", "cmdline"])
            if "ServeReplica" in " ".join(each.info["cmdline"] or [])
        ]
        os.kill(replicas[0], signal.SIGKILL)
        killed_at = len(answered)
        vectors = [each.result() for each in answers]
    serve.shutdown()
    ray.shutdown()
    expected = ThinkingEmbedder.from_pretrained(model, cache=False).encode_queries(queries)
    return {
        "replicas": len(replicas),
        "killed_at": killed_at,
        "answers": len(vectors),
        "wrong": int((abs(np.array(vectors, np.float32) - expected).max(axis=1) > 1e-3).sum()),
        "asked_again": len(again),
        "errors": sorted(set(again)),
    }


if __name__ == "__main__":
    runs = {"embed": embed, "serve": served}
    sys.stdout.write(json.dumps(runs[sys.argv[1]](Path(sys.argv[2]))) + "\n")
