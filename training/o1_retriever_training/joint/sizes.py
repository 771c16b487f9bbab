"""How large a model and its batches are, without reading weights.

The shape of a model is counted on a copy without memory. The lengths of sequences are sampled from the rows
that are here, else they are the recipe's limits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import numpy as np
import torch
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from o1_retriever.encoders import CallableEncoder
from o1_retriever.engine.checkpoint import first_line
from o1_retriever.engine.load import read_config
from o1_retriever.engine.passes import by_tokens, forward_tokens
from o1_retriever.errors import CheckpointError, ModelNotFoundError, O1RetrieverError, SettingsError
from o1_retriever.reporting import counted
from o1_retriever_training.joint.batches import Collator, DrawnRows
from o1_retriever_training.joint.layouts import AnyTemplate, markers_of, template_of
from o1_retriever_training.joint.recipe import ModelSection, Source, TrainRecipe, looks_local, other_targets
from o1_retriever_training.joint.rows import TrainingRows, open_rows
from o1_retriever_training.joint.steps import document_chunks, query_chunks
from o1_retriever_training.rows import HUB, count_rows

_SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
    "tie_word_embeddings",
)
# The paper's backbones, so that their cost can be known before anything is downloaded: their kind, how many
# tokens their tokenizers know (the tables of Qwen2.5 have rows to spare), and the sizes above.
_KNOWN: dict[str, tuple[str, int, tuple[int, ...]]] = {
    "Qwen/Qwen2.5-0.5B": ("qwen2", 151665, (896, 24, 14, 2, 4864, 151936, True)),
    "Qwen/Qwen2.5-1.5B": ("qwen2", 151665, (1536, 28, 12, 2, 8960, 151936, True)),
    "Qwen/Qwen2.5-3B": ("qwen2", 151665, (2048, 36, 16, 2, 11008, 151936, True)),
    "Qwen/Qwen2.5-7B": ("qwen2", 151665, (3584, 28, 28, 4, 18944, 152064, False)),
    "meta-llama/Llama-3.1-8B": ("llama", 128256, (4096, 32, 32, 8, 14336, 128256, False)),
    "meta-llama/Llama-2-7b-hf": ("llama", 32000, (4096, 32, 32, 32, 11008, 32000, False)),
    "mistralai/Mistral-7B-v0.1": ("mistral", 32000, (4096, 32, 32, 8, 14336, 32000, False)),
    "mistralai/Mistral-7B-v0.3": ("mistral", 32768, (4096, 32, 32, 8, 14336, 32768, False)),
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
                hint=other_targets(names),
            )
        matrices = sum(rank * (layer.inputs + layer.outputs) for layer in adapted)
        return matrices + len(markers_of(model.layout)) * self.width


def shape_of(model: ModelSection) -> Shape:
    """The shape of a recipe's base with its markers added.

    Raises `ModelNotFoundError` when the base is neither here, nor well known, nor on the Hub.
    """
    known = None if looks_local(model.base) else _KNOWN.get(model.base)
    if known is None:
        try:
            config, tokenizer = read_config(model.base)
        except CheckpointError as error:
            why = first_line(error.__cause__ or error)
            raise ModelNotFoundError(
                f"The shape of model.base {model.base!r} cannot be known: {why}.",
                hint="Give a folder with config.json and a tokenizer, a Hub id while the Hub can be reached, "
                f"or one of {', '.join(_KNOWN)}.",
            ) from error
        tokens = len(tokenizer.get_vocab().keys() | set(markers_of(model.layout)))
    else:
        kind, tokens, sizes = known
        config = AutoConfig.for_model(kind, **dict(zip(_SIZES, sizes, strict=True)))
        tokens += len(markers_of(model.layout))
    with torch.device("meta"):
        empty: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
        if tokens > empty.get_input_embeddings().num_embeddings:
            empty.resize_token_embeddings(tokens, mean_resizing=False)
    return _measure(empty, known is not None)


def _measure(empty: Any, known: bool) -> Shape:
    text = empty.config.get_text_config()
    body = {id(part) for part in empty.base_model.modules()}
    linear: list[LinearLayer] = []
    head: list[LinearLayer] = []
    for name, part in empty.named_modules():
        if isinstance(part, torch.nn.Linear):
            kind = linear if id(part) in body else head
            kind.append(LinearLayer(name, part.in_features, part.out_features))
    heads = text.num_attention_heads
    dropouts = (getattr(text, name, 0.0) for name in ("attention_dropout", "attention_probs_dropout_prob"))
    return Shape(
        parameters=sum(parameter.numel() for parameter in empty.parameters()),
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        vocabulary=empty.get_input_embeddings().num_embeddings,
        heads=heads,
        query_width=heads * (getattr(text, "head_dim", None) or text.hidden_size // heads),
        inner=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        gated=any(layer.name.endswith(("gate_proj", "up_proj")) for layer in linear),
        attention_dropout=any(dropouts),
        linear=tuple(linear),
        head=tuple(head),
        known=known,
    )


Chunk: TypeAlias = tuple[int, int]  # sequences, and the columns of the longest

_SAMPLE, _BATCHES, _DRAWN = 300, 8, 1024


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

    @property
    def columns(self) -> int:
        """Those of the longest sequence."""
        return max((width for _, width in (*self.queries, *self.documents)), default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """What is known of the data: the `rows` of each source (None: unknown), the step's size, and how."""

    rows: tuple[int | None, ...]
    step: StepSize
    note: str

    @property
    def total(self) -> int | None:
        """All rows together."""
        return None if None in self.rows else sum(count or 0 for count in self.rows)


def sample(recipe: TrainRecipe, device: str = "cpu") -> Sampled:
    """Make some batches of the first rows that are here; where there are none, take the limits.

    `device` is cpu or cuda, on which it depends how much one forward takes.
    """
    tokens = recipe.chunk_tokens or forward_tokens(torch.device(device))
    counts: list[int | None] = []
    here: list[Source] = []
    for source in recipe.data.train:
        is_here = not source.path.startswith(HUB) and Path(source.path).is_file()
        count = count_rows(source.path, show=True) if is_here else None
        counts.append(_least(count, source.rows))
        if is_here:
            most = _least(source.rows, max(_SAMPLE, recipe.optimisation.queries))
            here.append(source.model_copy(update={"rows": most}))
    if not here:
        note = "No rows are here to look at: every sequence is taken to be as long as the recipe allows."
        return Sampled(rows=tuple(counts), step=_at_the_limits(recipe, tokens), note=note)
    template, exact = _template(recipe)
    # What the texts are compared with has no length: any vectors will do, and no index.
    data = recipe.data.model_copy(update={"train": tuple(here), "index": None})
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        rows = open_rows(data, template, Path(folder), show=False, teacher=_NO_TEACHER)
        step = _of_batches(rows, template, recipe, tokens)
    how = "" if exact else " (no tokenizer is here: a token is taken to have four characters)"
    note = f"Lengths are those of {counted(len(rows), 'row')}{how}."
    return Sampled(rows=tuple(counts), step=step, note=note)


def _least(*values: int | None) -> int | None:
    return min((value for value in values if value is not None), default=None)


_NO_TEACHER = CallableEncoder(lambda texts: np.ones((len(texts), 1), np.float32), name="nothing")


def _template(recipe: TrainRecipe) -> tuple[AnyTemplate, bool]:
    """The template of training, and whether it counts real tokens."""
    data, layout = recipe.data, recipe.model.layout
    try:
        tokenizer, exact = AutoTokenizer.from_pretrained(recipe.model.base, local_files_only=True), True
    except (OSError, ValueError, KeyError, O1RetrieverError):
        # Four characters are a token.
        pieces: Any = Tokenizer(WordLevel({"?": 0}, unk_token="?"))
        pieces.pre_tokenizer = Split(Regex(r"[\s\S]{1,4}"), "isolated")
        same = dict.fromkeys(("unk_token", "eos_token", "pad_token"), "?")
        tokenizer, exact = PreTrainedTokenizerFast(tokenizer_object=pieces, **same), False  # type: ignore[no-untyped-call]
    missing = [marker for marker in markers_of(layout) if marker not in tokenizer.get_vocab()]
    tokenizer.add_tokens(missing, special_tokens=True)
    return template_of(layout, tokenizer, data, positions=None), exact


def _of_batches(rows: TrainingRows, template: AnyTemplate, recipe: TrainRecipe, tokens: int) -> StepSize:
    """The mean of some batches as training makes them, each of rows of any source and length."""
    size = min(len(rows), _rows_of_a_batch(recipe, float(rows.lengths.mean())))
    batches, a_pass = max(_BATCHES, _DRAWN // size), len(rows) // size
    drawn, collate = DrawnRows(rows, recipe), Collator(rows, template, recipe)
    read = labels = 0
    queries: list[Chunk] = []
    documents: list[Chunk] = []
    for number in range(batches):
        epoch, place = divmod(number, a_pass)
        order = np.random.default_rng(epoch).permutation(len(rows))
        picked = [drawn[int(row), epoch] for row in order[place * size : (place + 1) * size]]
        if recipe.data.index is not None:
            # Their documents are in the index, and every query has an answer there.
            picked = [row if row.query is None else replace(row, documents=[], answers=[0]) for row in picked]
        batch = collate(picked)
        read += int(batch["tokens"])
        labels += batch["labels"].shape[1] + batch["document_labels"].shape[1]
        queries += [(len(chunk.ids), chunk.ids.shape[1]) for chunk in query_chunks(batch, tokens)]
        documents += [(len(chunk.ids), chunk.ids.shape[1]) for chunk in document_chunks(batch, tokens)]
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


def chunks(lengths: Sequence[int], tokens: int) -> list[Chunk]:
    """The forwards that sequences of these lengths make, longest first, each of at most so many tokens."""
    return [(len(batch), lengths[batch[0]]) for batch in by_tokens(lengths, tokens)]
