"""Thoughts written by a model behind an OpenAI-compatible chat endpoint, or by a model of another library."""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
import weakref
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import wait
from dataclasses import replace
from itertools import islice
from threading import Lock, Thread
from types import SimpleNamespace
from typing import Any, TypeVar

from o1_retriever.concurrency.processes import Renewed, Sent
from o1_retriever.concurrency.shared import finished
from o1_retriever.endpoint.chat import (
    DEFAULT_PROMPT,
    DEFAULT_SAMPLING,
    ChatPrompt,
    ChatRequest,
    Reasoning,
    as_prompt,
    whole_sentences,
)
from o1_retriever.endpoint.client import ChatClient, Hear, in_thread, options_of
from o1_retriever.endpoint.exchange import Answer, ModelCallError, Patience, Problem, RequestPolicy
from o1_retriever.engine.follow import heard, still_waited_for
from o1_retriever.errors import ThinkerError
from o1_retriever.query import Query
from o1_retriever.reporting import counted
from o1_retriever.thought import Thought, ThoughtSettings, distinct

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

_LISTING_S = 10.0  # seconds for a server to list its models
TICK = 0.1  # seconds that Ctrl-C may take on Windows, where nothing interrupts a wait


class OpenAIThinker(Sent):
    """A chat model behind an OpenAI-compatible endpoint: vLLM, Ollama, llama.cpp, or a hosted one.

    `base_url` and `api_key` default to what the `openai` package takes (`OPENAI_BASE_URL`,
    `OPENAI_API_KEY`); a server of your own needs no key. Or bring a `client` (`openai.OpenAI`, an Azure
    one, or anything with their `chat.completions.create`): it keeps its address, key and headers. An
    asynchronous one is used in an event loop of the thinkers' own, so do not share it with yours.
    `prompt` is a `ChatPrompt`, or a message with `{query}` in it. `extra_body` goes into every request,
    for what only your server knows. `policy` bounds time, retries and parallel requests. A model that reasons
    first has its reasoning left out; with `reasoning="thought"` it is the thought where nothing else came.

    One request is sent per thought, so that a thought depends on the query, the seed and its own index
    alone, as far as the server keeps its promise about seeds. The API key is in no message, name or log.

    Raises `MissingExtraError` without the `endpoint` extra, and `SettingsError` for unusable arguments.
    """

    default_settings: Mapping[str, Any] = DEFAULT_SAMPLING

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        client: Any = None,
        prompt: ChatPrompt | str = DEFAULT_PROMPT,
        extra_body: Mapping[str, Any] | None = None,
        policy: RequestPolicy | None = None,
        reasoning: Reasoning = "off",
    ) -> None:
        self.prompt = as_prompt(prompt)
        self._chat = ChatClient(
            model,
            base_url=base_url,
            api_key=api_key,
            client=client,
            extra_body=extra_body,
            policy=policy,
            reasoning=reasoning,
        )
        self.model, self.policy, self.address = model, self._chat.policy, self._chat.address
        self._was_down = False
        self._finalizer = weakref.finalize(self, _background.start, self._chat.close)
        self._finalizer.atexit = False

    def __repr__(self) -> str:
        return f"OpenAIThinker({self.model!r}, base_url={self.address!r})"

    @property
    def identity(self) -> str | None:
        """Address, model, prompt and extra body; None for a client that does not tell its `base_url`."""
        if self.address is None:
            return None
        prompt = self.prompt.fingerprint
        return f"endpoint {self.address} model {self.model} prompt {prompt}{self._chat.extra}"

    def close(self) -> None:
        """Close the connections, unless the client was brought by the caller."""
        _background.run(self._chat.close())

    def think(
        self, queries: Sequence[Query], *, settings: ThoughtSettings, start: int = 0
    ) -> list[list[Thought]]:
        """Thoughts `start` to `settings.n_thoughts - 1` about every query, in the order of the queries.

        The history of a query is sent as the messages before it (see `ChatPrompt.messages`).

        A thought that could not be written is a recorded failure with its reason, and one warning counts
        them. Raises `ThinkerError` when nothing can succeed before the caller changes something (wrong
        key, model or address), and none of this call's thoughts had been written.
        """
        return finished(self._think(queries, settings, start, blocking=True))

    async def athink(
        self, queries: Sequence[Query], *, settings: ThoughtSettings, start: int = 0
    ) -> list[list[Thought]]:
        """`think` for coroutines: no thread waits. A coroutine that is cancelled takes its requests back."""
        return await self._think(queries, settings, start, blocking=False)

    async def _think(
        self, queries: Sequence[Query], settings: ThoughtSettings, start: int, *, blocking: bool
    ) -> list[list[Thought]]:
        async def write(numbers: Sequence[tuple[int, ...]], again: bool) -> list[list[Thought]]:
            wanted = [(place, index) for place, own in enumerate(numbers) for index in own]
            requests = [
                ChatRequest(query=queries[place], prompt=self.prompt, index=index, settings=settings)
                for place, index in wanted
            ]
            listener = None if again else heard()
            hear = [functools.partial(listener.said, *one) for one in wanted] if listener else []
            answers: list[Answer] = []
            if requests:
                work = self._ask(requests, hear)
                answers = _background.run(work) if blocking else await _background.awaited(work)
            self._report(answers)
            thoughts = iter([_recorded(answer) for answer in answers])
            return [list(islice(thoughts, len(own))) for own in numbers]

        return await distinct(len(queries), settings, start, write)

    async def _ask(self, requests: Sequence[ChatRequest], hear: Sequence[Hear]) -> list[Answer]:
        """Ask for all; when the last call was given up, find out first with one request, sent once."""
        patience = Patience(self.policy, silence=self.policy.deadline)
        probe: list[Answer] = []
        if self._was_down:
            first = hear[0] if hear else None
            probe.append(await self._chat.ask(requests[0], patience, retries=0, hear=first))
            if isinstance(probe[0], Problem) and (probe[0].down or probe[0].setup):
                patience.ended = probe[0]
        answers = await self._chat.ask_all(requests[len(probe) :], patience, hear[len(probe) :])
        self._was_down = patience.ended is not None
        return probe + answers

    def _report(self, answers: Sequence[Answer]) -> None:
        problems = [answer for answer in answers if isinstance(answer, Problem)]
        if not problems:
            return
        setup = next((problem for problem in problems if problem.setup), None)
        if setup and len(problems) == len(answers):
            raise ThinkerError(f"{self!r} cannot think: {setup.reason}.", hint=setup.setup)
        (reason, count), *others = Counter(problem.reason for problem in problems).most_common()
        logger.warning(
            "%s of %s could not be written from %r. %s of them: %s%s",
            f"{len(problems):,}",
            counted(len(answers), "thought"),
            self,
            count if others else "All",
            reason,
            f" (and {counted(len(others), 'other reason')})" if others else "",
        )


def first_model(base_url: str) -> str:
    """The name of the first model that a server lists. Raises `ThinkerError` where it does not tell."""
    options = options_of(base_url, None)
    import openai

    hint = f"Type: OpenAIThinker('NAME OF THE MODEL', base_url={base_url!r})"
    try:
        with openai.OpenAI(**options, max_retries=0, timeout=_LISTING_S) as client:
            models = client.models.list().data or []
    except (openai.OpenAIError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise ThinkerError(
            f"The server at {base_url} does not tell which models it has: {reason:.200}", hint=hint
        ) from error
    if not models:
        raise ThinkerError(f"The server at {base_url} lists no model.", hint=hint)
    return str(models[0].id)


class ModelThinker(OpenAIThinker):
    """The base of thinkers around a chat model of another library, called once for each thought.

    `complete` takes the chat messages and returns a chat completion, as a dict; whatever it raises is a
    failure of the model, which may pass. `kind` is what the model is called without a `name`. With one,
    the thoughts may be kept in the cache under it.
    """

    library = "model"  # whose model it is, for cache keys

    def __init__(
        self,
        complete: Callable[[list[dict[str, str]]], Mapping[str, Any]],
        *,
        kind: str,
        name: str | None,
        prompt: ChatPrompt | str,
        policy: RequestPolicy | None,
    ) -> None:
        def create(*, messages: list[dict[str, str]], **_: Any) -> Mapping[str, Any]:
            try:
                return complete(messages)
            except Exception as error:
                raise ModelCallError from error

        client = SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=create)))
        super().__init__(name or kind, client=client, prompt=prompt, policy=policy)
        self._name = name

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model!r})"

    @property
    def identity(self) -> str | None:
        """The name that was given, with the prompt; None without a name."""
        return None if self._name is None else f"{self.library} {self._name} prompt {self.prompt.fingerprint}"


def _recorded(answer: Answer) -> Thought:
    if isinstance(answer, Thought):
        return replace(answer, text=whole_sentences(answer.text)) if answer.finish == "length" else answer
    failure = Thought.failure(answer.reason)
    return replace(failure, prompt_tokens=answer.cost[0], completion_tokens=answer.cost[1])


class _Loop(asyncio.SelectorEventLoop):
    async def getaddrinfo(self, *args: Any, **options: Any) -> Any:
        """Looked up in a daemon thread: the end of the program would wait for those of asyncio."""
        return await in_thread(functools.partial(socket.getaddrinfo, *args, **options))


class _Background(Renewed):
    """The event loop of all thinkers of this process, on a daemon thread, started when it is needed.

    Synchronous callers wait for it, whether they are inside of an event loop of their own or not.
    """

    def renew(self) -> None:
        """Begin without a thread: a forked child starts its own."""
        self._lock = Lock()
        self._thread: Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Wait for the result; Ctrl-C, and whatever else interrupts the wait, cancels the work."""
        future, waited_for = asyncio.run_coroutine_threadsafe(work, self._started()), still_waited_for()
        try:
            while not future.done():
                wait([future], TICK)
                waited_for(0)  # ends the call where its only listener has left
        except BaseException:
            future.cancel()
            raise
        return future.result()

    async def awaited(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Wait for the result in another event loop; whoever is cancelled cancels the work."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._started()))

    def start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Have some work done without waiting for it, if the loop runs at all."""
        if self._loop is not None and self._thread is not None and self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(work(), self._loop)

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None or self._thread is None or not self._thread.is_alive():
                self._loop = _Loop()
                self._thread = Thread(
                    target=self._loop.run_forever, name="o1-retriever-endpoint", daemon=True
                )
                self._thread.start()
            return self._loop


_background = _Background()
