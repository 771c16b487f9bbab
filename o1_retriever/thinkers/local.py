"""Thoughts written by a language model on this machine that was not trained by this method."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from o1_retriever.concurrency.processes import SentModel
from o1_retriever.concurrency.shared import finished
from o1_retriever.endpoint.chat import (
    DEFAULT_PROMPT,
    DEFAULT_SAMPLING,
    ChatPrompt,
    Reasoning,
    as_prompt,
    check_reasoning,
    read_written,
    refused,
    whole_sentences,
)
from o1_retriever.engine.checkpoint import read_stored
from o1_retriever.engine.follow import follower, unheard
from o1_retriever.query import Query
from o1_retriever.thinkers.config import Correction, ThinkerConfig
from o1_retriever.thought import Thought, ThoughtSettings, Vector, distinct
from o1_retriever.vectors import Precision

if TYPE_CHECKING:
    from o1_retriever.engine.load import LocalModel
    from o1_retriever.engine.rows import Draft

logger = logging.getLogger(__name__)

_LEAST_ROOM = 8  # tokens for a thought, below which a prompt counts as too long


class LocalThinker(SentModel):
    """A causal language model on this machine: a folder or Hub id of transformers, or a `.gguf` file.

    The folder may be an adapter's (`adapter_config.json`), which is added to the base that it names. A
    thinker that was trained brings its own prompt and settings (`o1_thinker.json`).

    A chat model gets the prompt through its own chat template, a base model as plain text. The system prompt
    and the examples are read once for all queries, and the thoughts of one query share the rest of its
    prompt. `system_prompt` and `examples` (pairs of a query and a good thought) stand in for those of
    `prompt`, a `ChatPrompt` or a user message with `{query}` in it (None: a trained thinker's own, else one
    for models that were not trained to think); an empty one takes them away. `reasoning="off"` lets models
    that reason first begin with their answer; "thought" lets them reason, and where their tokens run out
    before they answer, the reasoning is the thought.

    `dtype` "fastest" is bfloat16 with weights of 8 bits on a processor that multiplies in it, else float32 or
    int8, whichever is faster (`precision` tells). The other arguments are those of
    `ThinkingEmbedder.from_pretrained`. Or pass a loaded `model` with its `tokenizer`, and the `correction`
    that was trained with it.

    Raises `ModelNotFoundError` when there is no such model and `CheckpointError` for one that does not write.
    """

    default_settings: Mapping[str, Any] = DEFAULT_SAMPLING

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        device: str | None = None,
        dtype: str = "fastest",
        load_in_4bit: bool = False,
        revision: str | None = None,
        trust_remote_code: bool = False,
        system_prompt: str | None = None,
        examples: Sequence[tuple[str, str]] | None = None,
        prompt: ChatPrompt | str | None = None,
        reasoning: Reasoning = "off",
        correction: Correction | None = None,
    ) -> None:
        from o1_retriever.engine.load import LoadOptions, assemble_writer, load_causal_lm

        check_reasoning(reasoning)
        self.prompt = as_prompt(prompt or DEFAULT_PROMPT, system=system_prompt, examples=examples)
        self.reasoning, self.correction = reasoning, correction
        if not isinstance(model, str | os.PathLike):
            name = type(model).__name__
            self.local: LocalModel = assemble_writer(name, model, tokenizer, **self._chat)
            self.default_settings = _preferred(None, _size(model))
            return
        options = LoadOptions(
            device=device,
            dtype="auto" if load_in_4bit and dtype == "fastest" else dtype,
            load_in_4bit=load_in_4bit,
            revision=revision,
            trust_remote_code=trust_remote_code,
            writes=True,
        )
        name, loaded = os.fspath(model), load_causal_lm(model, options)
        folder = loaded.adapter or loaded.folder
        config = ThinkerConfig.beside(folder)
        if config is not None:
            self.prompt = as_prompt(prompt or config.prompt, system=system_prompt, examples=examples)
            self.correction = correction or config.correction
        self.default_settings = _preferred(config, _size(loaded.model))
        self.local = assemble_writer(
            name, loaded.model, loaded.tokenizer, **self._chat, weights=loaded.weights
        )
        if not getattr(loaded.tokenizer, "chat_template", None):
            logger.warning(
                "%s has no chat template: it is asked as a base model, in lines of Question and Answer. "
                "That of a chat model is the file chat_template.jinja beside its tokenizer.",
                name,
            )
        loaded.lay_out()

    @property
    def _chat(self) -> dict[str, Any]:
        """What all prompts begin with, and whether the model reasons."""
        return {"shared": self.prompt.messages(Query("?"))[:-1], "reasons": self.reasoning == "thought"}

    def __repr__(self) -> str:
        return f"LocalThinker({self.local.name!r})"

    @property
    def precision(self) -> Precision:
        """How it computes: what "fastest" has come to."""
        return self.local.precision

    @property
    def weights_hash(self) -> str:
        """The hash of the files."""
        return self.local.weights

    @property
    def identity(self) -> str | None:
        """A hash of the weights, how they are computed, and the prompt."""
        how = f"{self.precision.to_dict()} prompt {self.prompt.fingerprint} reasoning {self.reasoning}"
        return f"local {self.local.weights} {how}"

    def corrections(self, queries: Sequence[str]) -> Iterator[tuple[int, Vector]]:
        """(place, W h) of each query: what is added to the encoder's vector; h is the prompt's last state."""
        from o1_retriever.engine.passes import embed_sequences

        assert self.correction is not None
        template: Any = self.local.template
        prompts = [list(template.prompt(self.prompt.messages(Query(text)))) for text in queries]
        for place, state in embed_sequences(self.local, prompts):
            yield place, self.correction.of(state[None])[0]

    def think(
        self, queries: Sequence[Query], *, settings: ThoughtSettings, start: int = 0
    ) -> list[list[Thought]]:
        """Thoughts `start` to `settings.n_thoughts - 1` about every query, in the order of the queries.

        A thought that was cut at its limit ends with its last whole sentence, where it has one. One that
        nearly repeats an earlier one is drawn once more. One that is empty, or still reasoning at the limit,
        is a recorded failure.
        """
        template: Any = self.local.template
        prompts = [tuple(template.prompt(self.prompt.messages(query))) for query in queries]

        async def write(numbers: Sequence[tuple[int, ...]], again: bool) -> list[list[Thought]]:
            with unheard() if again else nullcontext():
                return write_thoughts_about(self.local, prompts, numbers, settings, reasoning=self.reasoning)

        return finished(distinct(len(prompts), settings, start, write))


# A chat model with fewer parameters often says what is near the truth and not true: what it adds to a search
# is most where the query counts five times as much as its thoughts (docs/guard.md).
_SMALL, DOUBT = 1_000_000_000, {"query_weight": 5.0}


def _preferred(config: ThinkerConfig | None, parameters: int) -> Mapping[str, Any]:
    """How a model is sampled: a trained thinker as its config wants, any other as usual, with doubt if small.

    A size of 0 is one that nobody knows.
    """
    own = config.settings if config is not None else DOUBT if 0 < parameters < _SMALL else {}
    return {**LocalThinker.default_settings, **own}


def _size(model: Any) -> int:
    counted = getattr(model, "num_parameters", None)
    return counted() if counted is not None else 0


def settings_of_folder(folder: Path) -> Mapping[str, Any]:
    """What a model in a folder prefers, which is not loaded for it."""
    config = ThinkerConfig.beside(folder)
    told = config is None and folder.is_dir()
    return _preferred(config, read_stored(folder).parameters if told else 0)


def write_thoughts_about(
    local: LocalModel,
    prompts: Sequence[tuple[int, ...]],
    indices: Sequence[tuple[int, ...]],
    settings: ThoughtSettings,
    *,
    reasoning: Reasoning = "off",
) -> list[list[Thought]]:
    """The thoughts of the given indices about every prompt, in order.

    The thoughts about one prompt share its reading: its tokens are counted with the first of them. A prompt
    that leaves no room to think has failures.
    """
    from o1_retriever.engine.decode import write_thoughts
    from o1_retriever.engine.rows import Job

    template: Any = local.template
    rows: dict[int, list[Thought]] = {}
    jobs, places = [], []
    for place, (prompt, own) in enumerate(zip(prompts, indices, strict=True)):
        room = template.room(prompt)
        if room < _LEAST_ROOM:
            long = f"The prompt of {len(prompt)} tokens leaves no room to think."
            rows[place] = [Thought.failure(long) for _ in own]
        elif own:
            jobs.append(Job(prompt=prompt, indices=own, room=room))
            places.append(place)
    for job, drafts in write_thoughts(local, jobs, settings, follower=follower(template.tokenizer, places)):
        read = len(jobs[job].prompt)
        rows[places[job]] = [
            read_draft(draft, template.tokenizer, prompt_tokens=0 if number else read, reasoning=reasoning)
            for number, draft in enumerate(drafts.drafts)
        ]
    gone = Thought.failure("Nobody waited for this thought any more.")
    return [rows.get(place, [gone] * len(own)) for place, own in enumerate(indices)]


def read_draft(draft: Draft, tokenizer: Any, *, prompt_tokens: int, reasoning: Reasoning = "off") -> Thought:
    """What a model wrote as a thought: without its reasoning, and where it was cut up to its last sentence.

    One that is empty, a refusal, or still reasoning at its limit, is a recorded failure. With
    `reasoning="thought"` the reasoning counts where nothing else was written.
    """
    cut = draft.finish != "eos"
    # Special tokens are kept for the reading: some families mark their reasoning with them.
    written = read_written(tokenizer.decode(list(draft.token_ids), skip_special_tokens=False), cut=cut)
    text = written.thought(reasoning)
    for token in tokenizer.all_special_tokens:
        text = text.replace(token, "")
    text = (whole_sentences(text) if cut else text).strip()
    thought = Thought(text=text, finish=draft.finish)
    if not text or refused(text):
        why = "The thought is empty." if not text else f"The model refused: {text}"
        thought = Thought.failure(
            "The model was still reasoning at its limit." if written.unfinished else why
        )
    return replace(thought, prompt_tokens=prompt_tokens, completion_tokens=len(draft.token_ids))
