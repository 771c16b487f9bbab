"""A chat model behind an OpenAI-compatible endpoint as the expert: many requests in flight on one thread."""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from o1_retriever.endpoint import RequestPolicy
from o1_retriever.endpoint.dialect import Dialect
from o1_retriever.endpoint.problem import Problem, diagnose, presentable
from o1_retriever.endpoint.reply import read_reply
from o1_retriever.endpoint.thinker import OpenAIThinker
from o1_retriever.errors import ThinkerError
from o1_retriever.extras import require
from o1_retriever.query import Query
from o1_retriever.thought import Thought
from o1_retriever_training.experts import Answer, Ask, spent
from o1_retriever_training.pacing import Pacer, RateLimit

# A pool of connections looks at all of them whenever one is taken or given back; small ones are quicker.
PER_CLIENT = 8
CHARACTERS_PER_TOKEN = 4  # a guess for the pace alone; what was used is settled afterwards


class EndpointExpert:
    """Asks a server for thoughts, `policy.concurrency` requests at a time and at the pace of `limit`.

    `base_url` and `api_key` default to what the `openai` package takes. A request that may succeed later
    is sent again as the policy says. When as many requests in a row as are in flight find the server down,
    or it says that the key, model or address is wrong, `ThinkerError` ends the work.

    Raises `MissingExtraError` without the `endpoint` extra.
    """

    batch = 1

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        policy: RequestPolicy | None = None,
        limit: RateLimit | None = None,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        # The thinker checks the arguments and opens a client in the way that is known from searching.
        opened = OpenAIThinker(model, base_url=base_url, api_key=api_key, extra_body=extra_body)
        self.model = model
        self.address = opened.address
        self.policy = policy or RequestPolicy(concurrency=64, retries=5, deadline=600.0, timeout=300.0)
        self.limit = limit or RateLimit()
        self._extra_body = dict(extra_body or {})
        self._secret = opened._client.api_key
        self._options = {"base_url": str(opened._client.base_url), "api_key": self._secret}
        opened.close()
        self._clients: list[Any] = []
        self._dialect = Dialect()

    def __str__(self) -> str:
        return f"{self.model} at {self.address}"

    @property
    def identity(self) -> str:
        """Model and extra body; the address may change between two runs, and the key is nobody's business."""
        extra = json.dumps(self._extra_body, sort_keys=True).encode()
        body = f" extra {hashlib.blake2b(extra, digest_size=8).hexdigest()}" if self._extra_body else ""
        return f"{self.model}{body}"

    @property
    def at_once(self) -> int:
        """Rows whose requests may be waiting for their turn."""
        return self.policy.concurrency + 1

    async def write(self, asks: Sequence[Ask]) -> list[Answer]:
        """One request per ask, all at once as far as the policy allows."""
        if not self._clients:
            self._open()
        return list(await asyncio.gather(*(self._one(ask) for ask in asks)))

    async def close(self) -> None:
        """Close the connections."""
        clients, self._clients = self._clients, []
        for client in clients:
            await client.close()

    def _open(self) -> None:
        """What belongs to an event loop is made inside of it."""
        openai = require("openai", extra="endpoint", purpose="An expert behind an endpoint")
        # openai comes with one httpx or another, by its version.
        owner = openai.DefaultAsyncHttpxClient.__bases__[0].__module__
        http = importlib.import_module(owner.partition(".")[0])
        certificates = http.create_ssl_context()  # 50 ms, so once for all
        places = range(self.policy.concurrency)
        self._clients = [
            openai.AsyncOpenAI(
                **self._options,
                max_retries=0,
                http_client=openai.DefaultAsyncHttpxClient(verify=certificates),
            )
            for _ in places[::PER_CLIENT]
        ]
        self._places: asyncio.LifoQueue[Any] = asyncio.LifoQueue()
        for place in places:
            self._places.put_nowait(self._clients[place // PER_CLIENT])
        self._pacer = Pacer(self.limit)
        self._over: ThinkerError | None = None
        self._down = 0

    async def _one(self, ask: Ask) -> Answer:
        client = await self._places.get()
        try:
            if self._over is not None:
                raise self._over
            answer = await self._persist(ask, client)
            self._over = self._over or self._judge(answer)
            if self._over is not None:
                raise self._over
            return answer
        finally:
            self._places.put_nowait(client)

    async def _persist(self, ask: Ask, client: Any) -> Answer:
        """Try until there is a thought, or trying again is pointless; wasted tokens are added up."""
        ends = time.monotonic() + self.policy.deadline
        tried, wasted = 0, (0, 0)
        while True:
            tried += 1
            left = max(0.001, ends - time.monotonic())
            answer, paced = await self._attempt(ask, client, min(self.policy.timeout, left))
            if isinstance(answer, Thought):
                return answer
            wasted = (wasted[0] + answer.cost[0], wasted[1] + answer.cost[1])
            wait = self.policy.wait(tried, answer.wait)
            # What a request has waited for its turn by our own limits is not the server's fault.
            ends += paced
            late = time.monotonic() + wait >= ends or (answer.wait or 0) > self.policy.longest_wait
            if not answer.retry or tried > self.policy.retries or late:
                times = f" (tried {tried} times)" if tried > 1 else ""
                return replace(answer, reason=answer.reason + times, cost=wasted)
            await asyncio.sleep(wait)

    async def _attempt(self, ask: Ask, client: Any, timeout: float) -> tuple[Answer, float]:
        """One answer, and how many seconds the pace has kept the request back."""
        messages = ask.prompt.messages(Query(ask.query))
        settings = ask.settings
        guess = (
            sum(len(each["content"]) for each in messages) / CHARACTERS_PER_TOKEN + settings.max_new_tokens
        )
        waiting = time.monotonic()
        await self._pacer.enter(guess)
        paced = time.monotonic() - waiting
        try:
            answer = await self._exchange(ask, client, messages, timeout)
        except BaseException:
            self._pacer.settle(guess, 0)
            raise
        self._pacer.settle(guess, sum(spent(answer)))
        if isinstance(answer, Thought):
            return answer, paced
        if answer.wait:
            self._pacer.rest(min(answer.wait, self.policy.longest_wait))
        return presentable(answer, secret=self._secret), paced

    async def _exchange(
        self, ask: Ask, client: Any, messages: list[dict[str, str]], timeout: float
    ) -> Answer:
        """One request, and at once another where the server refuses a parameter that can be left out."""
        parameters = {
            "temperature": ask.settings.temperature,
            "top_p": ask.settings.top_p,
            "max_tokens": ask.settings.max_new_tokens,
            "seed": _seed(ask),
        }
        while True:
            sent = self._dialect.request(messages, parameters)
            try:
                async with asyncio.timeout(timeout):
                    # The plain road: the typed one spends milliseconds on checking what is checked here.
                    body = {"model": self.model, **sent, **self._extra_body}
                    reply = await client.post(
                        "/chat/completions", cast_to=object, body=body, options={"timeout": timeout}
                    )
            except Exception as error:
                if self._dialect.learn(error, sent):
                    continue
                problem = diagnose(error, timeout=timeout)
                if problem is None:
                    said = f"The client of {self} failed: {type(error).__name__}: {error}"
                    raise ThinkerError(said) from error
                return problem
            return read_reply(reply, limit=ask.settings.max_new_tokens)

    def _judge(self, answer: Answer) -> ThinkerError | None:
        """Why the work ends: the server is down for everybody, or nothing can succeed."""
        if isinstance(answer, Problem) and answer.setup:
            return ThinkerError(f"{self} cannot think: {answer.reason}.", hint=answer.setup)
        self._down = self._down + 1 if isinstance(answer, Problem) and answer.down else 0
        if self._down >= max(4, self.policy.concurrency) and isinstance(answer, Problem):
            return ThinkerError(
                f"{self} has failed {self._down} times in a row; the last time: {answer.reason}.",
                hint="Look after the server, then type the same command with --retry-failed: it goes on.",
            )
        return None


def _seed(ask: Ask) -> int:
    digest = hashlib.blake2b(f"{ask.settings.seed}:{ask.index}".encode(), digest_size=4).digest()
    return int.from_bytes(digest) >> 1  # 31 bits: some servers read a signed 32-bit number
