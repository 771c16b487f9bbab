"""kill -9 wherever it strikes, a server that misbehaves, a full disk: what comes out is what would have."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.chat_server import Answer, chat_server
from tests.support.faults import answers_with_faults, honest
from tests.support.synthesis_worker import Nursery

pytestmark = pytest.mark.long

KILLS = 20


@pytest.fixture(scope="module")
def nursery(root: Path) -> Iterator[Nursery]:
    with Nursery(root) as running:
        yield running


def pairs_file(folder: Path, count: int) -> Path:
    path = folder / "pairs.jsonl"
    rows = [{"query": f"question {number}", "pos": [f"answer {number}"]} for number in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_twenty_kills_from_outside_change_nothing(tmp_path: Path, nursery: Nursery) -> None:
    pairs, generator = pairs_file(tmp_path, 600), random.Random(0)
    plain, killed = tmp_path / "plain.jsonl", tmp_path / "killed.jsonl"
    assert nursery.run(stage="synthesize", source=pairs, out=plain) == 0
    sizes = []
    for _ in range(KILLS):
        after = generator.uniform(0, 0.12)
        job = {"stage": "synthesize", "source": pairs, "out": killed, "pause": 0.02, "outside": True}
        assert nursery.run(kill_after=after, **job) == -9
        sizes.append(killed.stat().st_size if killed.exists() else 0)
    assert sizes == sorted(sizes), "what was written has been lost"
    assert len(set(sizes)) == KILLS
    assert sizes[-1] < plain.stat().st_size, "the last kill came after the end"
    assert nursery.run(stage="synthesize", source=pairs, out=killed) == 0
    assert killed.read_bytes() == plain.read_bytes()
    assert plain.read_text().count("\n") == 600


def test_kills_and_a_faulty_server_together_change_nothing(tmp_path: Path, nursery: Nursery) -> None:
    pairs, generator = pairs_file(tmp_path, 80), random.Random(1)
    plain, killed = tmp_path / "plain.jsonl", tmp_path / "killed.jsonl"
    with chat_server() as server:
        server.answer, began = honest, time.monotonic()
        assert nursery.run(stage="synthesize", source=pairs, out=plain, url=server.url) == 0
        # 30 answers come one after the other: none takes a third of the time, but those that are to be slow.
        timeout = max(0.2, (time.monotonic() - began) / 3)
        server.answer = answers_with_faults(seed=2, share=0.3)
        for _ in range(KILLS):
            job = {"stage": "synthesize", "source": pairs, "out": killed, "url": server.url}
            job["timeout"] = timeout
            assert nursery.run(**job, rows=True, kill_at=generator.randint(1, 7)) == -9
        assert 0 < killed.stat().st_size < plain.stat().st_size
        assert nursery.run(**job) == 0
    assert killed.read_bytes() == plain.read_bytes()


def points(nursery: Nursery, folder: Path, count: int, **job: object) -> list[int]:
    """Calls of a run that change something on disk, to be killed at: first, last and random ones."""
    noted = folder / "calls"
    assert nursery.run(calls=noted, out=folder / "counted.jsonl", **job) == 0
    # Two runs differ by a few calls: what they had to import is not the same.
    total = int(noted.read_text()) - 5
    assert total > count
    return [1, *sorted(random.Random(3).sample(range(2, total), count - 2)), total]


@pytest.mark.parametrize("stage", ["synthesize", "vote", "negatives"])
def test_a_kill_at_any_point_of_any_stage_changes_nothing(
    stage: str, tmp_path: Path, nursery: Nursery
) -> None:
    pairs = pairs_file(tmp_path, 12)
    job: dict[str, object] = {"stage": stage, "source": pairs}
    if stage != "synthesize":
        job["source"] = tmp_path / "thoughts.jsonl"
        assert nursery.run(stage="synthesize", source=pairs, out=job["source"]) == 0
    if stage == "negatives":
        job["corpus"] = tmp_path / "corpus.jsonl"
        texts = [f"question {number} of somebody" for number in range(9)]
        (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    plain = tmp_path / "plain.jsonl"
    assert nursery.run(out=plain, **job) == 0
    for point in points(nursery, tmp_path, KILLS if stage == "synthesize" else KILLS // 2, **job):
        out = tmp_path / f"killed{point}.jsonl"
        assert nursery.run(out=out, kill_at=point, **job) == -9
        assert nursery.run(out=out, **job) == 0
        assert out.read_bytes() == plain.read_bytes(), f"killed at call {point}"
    for write in range(1, 9):
        out = tmp_path / f"written{write}.jsonl"
        assert nursery.run(out=out, rows=True, kill_at=write, **job) == -9
        assert nursery.run(out=out, **job) == 0
        assert out.read_bytes() == plain.read_bytes(), f"killed before write {write}"


def test_a_kill_while_failures_are_retried_loses_no_thought(tmp_path: Path, nursery: Nursery) -> None:
    pairs, plain = pairs_file(tmp_path, 12), tmp_path / "plain.jsonl"
    with chat_server() as server:
        job = {"stage": "synthesize", "source": pairs, "url": server.url}
        server.answer = honest
        assert nursery.run(out=plain, **job) == 0
        refused = Answer(b'{"error": {"message": "no"}}', 400, {"Content-Type": "application/json"})
        seed = server.bodies[0]["seed"]

        def is_refused(body) -> bool:
            return body["seed"] == seed and "question 7" in body["messages"][-1]["content"][-24:]

        def partly(body, number: int) -> Answer:
            return refused if is_refused(body) else honest(body, number)

        server.answer = partly
        broken = tmp_path / "broken.jsonl"
        assert nursery.run(out=broken, **job) == 0
        assert broken.read_bytes() != plain.read_bytes()
        server.answer, before = honest, len(server.bodies)
        copies = [_copy(broken, tmp_path / str(number)) for number in range(KILLS // 2 + 1)]
        noted = tmp_path / "calls"
        assert nursery.run(out=copies[0], calls=noted, retry=True, **job) == 0
        for copy, point in zip(copies[1:], _spread(int(noted.read_text())), strict=True):
            assert nursery.run(out=copy, kill_at=point, retry=True, **job) == -9
            assert nursery.run(out=copy, retry=True, **job) == 0
            assert copy.read_bytes() == plain.read_bytes(), f"killed at call {point}"
        assert all(is_refused(body) for body in server.bodies[before:]), "a thought was paid for twice"


def _copy(out: Path, folder: Path) -> Path:
    folder.mkdir()
    for path in (out, out.with_name(f"{out.name}.manifest.json")):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder / out.name


def _spread(total: int) -> list[int]:
    return [1 + place * (total - 5) // (KILLS // 2 - 1) for place in range(KILLS // 2)]


FULL = """
import resource, sys
sys.path.insert(0, "training")
from typer.main import get_command
import typer
from o1_retriever_training import commands

limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
app = typer.Typer()
app.command("synthesize")(commands.synthesize)
try:
    get_command(app)(sys.argv[2:])
except Exception as error:
    print(type(error).__name__, error)
"""


def test_a_full_disk_stops_a_synthesis_cleanly(tmp_path: Path, root: Path, nursery: Nursery) -> None:
    pairs, plain, out = pairs_file(tmp_path, 60), tmp_path / "plain.jsonl", tmp_path / "out.jsonl"
    recorded = tmp_path / "recorded.jsonl"
    lines = [
        {"query": f"question {n}", "thoughts": [f"thought {i} " * 9 for i in range(3)]} for n in range(60)
    ]
    recorded.write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = ["--pairs", str(pairs), "--expert", str(recorded), "--out"]

    def synthesize(limit: int, target: Path) -> str:
        command = [sys.executable, "-c", FULL, str(limit), *arguments, str(target)]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    assert "60 rows written" in synthesize(10_000_000, plain)
    said = synthesize(plain.stat().st_size // 3, out)
    assert "LedgerError" in said
    assert "goes on where it was" in said
    assert 0 < out.stat().st_size < plain.stat().st_size
    assert out.read_bytes().endswith(b"\n")
    assert f"{out.read_text().count(chr(10))} were there" in synthesize(10_000_000, out)
    assert out.read_bytes() == plain.read_bytes()
