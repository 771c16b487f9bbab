"""Who writes the candidates: an endpoint, a model of ours, a causal LM on this machine, a recorded file."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

from o1_retriever.endpoint.problem import Problem
from o1_retriever.endpoint.prompt import ChatPrompt
from o1_retriever.errors import SettingsError, ThinkerError
from o1_retriever.query import as_queries
from o1_retriever.thinkers import Thinker, as_thinker
from o1_retriever.thought import Thought, ThoughtSettings

Answer: TypeAlias = Thought | Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A thought that is wanted: about a query, number `index` of the expert's own for it.

    All asks of a call have the same settings; their seed together with the index fixes the draw.
    """

    query: str
    prompt: ChatPrompt
    index: int
    settings: ThoughtSettings


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

    async def write(self, asks: Sequence[Ask]) -> list[Answer]:
        """A thought or a problem for every ask, in order. Raises `ThinkerError` when none can be had."""
        ...

    async def close(self) -> None:
        """Give back what was opened."""
        ...


class ThinkerExpert:
    """Any thinker as an expert: a recorded file, or a function(queries, n_thoughts).

    It is asked about `batch` queries at a time. Prompts and examples are its own affair.
    """

    at_once = 1

    def __init__(self, thinker: Any, *, batch: int = 32) -> None:
        self.thinker: Thinker = as_thinker(thinker)
        self.batch = batch
        self._turn = threading.Lock()

    @property
    def identity(self) -> str:
        """The thinker's own name."""
        return self.thinker.identity or f"unnamed {type(self.thinker).__name__}"

    async def write(self, asks: Sequence[Ask]) -> list[Answer]:
        """Ask the thinker about all queries at once, in a thread."""
        return await asyncio.to_thread(self._write, list(asks))

    def _write(self, asks: list[Ask]) -> list[Answer]:
        queries = list(dict.fromkeys(ask.query for ask in asks))
        first, last = (pick(ask.index for ask in asks) for pick in (min, max))
        with self._turn:
            settings = asks[0].settings.with_changes(n_thoughts=last + 1)
            rows = self.thinker.think(as_queries(queries), settings=settings, start=first)
        known = dict(zip(queries, rows, strict=True))
        return [_as_answer(known[ask.query][ask.index - first]) for ask in asks]

    async def close(self) -> None:
        """Nothing was opened."""


def spent(answer: Answer) -> tuple[int, int]:
    """Tokens of the prompt and of the completion that an answer has cost."""
    if isinstance(answer, Problem):
        return answer.cost
    return answer.prompt_tokens, answer.completion_tokens


def _as_answer(thought: Thought) -> Answer:
    if not thought.failed:
        return thought
    cost = thought.prompt_tokens, thought.completion_tokens
    return Problem(reason=thought.error or "it could not be had", cost=cost)


def as_experts(value: Any) -> dict[str, Expert]:
    """Experts by name: of a mapping from names to what `as_expert` takes, or one, which is then "expert"."""
    # Lists of texts are recorded thoughts by query, which are one expert.
    recorded = isinstance(value, Mapping) and all(isinstance(each, list | tuple) for each in value.values())
    if not isinstance(value, Mapping) or recorded:
        return {"expert": as_expert(value)}
    return {name: as_expert(each) for name, each in value.items()}


def as_expert(
    value: Any, *, model: str | None = None, device: str | None = None, load_in_4bit: bool = False
) -> Expert:
    """An expert from what users have: an expert, an endpoint's URL with its `model`, a file, a function.

    A text is the URL of an OpenAI-compatible endpoint, the path of a file of recorded thoughts (.jsonl), or
    the folder or Hub id of a causal language model, which runs on `device`. Raises `SettingsError` for
    anything else.
    """
    if not isinstance(value, str | os.PathLike):
        return value if isinstance(value, Expert) else ThinkerExpert(value)
    name = os.fspath(value)
    if name.startswith(("http://", "https://")):
        from o1_retriever_training.endpoint_expert import EndpointExpert

        if not model:
            raise SettingsError(
                f"The expert is {name!r:.80} and its model has no name.",
                hint="Type: --expert-model NAME, as the endpoint knows it",
            )
        return EndpointExpert(model, base_url=name)
    if model:
        raise SettingsError(
            f"Found the model {model!r:.60} beside the expert {name!r:.60}; expected an endpoint.",
            hint="Type: --expert http://127.0.0.1:8000/v1 --expert-model NAME",
        )
    if name.endswith((".jsonl", ".jsonl.gz")):
        if not Path(name).is_file():
            raise ThinkerError(f"There is no file {name}; expected recorded thoughts.")
        return ThinkerExpert(name, batch=256)
    from o1_retriever_training.local_expert import LocalExpert

    return LocalExpert.from_pretrained(name, device=device, load_in_4bit=load_in_4bit)
