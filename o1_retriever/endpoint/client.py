"""The client of chat servers with OpenAI's interface: vLLM, Ollama, llama.cpp, or a hosted one."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import importlib
import inspect
import json
import logging
import os
import re
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from threading import Thread
from typing import Any, TypeVar
from urllib.parse import urlsplit

from o1_retriever.endpoint.chat import ChatRequest, Reasoning, check_reasoning, without_system
from o1_retriever.endpoint.exchange import (
    Answer,
    BrokenStreamError,
    Pacer,
    Patience,
    Problem,
    RateLimit,
    RequestPolicy,
    StreamedReply,
    cost_of,
    diagnose,
    presentable,
    read_reply,
)
from o1_retriever.errors import SettingsError, ThinkerError, require
from o1_retriever.thought import Thought

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
Hear = Callable[[str], None]

# A pool of connections looks at all of them whenever one is taken or given back; small ones are quicker.
PER_POOL = 8
CHARACTERS_PER_TOKEN = 4  # a guess for the pace alone; what was used is settled afterwards

REFUSAL = re.compile(
    r"unsupported|not support|unrecogni[sz]ed|unknown|unexpected|not permitted|not allowed|extra_forbidden"
    r"|only the default|deprecated|cannot both|not both|not available|invalid (?:parameter|argument)",
    re.IGNORECASE,
)
# What a thought loses when a server will not take a parameter; `max_tokens` is renamed, never dropped,
# because without a limit a model may write for hours.
OPTIONAL = {
    "seed": "its thoughts cannot be repeated",
    "top_p": "it samples with a top_p of its own",
    "repetition_penalty": "it repeats itself as it likes",
    "temperature": "it samples with a temperature of its own",
    "stream_options": "it does not tell what a thought has cost that was followed while it was written",
    "stream": "its thoughts cannot be followed while they are written",
}
# What is asked for where somebody listens, and a server may not know.
STREAM = {"stream": True, "stream_options": {"include_usage": True}}
# Not of OpenAI's interface, known to vLLM and other servers: its client takes them as an extra body.
EXTRA = frozenset({"repetition_penalty"})


class Dialect:
    """Rewrites requests for one server, and remembers what it has refused."""

    def __init__(self) -> None:
        self._dropped: frozenset[str] = frozenset()
        self._limit = "max_tokens"
        self._system = True

    def request(self, messages: list[dict[str, str]], parameters: dict[str, Any]) -> dict[str, Any]:
        """The keyword arguments of a chat completion that this server takes."""
        dropped = self._dropped | ({"stream_options"} if "stream" in self._dropped else set())
        kept = {name: value for name, value in parameters.items() if name not in dropped}
        kept[self._limit] = kept.pop("max_tokens")
        return {"messages": messages if self._system else without_system(messages), **kept}

    def learn(self, error: Exception, sent: dict[str, Any]) -> bool:
        """Whether a refusal of `sent` was about something that can be left out or renamed from now on."""
        if getattr(error, "status_code", None) not in (400, 422):
            return False
        param, text = getattr(error, "param", None), f"{error} {getattr(error, 'body', None)}"
        if "max_tokens" in sent and "max_completion_tokens" in text:
            self._limit = "max_completion_tokens"
            return True
        if not REFUSAL.search(text):
            return False
        if sent["messages"][0]["role"] == "system" and re.search(r"\bsystem\b", text, re.IGNORECASE):
            self._system = False
            return True
        # The parameter that the server names in a field of its own, else the first that its words name.
        named = [n for n in OPTIONAL if n in sent and (n == param or re.search(rf"\b{n}\b", text))]
        refused = param if param in named else next(iter(named), None)
        if refused is None:
            return False
        if refused not in self._dropped:
            self._dropped |= {refused}
            logger.warning("The endpoint takes no %r: %s.", refused, OPTIONAL[refused])
        return True


class ChatClient:
    """Asks a chat server for thoughts, as the `policy` says, at the pace of `limit`.

    `base_url` and `api_key` default to what the `openai` package takes (`OPENAI_BASE_URL`,
    `OPENAI_API_KEY`); a server of your own needs no key. Or bring a `client`, synchronous or asynchronous,
    with `chat.completions.create`: it keeps its address, key and headers. `extra_body` goes into every
    request. `reasoning="thought"` takes a model's reasoning where it wrote nothing else. The connections
    belong to the event loop that asks first, until `close`.

    Raises `MissingExtraError` without the `endpoint` extra, and `SettingsError` for unusable arguments.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        client: Any = None,
        extra_body: Mapping[str, Any] | None = None,
        policy: RequestPolicy | None = None,
        limit: RateLimit | None = None,
        reasoning: Reasoning = "off",
    ) -> None:
        if not isinstance(model, str) or not model.strip():
            raise SettingsError(f"model is {model!r:.60}; expected the name by which the endpoint knows it.")
        if client is not None and (base_url or api_key):
            raise SettingsError(
                "A client was passed with a base_url or an api_key.", hint="Pass one of both."
            )
        check_reasoning(reasoning)
        self.model, self.reasoning = model, reasoning
        self.policy = policy or RequestPolicy()
        self._limit = limit or RateLimit()
        self._extra_body = _plain(extra_body)
        self.extra = ""
        """What else decides about its thoughts, as a part of an identity: mostly empty."""
        if self._extra_body:
            content = json.dumps(self._extra_body, sort_keys=True).encode()
            self.extra = f" extra {hashlib.blake2b(content, digest_size=8).hexdigest()}"
        if reasoning != "off":
            self.extra += f" reasoning {reasoning}"
        self._dialect = Dialect()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pools: list[Any] = []
        self._brought = None if client is None else _without_retries(client)
        self._options = options_of(base_url, api_key) if client is None else {}
        address = self._options.get("base_url") or getattr(self._brought, "base_url", None)
        # What takes no such argument would call it a mistake.
        self._streams = self._brought is None or "stream" in _parameters(self._brought)
        self._secret = self._options.get("api_key") or getattr(self._brought, "api_key", None)
        self.address = None if address is None else _public(str(address))

    def __str__(self) -> str:
        return self.model if self.address is None else f"{self.model} at {self.address}"

    async def close(self) -> None:
        """Close the connections, unless the client was brought by the caller."""
        pools, self._pools = self._pools, []
        if self._loop is asyncio.get_running_loop() and self._brought is None:
            for pool in pools:
                await pool.close()
        self._loop = None

    async def ask_all(
        self, requests: Sequence[ChatRequest], patience: Patience, hear: Sequence[Hear | None] = ()
    ) -> list[Answer]:
        """The answers in the order of the requests; the rest is not sent when the patience has ended.

        `hear` has for each request who is told of its answer while it is written.
        """
        answers: dict[int, Answer] = {}
        left = iter(enumerate(requests))

        async def work() -> None:
            for place, request in left:
                answers[place] = await self.ask(request, patience, hear=hear[place] if hear else None)
                if patience.ended is not None:
                    return

        number = min(self.policy.concurrency, len(requests))
        workers = [asyncio.create_task(work()) for _ in range(number)]
        try:
            for finished in asyncio.as_completed(workers):
                await finished
                if patience.hopeless:
                    break
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        return [answers.get(place) or patience.not_asked() for place in range(len(requests))]

    async def ask(
        self,
        request: ChatRequest,
        patience: Patience,
        *,
        retries: int | None = None,
        hear: Hear | None = None,
    ) -> Answer:
        """A thought, or the problem that is left after all `retries` (None: those of the policy).

        `hear` is told of all that was written by now, as often as some of it comes; of a reply in one piece,
        and where the server does not stream, nothing. It is told of the reasoning too, as it came.

        Raises `ThinkerError` for an exception of the client that is a bug and no answer of a server.
        """
        self._open()
        places = self._places
        pool = await places.get()
        try:
            if patience.ended is not None:
                return patience.not_asked()
            tries = self.policy.retries if retries is None else retries
            answer = await self._persist(request, pool, tries, hear)
            patience.judge(answer)
            return answer
        finally:
            places.put_nowait(pool)

    def _open(self) -> None:
        """Make what belongs to an event loop inside of it."""
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        self._loop = loop
        number = -(-self.policy.concurrency // PER_POOL)
        self._pools = [self._brought] if self._brought is not None else _pools(number, self._options)
        self._pacer = Pacer(self._limit)
        self._places: asyncio.LifoQueue[Any] = asyncio.LifoQueue()
        for place in range(self.policy.concurrency):
            self._places.put_nowait(self._pools[place // PER_POOL % len(self._pools)])

    async def _persist(self, request: ChatRequest, pool: Any, retries: int, hear: Hear | None) -> Answer:
        """Try until there is a thought, or trying again is pointless; wasted tokens are added up."""
        asked, wasted, tried = _Asked(request, request.messages, hear), (0, 0), 0
        try:
            async with asyncio.timeout(self.policy.deadline) as deadline:
                while True:
                    tried += 1
                    answer = await self._attempt(asked, pool, deadline)
                    if isinstance(answer, Thought):
                        return answer
                    wasted = (wasted[0] + answer.cost[0], wasted[1] + answer.cost[1])
                    if not answer.retry:
                        return replace(answer, cost=wasted)
                    wait = self.policy.wait(tried, answer.wait)
                    why = self._why_to_stop(answer, deadline, wait)
                    if tried > retries or why:
                        times = "once" if tried == 1 else f"{tried} times"
                        return replace(answer, reason=f"{answer.reason} (tried {times}{why})", cost=wasted)
                    await asyncio.sleep(wait)
        except TimeoutError:
            reason = f"no complete answer within {self.policy.deadline:g} s"
            return Problem(reason=reason, down=True, cost=wasted)

    def _why_to_stop(self, problem: Problem, deadline: asyncio.Timeout, wait: float) -> str:
        if problem.wait is not None and problem.wait > self.policy.longest_wait:
            return f"; it asks to wait {problem.wait:g} s"
        if wait >= _left(deadline):
            return f"; {self.policy.deadline:g} s were allowed"
        return ""

    async def _attempt(self, asked: _Asked, pool: Any, deadline: asyncio.Timeout) -> Answer:
        characters = sum(len(message["content"]) for message in asked.messages)
        guess = characters / CHARACTERS_PER_TOKEN + asked.request.settings.max_new_tokens
        await self._keep_pace(guess, deadline)
        used = 0
        try:
            timeout = max(0.001, min(self.policy.timeout, _left(deadline)))
            answer = await self._exchange(asked, pool, timeout)
            used = sum(cost_of(answer))
        finally:
            self._pacer.settle(guess, used)
        if isinstance(answer, Thought):
            return answer
        if answer.wait:
            self._pacer.rest(min(answer.wait, self.policy.longest_wait))
        return presentable(answer, secret=self._secret)

    async def _keep_pace(self, guess: float, deadline: asyncio.Timeout) -> None:
        """Wait for our turn; the time that our own limits take is not the server's fault, and is added."""
        left = _left(deadline)
        if self._pacer.limited:
            deadline.reschedule(None)
        await self._pacer.enter(guess)
        if self._pacer.limited:
            deadline.reschedule(asyncio.get_running_loop().time() + left)

    async def _exchange(self, asked: _Asked, pool: Any, timeout: float) -> Answer:
        """One request, and at once another where the server refuses a parameter that can be left out."""
        request, streamed = asked.request, asked.hear and self._streams
        while True:
            sent = self._dialect.request(asked.messages, request.parameters | (STREAM if streamed else {}))
            try:
                reply = await self._send(pool, {"model": self.model, **sent}, timeout, asked.hear)
            except Exception as error:
                if self._dialect.learn(error, sent):
                    continue
                problem = diagnose(error, timeout=timeout)
                if problem is None:
                    bug = Problem(reason=f"The client of {self} failed: {type(error).__name__}: {error}")
                    raise ThinkerError(presentable(bug, secret=self._secret).reason) from error
                return problem
            return read_reply(reply, limit=request.settings.max_new_tokens, reasoning=self.reasoning)

    async def _send(self, pool: Any, sent: dict[str, Any], timeout: float, hear: Hear | None) -> Any:
        streamed: dict[str, Any] = {}
        if self._brought is None:
            if "stream" in sent:
                import openai

                streamed = {"stream": True, "stream_cls": openai.AsyncStream[object]}
            async with asyncio.timeout(timeout):
                # The plain way: the typed one spends milliseconds on checking what is checked here.
                body, options = sent | self._extra_body, {"timeout": timeout}
                reply = await pool.post(
                    "/chat/completions", cast_to=object, body=body, options=options, **streamed
                )
                return await _heard(reply, hear) if streamed else reply
        named = {name: value for name, value in sent.items() if name not in EXTRA}
        extra = {name: sent[name] for name in EXTRA & sent.keys()} | self._extra_body
        create = functools.partial(pool.chat.completions.create, **named, extra_body=extra, timeout=timeout)
        # Nothing stops a thread, so that another attempt beside it would be a second load: a synchronous
        # client keeps to the timeout by itself, or the deadline ends the waiting.
        reply = await in_thread(create)
        async with asyncio.timeout(timeout if inspect.isawaitable(reply) else None):
            reply = await reply if inspect.isawaitable(reply) else reply
            return await _heard(reply, hear) if "stream" in sent else reply


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request with its messages, and who is told of the answer while it is written."""

    request: ChatRequest
    messages: list[dict[str, str]]
    hear: Hear | None


async def _heard(stream: Any, hear: Hear | None) -> Any:
    """The completion of a stream, of which `hear` is told as it grows; what is no stream as it is.

    Raises `BrokenStreamError` for a stream that ends before the reply does.
    """
    response = getattr(stream, "response", None)
    if response is not None and "json" in response.headers.get("content-type", ""):
        # A server that knows of no streams: its own bytes, not what a reader of events makes of them.
        reading = (
            response.aread if hasattr(stream, "__aiter__") else functools.partial(in_thread, response.read)
        )
        return json.loads(await reading())
    if not hasattr(stream, "__aiter__") and not hasattr(stream, "__next__"):
        return stream
    grown = StreamedReply()
    async with aclosing(_chunks(stream)) as chunks:
        async for chunk in chunks:
            before = grown.text
            grown.add(chunk)
            if hear and grown.text != before:
                hear(grown.text)
    whole = grown.completion()
    if whole is None:
        raise BrokenStreamError("the stream ended before the reply did")
    return whole


async def _chunks(stream: Any) -> AsyncGenerator[Any]:
    """What comes of a stream; it is closed in the end, so that the server of one who leaves can stop."""
    try:
        if hasattr(stream, "__aiter__"):
            async for chunk in stream:
                yield chunk
        else:
            while (chunk := await in_thread(lambda: next(stream, None))) is not None:
                yield chunk
    finally:
        close = getattr(stream, "close", None)
        with suppress(ValueError):  # a generator that its thread is still inside of
            closing = close() if close else None
            if inspect.isawaitable(closing):
                await closing


async def in_thread(call: Callable[[], Result]) -> Result:
    """The result of a call in a daemon thread, for which neither Ctrl-C nor the end of the program waits."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[tuple[Result | None, Exception | None]] = loop.create_future()

    def settle(result: Result | None, error: Exception | None) -> None:
        if not done.done():  # it was given up otherwise
            done.set_result((result, error))

    def work() -> None:
        result, error = None, None
        try:
            result = call()
        except Exception as raised:  # belongs to the caller
            error = raised
        with suppress(RuntimeError):  # the event loop was closed since
            loop.call_soon_threadsafe(settle, result, error)

    Thread(target=work, name="o1-retriever-thinker", daemon=True).start()
    result, error = await done
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


def _left(deadline: asyncio.Timeout) -> float:
    """Seconds until a deadline."""
    when = deadline.when()
    return float("inf") if when is None else when - asyncio.get_running_loop().time()


def options_of(base_url: str | None, api_key: str | None) -> dict[str, Any]:
    """The address and the key of a client of our own."""
    require("openai", extra="endpoint", purpose="A model behind an endpoint")
    elsewhere = base_url or os.environ.get("OPENAI_BASE_URL")
    # The client insists on a key, which a server of one's own does not look at.
    key = api_key or os.environ.get("OPENAI_API_KEY") or ("none" if elsewhere else None)
    if key is None:
        raise SettingsError(
            "There is no API key for the endpoint.",
            hint="Set OPENAI_API_KEY, pass api_key=, or pass the base_url= of a server of your own.",
        )
    if elsewhere and urlsplit(elsewhere).scheme not in ("http", "https"):
        raise SettingsError(
            f"base_url is {elsewhere!r:.80}; expected a URL.", hint="For example http://127.0.0.1:8000/v1"
        )
    # No header takes a line break, with which a key often ends that was read from a file.
    return {"base_url": elsewhere or "https://api.openai.com/v1", "api_key": key.strip()}


def _pools(number: int, options: Mapping[str, Any]) -> list[Any]:
    """So many clients, each with connections of its own."""
    import openai

    # openai comes with one httpx or another, by its version.
    owner = openai.DefaultAsyncHttpxClient.__bases__[0].__module__
    certificates = importlib.import_module(
        owner.partition(".")[0]
    ).create_ssl_context()  # 50 ms: once for all
    # Retries are ours (`RequestPolicy`): two layers of them would multiply.
    return [
        openai.AsyncOpenAI(
            **options, max_retries=0, http_client=openai.DefaultAsyncHttpxClient(verify=certificates)
        )
        for _ in range(number)
    ]


def _without_retries(client: Any) -> Any:
    """The caller's client as it is used here. Raises `SettingsError` for something else."""
    if not callable(getattr(getattr(getattr(client, "chat", None), "completions", None), "create", None)):
        raise SettingsError(
            f"client is a {type(client).__name__}; expected one with chat.completions.create.",
            hint="For example openai.OpenAI(base_url=..., api_key=...).",
        )
    return client.with_options(max_retries=0) if hasattr(client, "with_options") else client


def _parameters(client: Any) -> Collection[str]:
    """The names that a client's function takes; none where it does not tell."""
    try:
        return inspect.signature(client.chat.completions.create).parameters
    except (TypeError, ValueError):
        return ()


def _plain(extra_body: Mapping[str, Any] | None) -> dict[str, Any]:
    try:
        return dict(json.loads(json.dumps(dict(extra_body or {}))))
    except (TypeError, ValueError) as error:
        raise SettingsError(f"extra_body is {extra_body!r:.80}; expected JSON values ({error}).") from None


def _public(url: str) -> str:
    """An address without user, password and query, any of which may be a secret."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}".rstrip("/")
