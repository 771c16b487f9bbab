"""A chat-completions server on the loopback interface that answers, and misbehaves, as a test tells it."""

from __future__ import annotations

import json
import select
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Answer:
    """One HTTP answer. `drop` closes the connection instead; `missing` bytes are promised and not sent;
    `drip` is the pause in seconds before each byte of the body; what is behind its first event waits for
    `more`."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    drip: float = 0.0
    drop: bool = False
    missing: int = 0
    more: threading.Event | None = None


def completion(content: Any = "a thought", *, finish: str = "stop", **message: Any) -> Answer:
    """A well-formed completion; further keywords are fields of its message."""
    choice = {
        "index": 0,
        "finish_reason": finish,
        "message": {"role": "assistant", "content": content, **message},
    }
    usage = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
    return as_json(
        {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [choice],
            "usage": usage,
        }
    )


def streamed(*pieces: Any, finish: str | None = "stop", done: bool = True) -> Answer:
    """A completion as server-sent events: texts, fields of a delta as a dict, or whole chunks of choices."""
    chunks = [
        piece
        if isinstance(piece, dict) and {"choices", "error"} & piece.keys()
        else {"choices": [{"index": 0, "delta": {"content": piece} if isinstance(piece, str) else piece}]}
        for piece in pieces
    ]
    if finish:
        chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
        chunks.append({"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": len(pieces)}})
    events = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks] + ["data: [DONE]\n\n"] * done
    return Answer("".join(events).encode(), headers={"Content-Type": "text/event-stream"})


def as_json(value: Any, *, status: int = 200, **headers: str) -> Answer:
    """A JSON answer; underscores in header names become hyphens."""
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Answer(json.dumps(value).encode(), status, {"Content-Type": "application/json", **named})


def refusal(
    status: int, message: str, *, param: str | None = None, code: str | None = None, **headers: str
) -> Answer:
    """An error in the form of the OpenAI API."""
    return as_json(
        {"error": {"message": message, "param": param, "code": code, "type": "error"}},
        status=status,
        **headers,
    )


class ChatServer(ThreadingHTTPServer):
    """`answer(body, number)` makes the answer to the request of that number (from 0)."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer: Callable[[dict[str, Any], int], Answer] = lambda body, number: completion()
        self.models: list[str] = ["a-model"]
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.busiest = 0
        self.connections = 0
        self.closing = threading.Event()
        self._busy = 0
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """What a client takes as its base_url."""
        return f"http://127.0.0.1:{self.server_port}/v1"

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Count the connections that are open."""
        with self._lock:
            self.connections += 1
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self.connections -= 1

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the tests."""

    def serve(self, body: dict[str, Any], headers: dict[str, str]) -> Answer:
        """Note the request, and wait as long as its answer takes."""
        with self._lock:
            number = len(self.bodies)
            self.bodies.append(body)
            self.headers.append(headers)
            self.times.append(time.monotonic())
            self._busy += 1
            self.busiest = max(self.busiest, self._busy)
        try:
            answer = self.answer(body, number)
            self.closing.wait(answer.delay)
        finally:
            with self._lock:
                self._busy -= 1
        return answer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ChatServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = self.server.serve(body, {name.lower(): text for name, text in self.headers.items()})
        if not self.path.startswith("/v1/chat/completions"):
            answer = Answer(b"<html>Not here</html>", 404, {"Content-Type": "text/html"})
        if answer.drop:
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body) + answer.missing))
        self.end_headers()
        self._send(answer)
        self.close_connection = self.close_connection or answer.missing > 0

    def do_GET(self) -> None:
        listed = {"object": "list", "data": [{"id": name, "object": "model"} for name in self.server.models]}
        answer = as_json(listed) if self.path == "/v1/models" else refusal(404, "not here")
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body)

    def _send(self, answer: Answer) -> None:
        if answer.more:
            first, _, rest = answer.body.partition(b"\n\n")
            self.wfile.write(first + b"\n\n")
            self.wfile.flush()
            while not answer.more.wait(0.01):
                if select.select([self.connection], [], [], 0)[0]:  # the client has hung up
                    self.close_connection = True
                    return
            self.wfile.write(rest)
            return
        if not answer.drip:
            self.wfile.write(answer.body)
            return
        for place in range(len(answer.body)):
            if self.server.closing.wait(answer.drip):
                return
            self.wfile.write(answer.body[place : place + 1])
            self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def chat_server() -> Iterator[ChatServer]:
    """A running server, stopped at the end even when requests are still waiting."""
    with ChatServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()
            thread.join()
