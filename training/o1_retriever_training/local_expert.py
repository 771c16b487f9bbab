"""A causal language model on this machine as the expert, run by the engine that also thinks for searches."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from o1_retriever.endpoint.prompt import ChatRequest
from o1_retriever.endpoint.reply import Answer, Problem
from o1_retriever.thinkers.local import read_draft

if TYPE_CHECKING:
    from o1_retriever.engine.decode import Draft
    from o1_retriever.engine.load import LocalModel

_LEAST_ROOM = 8  # tokens for a thought, below which a prompt counts as too long


class LocalExpert:
    """A chat model, a plain language model, or a checkpoint that was trained to think.

    A chat model gets the prompt through its own chat template, a plain one as text; a thinking checkpoint
    gets the query in its own layout, without instruction and examples, as it was trained. The candidates
    of a query share one reading of its prompt. `weights` is a name for the weights (None: their hash).

    Raises `ModelNotFoundError` or `CheckpointError`.
    """

    at_once = 1
    batch = 32

    def __init__(self, model: Any, tokenizer: Any, *, name: str, weights: str | None = None) -> None:
        from o1_retriever.engine.load import assemble, assemble_writer
        from o1_retriever.engine.template import MARKERS

        vocabulary = tokenizer.get_vocab()
        self.thinks = any(all(marker in vocabulary for marker in layout) for layout in MARKERS.values())
        build = assemble if self.thinks else assemble_writer
        self.local: LocalModel = build(name, model, tokenizer, weights=weights)
        self.name = name
        self._turn = threading.Lock()

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
        from o1_retriever.engine.checkpoint import hash_files
        from o1_retriever.engine.load import LoadOptions, load_causal_lm

        loaded = load_causal_lm(name, LoadOptions(device=device, dtype=dtype, load_in_4bit=load_in_4bit))
        # The files' hash: new markers have rows that are drawn anew at every start.
        weights = hash_files(loaded.folder)
        expert = cls(loaded.model, loaded.tokenizer, name=os.fspath(name), weights=weights)
        loaded.lay_out()
        return expert

    @property
    def identity(self) -> str:
        """The model's name, a hash of its weights, and how they are computed."""
        precision = self.local.precision
        return f"{self.name} {self.local.weights[:16]} {precision.quantization or precision.dtype}"

    async def write(self, requests: Sequence[ChatRequest]) -> list[Answer]:
        """Write in a thread, all requests about one prompt together."""
        return await asyncio.to_thread(self._write, list(requests))

    async def close(self) -> None:
        """The model belongs to whoever brought it."""

    def _write(self, requests: list[ChatRequest]) -> list[Answer]:
        from o1_retriever.engine.decode import Job, write_thoughts

        prompts = [self._prompt(request) for request in requests]
        found: dict[int, Answer] = {}
        groups: dict[tuple[int, ...], list[int]] = {}
        for place, prompt in enumerate(prompts):
            if self._room(prompt) < _LEAST_ROOM:
                found[place] = Problem(reason=f"the prompt of {len(prompt)} tokens leaves no room to think")
            else:
                groups.setdefault(prompt, []).append(place)
        jobs = [
            Job(
                prompt=prompt,
                indices=tuple(requests[place].index for place in places),
                room=self._room(prompt),
            )
            for prompt, places in groups.items()
        ]
        settings = requests[0].settings
        members = list(groups.values())
        with self._turn:
            for job, drafts in write_thoughts(self.local, jobs, settings):
                for number, (place, draft) in enumerate(zip(members[job], drafts.drafts, strict=True)):
                    read = len(jobs[job].prompt) if number == 0 else 0
                    found[place] = self._answer(draft, read)
        return [found[place] for place in range(len(requests))]

    def _answer(self, draft: Draft, read: int) -> Answer:
        thought = read_draft(draft, self.local.template.tokenizer, prompt_tokens=read)
        if not thought.failed:
            return thought
        return Problem(reason=thought.error or "", cost=(read, len(draft.token_ids)))

    def _prompt(self, request: ChatRequest) -> tuple[int, ...]:
        template: Any = self.local.template
        asked = template.text_ids([request.query.text])[0] if self.thinks else request.messages
        return tuple(template.prompt(asked))

    def _room(self, prompt: Sequence[int]) -> int:
        template: Any = self.local.template
        return int(template.room(prompt))
