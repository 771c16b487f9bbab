"""Processes that make training data, to be killed: children of one that has imported everything already.

`with Nursery(root) as nursery` starts it; `nursery.run(job)` has a child do a job (`_do` has the fields) and
returns how it ended. `kill_at` N has the child send itself SIGKILL right before the N-th of its `CALLS`, the
places where something on disk changes; with `rows`, right before it writes its N-th row. `kill_after` S has
it killed from outside, S seconds after its output has begun to grow.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CALLS = {"write", "fsync", "replace", "truncate", "unlink", "open", "execute", "commit", "connect"}


class Nursery:
    """The process that waits for jobs."""

    def __init__(self, root: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.synthesis_worker"],
            cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate()

    def run(self, kill_after: float | None = None, **job: Any) -> int:
        """0 for a child that came to its end, -9 for one that was killed."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job, default=str) + "\n")
        self._process.stdin.flush()
        child = int(self._line())
        if kill_after is not None:
            _wait_for_growth(Path(str(job["out"])))
            time.sleep(kill_after)
            os.kill(child, signal.SIGKILL)
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        return int(self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


def _wait_for_growth(out: Path) -> None:
    def size() -> int:
        return out.stat().st_size if out.exists() else 0

    before, ends = size(), time.monotonic() + 200
    while size() <= before and time.monotonic() < ends:
        time.sleep(0.002)


def say(query: str, index: int) -> str | None:
    """A thought of some length, or None for a few; always the same about a query."""
    digest = hashlib.blake2b(f"{query} {index}".encode()).hexdigest()
    return None if digest.startswith("0") else f"thought {index} about {query}: " + digest * 20


def common_letters(texts: list[str], positives: list[str]) -> list[float]:
    """A member of a committee."""
    return [float(len(set(one) & set(other))) for one, other in zip(texts, positives, strict=True)]


def main() -> None:
    """Fork a child for each job of standard input, and say its number and how it ended."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "training"))
    # What is imported here is not imported again by every child.
    import bm25s  # noqa: F401
    import Stemmer  # noqa: F401

    import o1_retriever_training.experts
    import o1_retriever_training.negatives
    import o1_retriever_training.vote  # noqa: F401

    asyncio.run(_ask_nobody())
    for line in sys.stdin:
        if not line.strip():
            continue
        job = json.loads(line)
        child = os.fork()
        if not child:
            _do(**job)
            os._exit(0)
        _tell(child)
        if job.get("outside"):
            # The child stays a zombie, whose number nobody else gets, until it has been killed.
            sys.stdin.readline()
        _, status = os.waitpid(child, 0)
        _tell(os.waitstatus_to_exitcode(status))


async def _ask_nobody() -> None:
    """Clients import the most of what they need with their first request."""
    import openai

    with contextlib.suppress(openai.OpenAIError):
        await openai.AsyncOpenAI(base_url="http://127.0.0.1:9/v1", api_key="k", max_retries=0).models.list()


def _tell(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def _do(
    *,
    stage: str,
    source: str,
    out: str,
    kill_at: int = 0,
    rows: bool = False,
    calls: str | None = None,
    outside: bool = False,
    **more: Any,
) -> None:
    made = 0

    def watch(frame: Any, event: str, called: Any) -> None:
        nonlocal made
        if event == "c_call" and (_writes_a_row if rows else _changes_the_disk)(called):
            made += 1
            if made == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    if kill_at or calls:
        sys.setprofile(watch)
    try:
        {"synthesize": _synthesize, "vote": _vote, "negatives": _negatives}[stage](source, out, **more)
    except BaseException as error:
        sys.setprofile(None)
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.stderr.flush()
        os._exit(1)
    sys.setprofile(None)
    if calls:
        Path(calls).write_text(str(made))


def _changes_the_disk(called: Any) -> bool:
    in_memory = isinstance(getattr(called, "__self__", None), io.StringIO | io.BytesIO)
    return called.__name__ in CALLS and not in_memory


def _writes_a_row(called: Any) -> bool:
    return called.__name__ == "write" and isinstance(called.__self__, io.FileIO)


def _synthesize(
    source: str, out: str, *, url: str = "", pause: float = 0.0, retry: bool = False, timeout: float = 60.0
) -> None:
    from o1_retriever.endpoint.exchange import RequestPolicy
    from o1_retriever.thinkers import CallableThinker
    from o1_retriever_training.experts import EndpointExpert, ThinkerExpert
    from o1_retriever_training.synthesize import Options, synthesize

    def think(queries: list[str], k: int) -> list[list[str | None]]:
        time.sleep(pause)
        return [[say(query, index) for index in range(k)] for query in queries]

    policy = RequestPolicy(concurrency=8, retries=9, backoff=0.001, timeout=timeout, deadline=200)
    expert: Any = (
        EndpointExpert("m", base_url=url, api_key="k", policy=policy)
        if url
        else ThinkerExpert(CallableThinker(think, name="worker"), batch=3)
    )
    synthesize(source, out, experts=expert, options=Options(show=False, retry_failed=retry))


def _vote(source: str, out: str) -> None:
    from o1_retriever_training import vote as stage

    stage.CHUNK = 5
    stage.vote(source, out, committee=["bm25", common_letters], show=False)


def _negatives(source: str, out: str, *, corpus: str) -> None:
    from o1_retriever_training import negatives as stage
    from o1_retriever_training.synthesize import Options

    stage.CHUNK = 5
    rules = stage.MiningRules(count=2, skip=0)
    stage.mine_negatives(source, out, corpus=corpus, rules=rules, options=Options(show=False))


if __name__ == "__main__":
    main()
