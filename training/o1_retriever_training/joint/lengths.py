"""How long the sequences of a batch are: sampled from the rows that are here, else the recipe's limits."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import torch

from o1_retriever.engine.batching import forward_tokens
from o1_retriever.engine.template import MARKERS, Template, TemplateConfig
from o1_retriever.errors import O1RetrieverError
from o1_retriever_training.joint.recipe import Source, TrainRecipe
from o1_retriever_training.reading import HUB, count_rows, read_rows
from o1_retriever_training.rows import Row

Chunk: TypeAlias = tuple[int, int]  # sequences, and the columns of the longest

_SAMPLE, _BATCHES, _DRAWN = 300, 8, 1024
_CHARACTERS = 4  # of a token, where there is no tokenizer to ask


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """One row in tokens: its query alone and with its thought (None without), labels, documents."""

    fast: int
    thinking: int | None
    labels: int
    documents: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSize:
    """What one process reads in a step, on average.

    `tokens` are without padding, `labels` those that are predicted. `queries` and `documents` are the
    forwards, each (sequences, columns), of `batches` steps together.
    """

    tokens: float
    labels: float
    queries: tuple[Chunk, ...]
    documents: tuple[Chunk, ...]
    batches: int

    @property
    def padded(self) -> float:
        """Tokens that are computed, padding included."""
        return sum(count * width for count, width in (*self.queries, *self.documents)) / self.batches

    @property
    def longest(self) -> int:
        """Tokens of the largest forward, padding included."""
        return max((count * width for count, width in (*self.queries, *self.documents)), default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """What is known of the data: the `rows` of each source (None: unknown), the step's size, and how."""

    rows: tuple[int | None, ...]
    step: StepSize
    note: str


def sample(recipe: TrainRecipe, device: str = "cpu") -> Sampled:
    """Look at the first rows of every source that is here; where there are none, take the limits.

    `device` is cpu or cuda, on which it depends how much one forward takes.
    """
    tokens = chunk_tokens(recipe, device)
    found: list[Lengths] = []
    counts: list[int | None] = []
    template, exact = _template(recipe)
    for source in recipe.data.train:
        here = not source.path.startswith(HUB) and Path(source.path).is_file()
        count = count_rows(source.path, show=True) if here else None
        counts.append(_least(count, source.rows))
        if here:
            rows = islice(read_rows(source.path), _least(source.rows, _SAMPLE))
            found += [_lengths(row, source, recipe, template) for row in rows]
    if not found:
        note = "No rows are here to look at: every sequence is taken to be as long as the recipe allows."
        return Sampled(rows=tuple(counts), step=_at_the_limits(recipe, tokens), note=note)
    how = "" if exact else " (no tokenizer is here: a token is taken to have four characters)"
    note = f"Lengths are those of {len(found):,} rows{how}."
    return Sampled(rows=tuple(counts), step=_of_batches(found, recipe, tokens), note=note)


def _least(*values: int | None) -> int | None:
    given = [value for value in values if value is not None]
    return min(given) if given else None


class _Characters:
    """Stands for a tokenizer that is not here."""

    eos_token_id = 0
    sep_token_id = unk_token_id = None
    all_special_ids: tuple[int, ...] = ()

    def __init__(self) -> None:
        self.added_tokens_decoder: dict[int, Any] = {}

    def get_vocab(self) -> dict[str, int]:
        markers = sorted({marker for each in MARKERS.values() for marker in each})
        return {marker: -1 - place for place, marker in enumerate(markers)}

    def get_added_vocab(self) -> dict[str, int]:
        return {}

    def __call__(self, texts: Sequence[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[1] * (len(text) // _CHARACTERS + 1) for text in texts]}


def _template(recipe: TrainRecipe) -> tuple[Template, bool]:
    """The template of training, and whether it counts real tokens."""
    data = recipe.data
    config = TemplateConfig(
        layout=recipe.model.layout, max_query_tokens=data.max_query_tokens, max_length=data.max_length
    )
    tokenizer = _tokenizer(recipe.model.base)
    if tokenizer is not None:
        missing = [marker for marker in MARKERS[config.layout] if marker not in tokenizer.get_vocab()]
        tokenizer.add_tokens(missing, special_tokens=True)
    used = tokenizer or _Characters()
    return Template(used, config, instruction=data.instruction), tokenizer is not None


def _tokenizer(base: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(base, local_files_only=True)
    except (OSError, ValueError, KeyError, O1RetrieverError):
        return None


def _lengths(row: Row, source: Source, recipe: TrainRecipe, template: Template) -> Lengths:
    thought = None if source.thoughts == "none" else row.thought
    if thought is None and source.thoughts != "none" and row.usable:
        thought = row.all_thought[row.usable[0]]
    texts = [row.query, *([thought] if thought else []), *row.pos[:1]]
    if row.pos:
        texts += row.neg[: recipe.data.group - 1]
    ids = template.text_ids(texts)
    query, rest = ids[0], ids[1:]
    prompt = template.prompt(query)
    thinking, labels = None, 0
    if thought:
        thinking = len(template.thinking_query(query, rest[0]))
        labels, rest = thinking - len(prompt) - 1, rest[1:]
    most = recipe.data.max_document_tokens
    documents = tuple(min(most, len(template.document(each))) for each in rest)
    return Lengths(
        fast=len(template.fast_query(query)), thinking=thinking, labels=labels, documents=documents
    )


def _of_batches(rows: Sequence[Lengths], recipe: TrainRecipe, tokens: int) -> StepSize:
    size = recipe.optimisation.queries
    batches = max(_BATCHES, _DRAWN // size)
    draw = random.Random(0)
    order: list[Lengths] = []
    while len(order) < size * batches:
        order += draw.sample(rows, len(rows))
    read = labels = 0
    queries: list[Chunk] = []
    documents: list[Chunk] = []
    for number in range(batches):
        sequences: list[int] = []
        passages: list[int] = []
        for row in order[number * size : (number + 1) * size]:
            dropped = draw.random() < recipe.losses.thought_dropout and bool(row.documents)
            thinks = row.thinking is not None and not dropped
            sequences.append(row.thinking if thinks and row.thinking else row.fast)
            labels += row.labels if thinks else 0
            passages += row.documents
        read += sum(sequences) + sum(passages)
        queries += chunks(sequences, tokens)
        documents += chunks(passages, tokens)
    return StepSize(
        tokens=read / batches,
        labels=labels / batches,
        queries=tuple(queries),
        documents=tuple(documents),
        batches=batches,
    )


def _at_the_limits(recipe: TrainRecipe, tokens: int) -> StepSize:
    data, size = recipe.data, recipe.optimisation.queries
    thinks = any(source.thoughts != "none" for source in data.train)
    longest = data.max_length if thinks else data.max_query_tokens
    kept = 1 - recipe.losses.thought_dropout if thinks else 0.0
    queries = [longest] * round(size * kept) + [data.max_query_tokens] * (size - round(size * kept))
    documents = [data.max_document_tokens] * size * data.group
    return StepSize(
        tokens=sum(queries) + sum(documents),
        labels=kept * size * (data.max_length - data.max_query_tokens),
        queries=tuple(chunks(queries, tokens)),
        documents=tuple(chunks(documents, tokens)),
        batches=1,
    )


def chunk_tokens(recipe: TrainRecipe, device: str) -> int:
    """How many tokens, padding included, a forward of a training has at most."""
    return recipe.chunk_tokens or forward_tokens(torch.device(device))


def chunks(lengths: Sequence[int], tokens: int) -> list[Chunk]:
    """The forwards that sequences of these lengths make, longest first, each of at most so many tokens."""
    longest = sorted(lengths, reverse=True)
    found: list[Chunk] = []
    at = 0
    while at < len(longest):
        count = min(max(1, tokens // longest[at]), len(longest) - at)
        found.append((count, longest[at]))
        at += count
    return found
