"""Work on a real cluster of Ray, of two nodes on this machine, a worker and a node of which are killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray")

# All of it stays on the loopback interface, workers are no less urgent than others, and nobody is told.
CLUSTER = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


def run(root: Path, *arguments: object) -> str:
    """What a program says that uses a cluster: in a process of its own, whose sockets nobody watches."""
    paths = os.pathsep.join(str(root / part) for part in ("", "integrations", "training"))
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": paths, **CLUSTER},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3000:]}"
    return done.stdout


def test_a_worker_and_a_node_may_die_and_every_document_is_there_once(root, tmp_path):
    rows = [json.dumps({"id": str(number), "text": f"text {number}"}) for number in range(400)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    found = json.loads(run(root, "-m", "tests.support.ray_runs", "embed", tmp_path).splitlines()[-1])
    assert found["working_when_the_node_died"]
    assert found["shards"][1] < found["shards"][2] == 50
    assert (found["documents"], found["repeated"]) == (400, 0)
    assert found["content"] == found["undisturbed"]
    assert found["same_bytes"]
    assert found["alike"]  # an embedder whose work the actors do
    assert found["problems"] == found["left"] == []


def test_a_replica_may_die_under_load_and_every_request_is_answered(root, tmp_path):
    found = json.loads(run(root, "-m", "tests.support.ray_runs", "serve", tmp_path).splitlines()[-1])
    assert found["replicas"] == 2
    assert found["killed_at"] < found["answers"] == 160
    assert found["wrong"] == 0
    assert (
        found["asked_again"] <= 160
    )  # those that the dead replica had, and those that came before it was missed


def test_the_arguments_of_replicas_are_checked():
    from o1_retriever.errors import SettingsError
    from o1_retriever_server.scaled import Replicas

    found = Replicas.of({"model": "m", "least": "2", "most": "3", "gpus": "0.5"})
    assert (found.least, found.most, found.gpus, found.queue) == (2, 3, 0.5, 128)
    for wrong, words in (
        ({"modell": "m"}, "Unknown arguments"),
        ({"model": "m", "least": "many"}, "expected a number"),
        ({"thinker": "t"}, "Expected a model, or a thinker and an encoder"),
        ({"model": "m", "least": "5"}, "least is 5, most 4"),
    ):
        with pytest.raises(SettingsError, match=words):
            Replicas.of(wrong)


def test_an_address_without_a_cluster_is_said(root):
    code = (
        "from ray_o1_retriever import Cluster\n"
        "from o1_retriever.errors import SettingsError\n"
        "try: Cluster('127.0.0.1:9')\n"
        "except SettingsError as error: print(error.message)"
    )
    assert "There is no cluster of Ray at '127.0.0.1:9'" in run(root, "-c", code)
