"""Who writes the candidates: an endpoint, a model of ours, a causal LM on this machine, a recorded file."""

from __future__ import annotations

import asyncio
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from o1_retriever.endpoint.chat import ChatRequest
from o1_retriever.endpoint.client import ChatClient
from o1_retriever.endpoint.exchange import Answer, Patience, Problem, RateLimit, RequestPolicy, cost_of
from o1_retriever.errors import SettingsError, ThinkerError
from o1_retriever.thinkers import Thinker, as_thinker, is_address, is_record
from o1_retriever.thinkers.local import write_thoughts_about
from o1_retriever.thought import Thought

if TYPE_CHECKING:
    from o1_retriever.engine.load import LocalModel


@runtime_checkable
class Expert(Protocol):
    """Anything that writes candidates.

    `batch` is how many rows it wants at a time, `at_once` how many such batches, and `identity` names it
    the same in every process.
    """

    @property
    def identity(self) -> str:
        """Who writes, for the manifest and every row."""
        ...

    @property
    def batch(self) -> int:
        """Rows per call."""
        ...

    @property
    def at_once(self) -> int:
        """Calls at a time."""
        ...

    async def write(self, requests: Sequence[ChatRequest]) -> list[Answer]:
        """A thought or a problem for every request, in order. Raises `ThinkerError` when none can be written.

        All requests of a call have the same settings; their index is that of the expert's own for a query.
        """
        ...

    async def close(self) -> None:
        """Give back what was opened."""
        ...


class _HereExpert(ABC):
    """An expert in this process: it is asked about `batch` queries at a time, in a thread."""

    at_once = 1
    batch = 32

    def __init__(self) -> None:
        self._turn = threading.Lock()

    @abstractmethod
    def thoughts(self, requests: Sequence[ChatRequest]) -> list[Thought]:
        """A thought for every request, in order; one that could not be written is a failure."""

    async def write(self, requests: Sequence[ChatRequest]) -> list[Answer]:
        """Write about all requests together."""
        return await asyncio.to_thread(self._write, requests)

    def _write(self, requests: Sequence[ChatRequest]) -> list[Answer]:
        with self._turn:
            thoughts = self.thoughts(requests)
        return [
            Problem(reason=each.error or "it could not be written", cost=cost_of(each))
            if each.failed
            else each
            for each in thoughts
        ]

    async def close(self) -> None:
        """Nothing was opened."""


class ThinkerExpert(_HereExpert):
    """Any thinker as an expert: a recorded file, or a function(queries, n_thoughts).

    Prompts and examples are its own affair.
    """

    def __init__(self, thinker: Any, *, batch: int = 32) -> None:
        super().__init__()
        self.thinker: Thinker = as_thinker(thinker)
        self.batch = batch

    @property
    def identity(self) -> str:
        """The thinker's own name."""
        return self.thinker.identity or f"unnamed {type(self.thinker).__name__}"

    def thoughts(self, requests: Sequence[ChatRequest]) -> list[Thought]:
        """Ask the thinker about all different queries at once."""
        queries = list(dict.fromkeys(request.query for request in requests))
        first, last = (pick(request.index for request in requests) for pick in (min, max))
        settings = requests[0].settings.with_changes(n_thoughts=last + 1)
        known = dict(zip(queries, self.thinker.think(queries, settings=settings, start=first), strict=True))
        return [known[request.query][request.index - first] for request in requests]


class LocalExpert(_HereExpert):
    """A causal language model on this machine: a chat model, a plain one, or one that was trained to think.

    A chat model gets the prompt through its own chat template, a plain one as text; a thinking checkpoint
    gets the query in its own layout, without instruction and examples, as it was trained. The candidates
    of a query share one reading of its prompt. `weights` is a name for the weights (None: their hash).

    Raises `ModelNotFoundError` or `CheckpointError`.
    """

    def __init__(self, model: Any, tokenizer: Any, *, name: str, weights: str | None = None) -> None:
        from o1_retriever.engine.load import assemble, assemble_writer
        from o1_retriever.engine.template import MARKERS

        super().__init__()
        vocabulary = tokenizer.get_vocab()
        self.thinks = any(all(marker in vocabulary for marker in layout) for layout in MARKERS.values())
        build = assemble if self.thinks else assemble_writer
        self.local: LocalModel = build(name, model, tokenizer, weights=weights)
        self.name = name

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        device: str | None = None,
        dtype: str = "auto",
        load_in_4bit: bool = False,
    ) -> LocalExpert:
        """Load from a folder or the Hub (safetensors only); the arguments are those of `ThinkingEmbedder`."""
        from o1_retriever.engine.load import LoadOptions, load_causal_lm

        loaded = load_causal_lm(name, LoadOptions(device=device, dtype=dtype, load_in_4bit=load_in_4bit))
        # The files' hash: new markers have rows that are drawn anew at every start.
        expert = cls(loaded.model, loaded.tokenizer, name=os.fspath(name), weights=loaded.weights)
        loaded.lay_out()
        return expert

    @property
    def identity(self) -> str:
        """The model's name, a hash of its weights, and how they are computed."""
        precision = self.local.precision
        return f"{self.name} {self.local.weights[:16]} {precision.quantization or precision.dtype}"

    def thoughts(self, requests: Sequence[ChatRequest]) -> list[Thought]:
        """Write the thoughts about one prompt together."""
        places: dict[tuple[int, ...], list[int]] = {}
        for place, request in enumerate(requests):
            places.setdefault(self._prompt(request), []).append(place)
        indices = [tuple(requests[place].index for place in own) for own in places.values()]
        written = write_thoughts_about(self.local, list(places), indices, requests[0].settings)
        by_place = {
            place: thought
            for own, thoughts in zip(places.values(), written, strict=True)
            for place, thought in zip(own, thoughts, strict=True)
        }
        return [by_place[place] for place in range(len(requests))]

    def _prompt(self, request: ChatRequest) -> tuple[int, ...]:
        template: Any = self.local.template
        query = template.text_ids([request.query.text])[0] if self.thinks else request.messages
        return tuple(template.prompt(query))


class EndpointExpert:
    """A chat model behind an OpenAI-compatible endpoint, with `policy.concurrency` requests in flight.

    They are sent at the pace of `limit`. `base_url` and `api_key` default to what the `openai` package takes.
    A request that may succeed later is sent again as the policy says. When as many requests in a row as are
    in flight find the server down, or it says that the key, model or address is wrong, `ThinkerError` ends
    the work.

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
        policy = policy or RequestPolicy(concurrency=64, retries=5, deadline=600.0, timeout=300.0)
        self._chat = ChatClient(
            model, base_url=base_url, api_key=api_key, extra_body=extra_body, policy=policy, limit=limit
        )
        self._patience = Patience(policy, silence=0)

    def __str__(self) -> str:
        return str(self._chat)

    @property
    def identity(self) -> str:
        """Model and extra body; the address may change between two runs, and the key is nobody's business."""
        return f"{self._chat.model}{self._chat.extra}"

    @property
    def at_once(self) -> int:
        """Rows whose requests may be waiting for their turn."""
        return self._chat.policy.concurrency + 1

    async def write(self, requests: Sequence[ChatRequest]) -> list[Answer]:
        """One chat request for each, all at once as far as the policy allows."""
        return list(await asyncio.gather(*(self._one(request) for request in requests)))

    async def close(self) -> None:
        """Close the connections; who asks again afterwards starts with new patience."""
        await self._chat.close()
        self._patience = Patience(self._chat.policy, silence=0)

    async def _one(self, request: ChatRequest) -> Answer:
        patience = self._patience
        answer = await self._chat.ask(request, patience)
        if (problem := patience.ended) is None:
            return answer
        if problem.setup:
            raise ThinkerError(f"{self} cannot think: {problem.reason}.", hint=problem.setup)
        raise ThinkerError(
            f"{self} has failed {patience.enough} times in a row; the last time: {problem.reason}.",
            hint="Look after the server, then type the same command with --retry-failed: it goes on.",
        )


def as_experts(value: Any) -> dict[str, Expert]:
    """Experts by name: of a mapping from names to what `as_expert` takes, or one, which is then "expert"."""
    # Lists of texts are recorded thoughts by query, which are one expert.
    recorded = isinstance(value, Mapping) and all(isinstance(each, list | tuple) for each in value.values())
    if not isinstance(value, Mapping) or recorded:
        return {"expert": as_expert(value)}
    return {name: as_expert(each) for name, each in value.items()}


def as_expert(
    value: Any,
    *,
    model: str | None = None,
    policy: RequestPolicy | None = None,
    limit: RateLimit | None = None,
    device: str | None = None,
    load_in_4bit: bool = False,
) -> Expert:
    """An expert from what users have: an expert, an endpoint's URL with its `model`, a file, a function.

    A text is the URL of an OpenAI-compatible endpoint, which is asked as `policy` and `limit` say, the path
    of a file of recorded thoughts (.jsonl), or the folder or Hub id of a causal language model, which runs
    on `device`. Raises `SettingsError` for anything else.
    """
    if not isinstance(value, str | os.PathLike):
        return value if isinstance(value, Expert) else ThinkerExpert(value)
    name = os.fspath(value)
    if is_address(name):
        if not model:
            raise SettingsError(
                f"The expert is {name!r:.80} and its model has no name.",
                hint="Type: --expert-model NAME, as the endpoint knows it",
            )
        return EndpointExpert(model, base_url=name, policy=policy, limit=limit)
    if model:
        raise SettingsError(
            f"Found the model {model!r:.60} beside the expert {name!r:.60}; expected an endpoint.",
            hint="Type: --expert http://127.0.0.1:8000/v1 --expert-model NAME",
        )
    if is_record(name):
        if not Path(name).is_file():
            raise ThinkerError(f"There is no file {name}; expected recorded thoughts.")
        return ThinkerExpert(name, batch=256)
    return LocalExpert.from_pretrained(name, device=device, load_in_4bit=load_in_4bit)
