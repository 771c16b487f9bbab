"""What synthesis costs beside the endpoint's own time, with 64 requests in flight.

    python -m benchmarks.synthesis.overhead [--rows 1920] [--seconds 1.0]

A server in a process of its own answers every request after `--seconds`, however many there are; what 64
requests at a time would take without any work of ours is rows / 64 rounds of that. Half a second of the
overhead is the beginning, 64 connections one after the other; with fewer rows it weighs more.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.record import RESULTS, Figure, record

IN_FLIGHT = 64


def main() -> None:
    """Measure and record the overhead."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1920)
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=_serve, args=(theirs, options.seconds), daemon=True)
    server.start()
    try:
        spent = _synthesise(f"http://127.0.0.1:{ours.recv()}/v1", options.rows)
    finally:
        server.terminate()
    ideal = options.rows / IN_FLIGHT * options.seconds
    share = spent / ideal - 1
    print(f"{spent:.2f} s for {options.rows} rows; the endpoint's own time is {ideal:.2f} s: {share:.1%}")
    figure = Figure(
        name="synthesize/overhead", value=round(share, 4), unit="share of the endpoint's time",
        better="lower",
    )  # fmt: skip
    record(RESULTS / "synthesis.jsonl", [figure])


def _synthesise(url: str, count: int) -> float:
    from o1_retriever.endpoint.exchange import RequestPolicy
    from o1_retriever_training.experts import EndpointExpert
    from o1_retriever_training.recipe import Contributor, Recipe
    from o1_retriever_training.synthesize import Options, synthesize

    policy = RequestPolicy(concurrency=IN_FLIGHT)
    recipe = Recipe(contributors=(Contributor(n=1),))
    with tempfile.TemporaryDirectory() as folder:
        pairs = Path(folder) / "pairs.jsonl"
        rows = [{"query": f"What is {number}?", "pos": [f"It is {number}. " * 40]} for number in range(count)]
        pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        expert = EndpointExpert("m", base_url=url, policy=policy)
        started = time.perf_counter()
        tally, _ = synthesize(pairs, Path(folder) / "out.jsonl", experts=expert, recipe=recipe,
                              options=Options(show=False))  # fmt: skip
        spent = time.perf_counter() - started
        assert (tally.written, tally.failures) == (count, 0)
    return spent


def _serve(pipe: Connection, seconds: float) -> None:
    message = {"role": "assistant", "content": "A plausible response of some length. " * 20}
    body = json.dumps(
        {
            "id": "1", "object": "chat.completion", "created": 1, "model": "m",
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": {"prompt_tokens": 500, "completion_tokens": 150, "total_tokens": 650},
        }
    ).encode()  # fmt: skip
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    )

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while header := await reader.readuntil(b"\r\n\r\n"):
                length = next(
                    int(line.split(b":")[1])
                    for line in header.split(b"\r\n")
                    if line.lower().startswith(b"content-length:")
                )
                await reader.readexactly(length)
                await asyncio.sleep(seconds)
                writer.write(head + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def run() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        async with server:
            await server.serve_forever()

    asyncio.run(run())


if __name__ == "__main__":
    main()
