"""Thoughts written by a model behind an OpenAI-compatible chat endpoint."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Event
from typing import Any
from urllib.parse import urlsplit

from o1_retriever.endpoint.crew import Crew, RequestPolicy, Result, not_asked, persist
from o1_retriever.endpoint.dialect import EXTRA, Dialect
from o1_retriever.endpoint.problem import Problem, diagnose, presentable
from o1_retriever.endpoint.prompt import DEFAULT_PROMPT, ChatPrompt, as_prompt
from o1_retriever.endpoint.reply import read_reply
from o1_retriever.errors import SettingsError, ThinkerError
from o1_retriever.extras import require
from o1_retriever.query import Query
from o1_retriever.thought import Thought, ThoughtSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Job:
    query: Query
    index: int
    settings: ThoughtSettings


class OpenAIThinker:
    """A chat model behind an OpenAI-compatible endpoint: vLLM, Ollama, llama.cpp, or a hosted one.

    `base_url` and `api_key` default to what the `openai` package takes (`OPENAI_BASE_URL`,
    `OPENAI_API_KEY`); a server of your own needs no key. Or bring a `client` (`openai.OpenAI`, an Azure
    one, or anything with their `chat.completions.create`): it keeps its address, key and headers.
    `prompt` is a `ChatPrompt`, or a message with `{query}` in it. `extra_body` goes into every request,
    for what only your server knows. `policy` bounds time, retries and parallel requests.

    One request is sent per thought, so that a thought depends on the query, the seed and its own index
    alone, as far as the server keeps its promise about seeds. The API key is in no message, name or log.

    Raises `MissingExtraError` without the `endpoint` extra, and `SettingsError` for unusable arguments.
    """

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
    ) -> None:
        if not isinstance(model, str) or not model.strip():
            raise SettingsError(f"model is {model!r:.60}; expected the name by which the endpoint knows it.")
        if client is not None and (base_url or api_key):
            raise SettingsError(
                "A client was passed with a base_url or an api_key.", hint="Pass one of both."
            )
        self.model = model
        self.prompt = as_prompt(prompt)
        self.policy = policy or RequestPolicy()
        self._extra_body = _plain(extra_body)
        self._client = _open(base_url, api_key) if client is None else _borrowed(client)
        self._owned = client is None
        self._dialect = Dialect()
        self._was_down = False
        address = getattr(self._client, "base_url", None)
        self.address = None if address is None else _public(str(address))

    def __repr__(self) -> str:
        return f"OpenAIThinker({self.model!r}, base_url={self.address!r})"

    @property
    def identity(self) -> str | None:
        """Address, model, prompt and extra body; None for a client that does not tell its `base_url`."""
        if self.address is None:
            return None
        extra = json.dumps(self._extra_body, sort_keys=True).encode()
        body = f" extra {hashlib.blake2b(extra, digest_size=8).hexdigest()}" if self._extra_body else ""
        return f"endpoint {self.address} model {self.model} prompt {self.prompt.fingerprint}{body}"

    def close(self) -> None:
        """Close the connections, unless the client was brought by the caller."""
        if self._owned:
            self._client.close()

    def think(
        self, queries: Sequence[Query], *, settings: ThoughtSettings, start: int = 0
    ) -> list[list[Thought]]:
        """Thoughts `start` to `settings.n_thoughts - 1` about every query, in the order of the queries.

        What was said before a query is sent as the messages before it (see `ChatPrompt.messages`).

        A thought that could not be had is a recorded failure with its reason, and one warning counts
        them. Raises `ThinkerError` when nothing can succeed before the caller changes something (wrong
        key, model or address), and none of this call's thoughts had been written.
        """
        indices = range(start, settings.n_thoughts)
        jobs = [_Job(query, index, settings) for query in queries for index in indices]
        results = self._work_through(jobs)
        self._report(results)
        thoughts = [_recorded(result) for result in results]
        each = len(indices)
        return [thoughts[place * each : (place + 1) * each] for place in range(len(queries))]

    def _work_through(self, jobs: list[_Job]) -> list[Result]:
        """Ask for all; when the last call was given up, find out first with one request, sent once."""
        probe: list[Result] = []
        if self._was_down and jobs:
            probe = Crew(jobs[:1], self._ask_once, self.policy).run()
            if isinstance(probe[0], Problem) and (probe[0].down or probe[0].setup):
                return [*probe, *(not_asked(probe[0]) for _ in jobs[1:])]
        crew = Crew(jobs[len(probe) :], self._ask, self.policy)
        results = crew.run()
        self._was_down = crew.ended is not None
        return probe + results

    def _ask_once(self, job: _Job, stop: Event) -> Result:
        return self._attempt(job, min(self.policy.timeout, self.policy.deadline))

    def _ask(self, job: _Job, stop: Event) -> Result:
        return persist(lambda timeout: self._attempt(job, timeout), self.policy, stop)

    def _attempt(self, job: _Job, timeout: float) -> Result:
        result = self._exchange(job, timeout)
        if isinstance(result, Thought):
            return result
        return presentable(result, secret=getattr(self._client, "api_key", None))

    def _exchange(self, job: _Job, timeout: float) -> Result:
        """One request, and at once another where the server refuses a parameter that can be left out."""
        while True:
            sent = self._dialect.request(self.prompt.messages(job.query), _parameters(job))
            named = {name: value for name, value in sent.items() if name not in EXTRA}
            extra = {name: sent[name] for name in EXTRA & sent.keys()} | self._extra_body
            try:
                reply = self._client.chat.completions.create(
                    model=self.model, **named, extra_body=extra, timeout=timeout
                )
            except Exception as error:
                if self._dialect.learn(error, sent):
                    continue
                problem = diagnose(error, timeout=timeout)
                if problem is None:
                    reason = f"The client of {self!r} failed: {type(error).__name__}: {error}"
                    raise ThinkerError(reason) from error
                return problem
            return read_reply(reply, limit=job.settings.max_new_tokens)

    def _report(self, results: Sequence[Result]) -> None:
        problems = [result for result in results if isinstance(result, Problem)]
        if not problems:
            return
        setup = next((problem for problem in problems if problem.setup), None)
        if setup and len(problems) == len(results):
            raise ThinkerError(f"{self!r} cannot think: {setup.reason}.", hint=setup.setup)
        (reason, count), *others = Counter(problem.reason for problem in problems).most_common()
        logger.warning(
            "%d of %d thoughts could not be had from %r. %s of them: %s%s",
            len(problems),
            len(results),
            self,
            count if others else "All",
            reason,
            f" (and {len(others)} other reasons)" if others else "",
        )


def _parameters(job: _Job) -> dict[str, Any]:
    digest = hashlib.blake2b(f"{job.settings.seed}:{job.index}".encode(), digest_size=4).digest()
    parameters = {
        "temperature": job.settings.temperature,
        "top_p": job.settings.top_p,
        "max_tokens": job.settings.max_new_tokens,
        "seed": int.from_bytes(digest) >> 1,  # 31 bits: some servers read a signed 32-bit number
    }
    if job.settings.repetition_penalty != 1:
        parameters["repetition_penalty"] = job.settings.repetition_penalty
    return parameters


def _recorded(result: Result) -> Thought:
    if isinstance(result, Thought):
        return result
    failure = Thought.failure(result.reason)
    return replace(failure, prompt_tokens=result.cost[0], completion_tokens=result.cost[1])


def _open(base_url: str | None, api_key: str | None) -> Any:
    openai = require("openai", extra="endpoint", purpose="A thinker behind an endpoint")
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
    # Retries are ours (`RequestPolicy`): two layers of them would multiply.
    return openai.OpenAI(base_url=base_url, api_key=key, max_retries=0)


def _borrowed(client: Any) -> Any:
    if not callable(getattr(getattr(getattr(client, "chat", None), "completions", None), "create", None)):
        raise SettingsError(
            f"client is a {type(client).__name__}; expected one with chat.completions.create.",
            hint="For example openai.OpenAI(base_url=..., api_key=...).",
        )
    if any(kind.__name__ == "AsyncAPIClient" for kind in type(client).__mro__):
        raise SettingsError(f"client is a {type(client).__name__}; expected a synchronous one.")
    return client.with_options(max_retries=0) if hasattr(client, "with_options") else client


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
