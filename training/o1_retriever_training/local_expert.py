"""A causal language model on this machine as the expert, run by the engine that also thinks for searches."""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from o1_retriever.endpoint.prompt import ChatRequest
from o1_retriever.endpoint.reply import Answer, Problem, without_reasoning
from o1_retriever.thought import Thought

if TYPE_CHECKING:
    from o1_retriever.engine.load import LocalModel

_ROOM_AFTER = 2  # the engine feeds an end and `<emb>` behind every thought
_LEAST_ROOM = 8  # tokens for a thought, below which a prompt counts as too long
# Stands for a message while its chat template is rendered: characters that mean nothing to anybody.
_MARK = re.compile("\ue000([0-9]+)\ue001")


def _mark(place: int) -> str:
    return f"\ue000{place}\ue001"


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
        from o1_retriever.engine.load import assemble
        from o1_retriever.engine.template import MARKERS

        vocabulary = tokenizer.get_vocab()
        self.thinks = any(all(marker in vocabulary for marker in layout) for layout in MARKERS.values())
        if not self.thinks:
            # The engine's rows end in `<emb>`. No weight that writes text depends on the new rows.
            tokenizer.add_tokens(list(MARKERS["paper"]), special_tokens=True)
            if len(tokenizer) > model.get_input_embeddings().num_embeddings:
                model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        self.local: LocalModel = assemble(name, model, tokenizer, weights=weights)
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

    def _answer(self, draft: Any, read: int) -> Answer:
        cost = read, len(draft.token_ids)
        text = self.local.template.tokenizer.decode(list(draft.token_ids), skip_special_tokens=True)
        text, unfinished = without_reasoning(text, cut=draft.finish == "length")
        if unfinished or not text.strip():
            said = "the model was still reasoning at its limit" if unfinished else "the thought is empty"
            return Problem(reason=said, cost=cost)
        return Thought(text=text, finish=draft.finish, prompt_tokens=cost[0], completion_tokens=cost[1])

    def _prompt(self, request: ChatRequest) -> tuple[int, ...]:
        template = self.local.template
        tokenizer = template.tokenizer
        if self.thinks:
            return tuple(template.prompt(template.text_ids([request.query.text])[0]))
        messages = request.messages
        if not getattr(tokenizer, "chat_template", None):
            text = "\n\n".join(message["content"] for message in messages)
            opening = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
            return (*opening, *template.text_ids([text + "\n"])[0])
        try:
            return self._chat(messages)
        except Exception:  # a template may refuse a system message, each with an exception of its own
            merged = "\n\n".join(message["content"] for message in messages)
            return self._chat([{"role": "user", "content": merged}])

    def _chat(self, messages: list[dict[str, str]]) -> tuple[int, ...]:
        """The ids of a chat, in which the template alone has special tokens, whatever the messages spell."""
        template = self.local.template
        tokenizer = template.tokenizer
        empty = [{**message, "content": _mark(place)} for place, message in enumerate(messages)]
        rendered = tokenizer.apply_chat_template(empty, add_generation_prompt=True, tokenize=False)
        ids: list[int] = []
        for number, piece in enumerate(_MARK.split(rendered)):
            if number % 2:
                ids += template.text_ids([messages[int(piece)]["content"]])[0]
            elif piece:
                ids += tokenizer(piece, add_special_tokens=False)["input_ids"]
        return tuple(ids)

    def _room(self, prompt: Sequence[int]) -> int:
        positions = getattr(self.local.model.config.get_text_config(), "max_position_embeddings", None)
        longest = self.local.template.max_length if self.thinks else positions or 1 << 20
        return int(longest) - len(prompt) - _ROOM_AFTER
