"""How large a model and its batches are, without reading weights.

The shape of a model is counted on a copy without memory. The lengths of sequences are sampled from the rows
that are here, else they are the recipe's limits.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import torch

from o1_retriever.engine.batching import forward_tokens
from o1_retriever.engine.template import MARKERS, Layout, Template, TemplateConfig
from o1_retriever.errors import ModelNotFoundError, O1RetrieverError, SettingsError
from o1_retriever_training.joint.recipe import ModelSection, Source, TrainRecipe, looks_local
from o1_retriever_training.joint.rows import is_document
from o1_retriever_training.reading import HUB, count_rows, read_rows
from o1_retriever_training.rows import TrainingRow

_QWEN = {"model_type": "qwen2", "max_position_embeddings": 131072, "tokens": 151665}
_MISTRAL = {
    "model_type": "mistral",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
}


def _llama(vocabulary: int, shape: str, positions: int) -> dict[str, Any]:
    return {"model_type": "llama", "tokens": vocabulary, "max_position_embeddings": positions} | _sizes(
        shape, vocabulary
    )


def _sizes(shape: str, vocabulary: int, *, tied: bool = False) -> dict[str, Any]:
    """Width, layers, heads, heads of keys and values, and width of the inner layer."""
    names = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "intermediate_size",
    )
    found = dict(zip(names, map(int, shape.split()), strict=True))
    return found | {"vocab_size": vocabulary, "tie_word_embeddings": tied}


# The paper's backbones, so that their cost can be known before anything is downloaded. `tokens` is how many
# their tokenizers know: the tables of Qwen2.5 have rows to spare.
_KNOWN: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-0.5B": _QWEN | _sizes("896 24 14 2 4864", 151936, tied=True),
    "Qwen/Qwen2.5-1.5B": _QWEN | _sizes("1536 28 12 2 8960", 151936, tied=True),
    "Qwen/Qwen2.5-3B": _QWEN | _sizes("2048 36 16 2 11008", 151936, tied=True),
    "Qwen/Qwen2.5-7B": _QWEN | _sizes("3584 28 28 4 18944", 152064),
    "meta-llama/Llama-3.1-8B": _llama(128256, "4096 32 32 8 14336", 131072),
    "meta-llama/Llama-2-7b-hf": _llama(32000, "4096 32 32 32 11008", 4096),
    "mistralai/Mistral-7B-v0.1": _MISTRAL | {"vocab_size": 32000, "tokens": 32000},
    "mistralai/Mistral-7B-v0.3": _MISTRAL | {"vocab_size": 32768, "tokens": 32768},
}


@dataclass(frozen=True, slots=True)
class LinearLayer:
    """A matrix product: its name in its block, and its widths."""

    name: str
    inputs: int
    outputs: int

    @property
    def parameters(self) -> int:
        """Weights, without a bias."""
        return self.inputs * self.outputs

    def is_any_of(self, names: Sequence[str]) -> bool:
        """Whether it goes by one of these names, which may leave out the first parts of its own."""
        return any(f".{self.name}".endswith(f".{name}") for name in names)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a model consists of. `head` has the matrix products that make logits, `linear` all before them."""

    parameters: int
    layers: int
    width: int
    vocabulary: int
    heads: int
    query_width: int  # of all heads together
    inner: int
    gated: bool
    attention_dropout: bool
    linear: tuple[LinearLayer, ...]
    head: tuple[LinearLayer, ...]
    added: int  # markers that the base lacks
    known: bool  # from the table: nobody has looked at the model itself

    @cached_property
    def block(self) -> tuple[LinearLayer, ...]:
        """The matrix products of one layer."""
        return self.linear[: max(1, len(self.linear) // self.layers)]

    @property
    def linear_parameters(self) -> int:
        """Weights of all matrix products before the head."""
        return sum(layer.parameters for layer in self.linear)

    def adapted(self, model: ModelSection) -> list[LinearLayer]:
        """The layers that get low-rank matrices."""
        return [layer for layer in (*self.linear, *self.head) if layer.is_any_of(model.lora.targets)]

    def trained(self, model: ModelSection) -> int:
        """How many numbers the optimizer moves: with LoRA the matrices and the rows of the markers.

        Raises `SettingsError` when LoRA would adapt nothing.
        """
        if model.tuning == "full":
            return self.parameters
        rank, adapted = model.lora.rank, self.adapted(model)
        if not adapted:
            names = {layer.name.rpartition(".")[2] for layer in self.linear}
            raise SettingsError(
                f"model.lora.targets is {list(model.lora.targets)}; {model.base} has none of these.",
                hint=f"Its linear layers are {', '.join(sorted(names))}.",
            )
        matrices = sum(rank * (layer.inputs + layer.outputs) for layer in adapted)
        return matrices + len(MARKERS[model.layout]) * self.width


def shape_of(model: ModelSection) -> Shape:
    """The shape of a recipe's base with its markers added.

    Raises `ModelNotFoundError` when the base is neither here, nor well known, nor to be had from the Hub.
    """
    import torch
    from transformers import AutoModelForCausalLM

    known = None if looks_local(model.base) else _KNOWN.get(model.base)
    config, missing, tokens = _config(model.base, model.layout, known)
    with torch.device("meta"):
        empty: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
        if tokens + missing > empty.get_input_embeddings().num_embeddings:
            empty.resize_token_embeddings(tokens + missing, mean_resizing=False)
    return _measure(empty, missing, known is not None)


def _config(base: str, layout: Layout, known: dict[str, Any] | None) -> tuple[Any, int, int]:
    """The config, how many markers the tokenizer lacks, and how many tokens it has."""
    from transformers import AutoConfig, AutoTokenizer

    if known is not None:
        fields = {name: value for name, value in known.items() if name not in ("model_type", "tokens")}
        return AutoConfig.for_model(known["model_type"], **fields), len(MARKERS[layout]), known["tokens"]
    try:
        config = AutoConfig.from_pretrained(base)
        tokenizer = AutoTokenizer.from_pretrained(base)
    except (OSError, ValueError, KeyError) as error:
        said = str(error).strip().splitlines()[0]
        raise ModelNotFoundError(
            f"The shape of model.base {base!r} cannot be known: {said}",
            hint="Give a folder with config.json and a tokenizer, a Hub id while the Hub can be reached, "
            f"or one of {', '.join(_KNOWN)}.",
        ) from error
    vocabulary = tokenizer.get_vocab()
    missing = sum(marker not in vocabulary for marker in MARKERS[layout])
    return config, missing, len(tokenizer)


def _measure(empty: Any, missing: int, known: bool) -> Shape:
    from torch import nn

    text = empty.config.get_text_config()
    body = {id(part) for part in empty.base_model.modules()}
    linear: list[LinearLayer] = []
    head: list[LinearLayer] = []
    for name, part in empty.named_modules():
        if isinstance(part, nn.Linear):
            kind = linear if id(part) in body else head
            kind.append(LinearLayer(name, part.in_features, part.out_features))
    heads = text.num_attention_heads
    dropouts = (getattr(text, name, 0.0) for name in ("attention_dropout", "attention_probs_dropout_prob"))
    head_width = getattr(text, "head_dim", None) or text.hidden_size // heads
    inner = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    return Shape(
        parameters=_count(empty.parameters()),
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        vocabulary=empty.get_input_embeddings().num_embeddings,
        heads=heads,
        query_width=heads * head_width,
        inner=inner,
        gated=any(layer.name.endswith(("gate_proj", "up_proj")) for layer in linear),
        attention_dropout=any(dropouts),
        linear=tuple(linear),
        head=tuple(head),
        added=missing,
        known=known,
    )


def _count(parameters: Iterable[Any]) -> int:
    seen = {id(parameter): math.prod(parameter.shape) for parameter in parameters}
    return sum(seen.values())


Chunk: TypeAlias = tuple[int, int]  # sequences, and the columns of the longest

_SAMPLE, _BATCHES, _DRAWN = 300, 8, 1024
_CHARACTERS = 4  # of a token, where there is no tokenizer to ask


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """One row in tokens: its query alone and with its thought (None without), labels, documents."""

    fast: int | None
    thinking: int | None
    labels: int
    documents: tuple[int, ...]

    @property
    def longest(self) -> int:
        """What the rows of a batch of like length are sorted by."""
        return self.thinking or self.fast or max(self.documents, default=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSize:
    """What one process reads in a step, on average.

    `rows` of the data make a batch. `tokens` are without padding, `labels` those that are predicted.
    `queries` and `documents` are the forwards, each (sequences, columns), of `batches` steps together.
    """

    rows: int
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


def _lengths(row: TrainingRow, source: Source, recipe: TrainRecipe, template: Template) -> Lengths:
    most = recipe.data.max_document_tokens
    if is_document(row, source):
        length = min(most, len(template.document(template.text_ids([row.query])[0])))
        return Lengths(fast=None, thinking=None, labels=length - 2, documents=(length,))
    thought = None if source.thoughts == "none" else row.thought
    if thought is None and source.thoughts != "none" and row.usable:
        thought = row.all_thought[row.usable[0]]
    texts = [row.query, *([thought] if thought else [])]
    if row.pos and recipe.data.index is None:
        texts += row.pos[:1]
        texts += row.neg[: recipe.data.group - 1]
    ids = template.text_ids(texts)
    query, rest = ids[0], ids[1:]
    prompt = template.prompt(query)
    thinking, labels = None, 0
    if thought:
        thinking = len(template.thinking_query(query, rest[0]))
        labels, rest = thinking - len(prompt) - 1, rest[1:]
    documents = tuple(min(most, len(template.document(each))) for each in rest)
    return Lengths(
        fast=len(template.fast_query(query)), thinking=thinking, labels=labels, documents=documents
    )


def _of_batches(rows: Sequence[Lengths], recipe: TrainRecipe, tokens: int) -> StepSize:
    size = _rows_of_a_batch(recipe, sum(row.longest for row in rows) / len(rows))
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
        words = 0
        for row in order[number * size : (number + 1) * size]:
            dropped = draw.random() < recipe.losses.thought_dropout and bool(row.documents)
            thinks = row.thinking is not None and not dropped
            if row.fast is not None:
                sequences.append(row.thinking if thinks and row.thinking else row.fast)
                labels += row.labels if thinks else 0
            else:
                words += row.labels
            passages += row.documents
        labels += min(words, recipe.losses.document_tokens or words)
        read += sum(sequences) + sum(passages)
        queries += chunks(sequences, tokens)
        documents += chunks(passages, tokens)
    return StepSize(
        rows=size,
        tokens=read / batches,
        labels=labels / batches,
        queries=tuple(queries),
        documents=tuple(documents),
        batches=batches,
    )


def _at_the_limits(recipe: TrainRecipe, tokens: int) -> StepSize:
    data = recipe.data
    thinks = any(source.thoughts != "none" for source in data.train)
    longest = data.max_length if thinks else data.max_query_tokens
    size = _rows_of_a_batch(recipe, longest)
    kept = 1 - recipe.losses.thought_dropout if thinks else 0.0
    queries = [longest] * round(size * kept) + [data.max_query_tokens] * (size - round(size * kept))
    documents = [] if data.index is not None else [data.max_document_tokens] * size * data.group
    return StepSize(
        rows=size,
        tokens=sum(queries) + sum(documents),
        labels=kept * size * (data.max_length - data.max_query_tokens),
        queries=tuple(chunks(queries, tokens)),
        documents=tuple(chunks(documents, tokens)),
        batches=1,
    )


def _rows_of_a_batch(recipe: TrainRecipe, length: float) -> int:
    """How many rows of a mean length make a batch."""
    most, tokens = recipe.optimisation.queries, recipe.optimisation.tokens
    return most if tokens is None else max(1, min(most, int(tokens / length)))


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
