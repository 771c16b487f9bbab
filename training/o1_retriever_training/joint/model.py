"""The model that is trained: a causal language model with its layout's markers, and what of it learns.

One forward gives everything: the vectors at `<emb>`, and how surprising the thoughts' tokens are.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.functional import linear, normalize, rms_norm
from torch.utils.checkpoint import checkpoint

from o1_retriever.engine.checkpoint import base_of, first_line, is_adapter
from o1_retriever.engine.load import LoadOptions, load_causal_lm
from o1_retriever.engine.template import CONFIG_NAME, Layout, TemplateConfig
from o1_retriever.engine.weights import has_bfloat16
from o1_retriever.errors import SettingsError
from o1_retriever.thinkers.config import Correction as Matrix
from o1_retriever.thinkers.config import ThinkerConfig
from o1_retriever_training.joint.layouts import AnyTemplate, markers_of, template_of, writer_prompt
from o1_retriever_training.joint.losses import generation_loss
from o1_retriever_training.joint.recipe import DataSection, ModelSection, TrainedLayout, other_targets

# Logits of so many numbers at once: a thought's vocabulary-sized rows are the largest thing in a step.
_LOGITS = 1 << 26


def plain_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention over [rows, heads, length, width] without a mask: rows are padded on the right.

    The backward of PyTorch's fused one is slow on a CPU: with this a step takes about two thirds of the time.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(groups, dim=1) if groups > 1 else each for each in (key, value))
    length = query.shape[2]
    scores = torch.matmul(query * (scaling or query.shape[-1] ** -0.5), key.transpose(2, 3))
    scores = scores + torch.full((length, length), -1e4, dtype=scores.dtype, device=scores.device).triu_(1)
    with torch.autocast(query.device.type, enabled=False):
        weights = _Softmax.apply(scores)  # type: ignore[no-untyped-call]
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), None


class _Softmax(torch.autograd.Function):
    """A softmax that stays in bfloat16; autocast would go through float32."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        weights = torch.softmax(scores, -1)
        ctx.save_for_backward(weights)
        return weights

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (weights,) = ctx.saved_tensors
        weighted = gradients[0] * weights
        gradient: Tensor = weighted - weights * weighted.sum(-1, keepdim=True)
        return gradient


def know_plain_attention() -> None:
    """Make transformers know `plain_attention` by the name that recipes use."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register("plain", plain_attention)
    AttentionMaskInterface.register("plain", lambda *_args, **_kwargs: None)


class Correction(nn.Module):
    """W h: what a thinker's state [n, width] adds to the encoder's unit vector, float32 [n, dimension].

    W = up @ down is of low rank, and `up` is zero: training begins at the vectors that were there. A state is
    scaled to a root mean square of 1, and the sum by 1 / sqrt(dimension), as a unit vector's numbers are.
    """

    def __init__(self, width: int, dimension: int, rank: int, *, seed: int) -> None:
        super().__init__()
        noise = torch.Generator().manual_seed(seed)
        self.down = nn.Parameter(torch.randn(rank, width, generator=noise) / width**0.5)
        self.up = nn.Parameter(torch.zeros(dimension, rank))

    def forward(self, states: Tensor) -> Tensor:
        """The corrections of some states."""
        with torch.autocast(states.device.type, enabled=False):
            scaled = rms_norm(states.float(), states.shape[-1:])
            corrections: Tensor = linear(linear(scaled, self.down), self.up)
            return corrections / math.sqrt(len(self.up))

    def exported(self) -> Matrix:
        """What is saved beside the weights."""
        down, up = (part.detach().float().cpu().numpy().copy() for part in (self.down, self.up))
        return Matrix(down=down, up=up)

    def take(self, known: Matrix) -> None:
        """Go on from a matrix of the same shape that was trained before."""
        with torch.no_grad():
            self.down.copy_(torch.from_numpy(known.down))
            self.up.copy_(torch.from_numpy(known.up))


class JointModel(nn.Module):
    """Wraps a causal language model so that one call gives vectors and the generation loss.

    Everything stands in one `forward`, so that DDP, FSDP and autocast see the language-model head as well.
    With a `correction` the vectors are what it makes of the states, and no unit vectors.
    """

    def __init__(
        self,
        model: Any,
        language_model: Any,
        *,
        head_trains_embeddings: bool = True,
        correction: Correction | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.correction = correction
        self._head_trains_embeddings = head_trains_embeddings
        # Under LoRA the same modules as in `model`, with the low-rank matrices in their places. In a list, so
        # that its weights are not registered twice.
        self._inner = [language_model]
        self._no_split_modules = getattr(language_model, "_no_split_modules", None)

    @property
    def language_model(self) -> Any:
        """The causal language model itself."""
        return self._inner[0]

    def forward(
        self, ids: Tensor, rows: Tensor, columns: Tensor, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Unit vectors float32 [n, d] of the tokens at (`rows`, `columns`) of `ids` [B, L], and the SUM of
        cross-entropies of `labels` [3, T]: rows, columns and the ids that are predicted there.

        Rows are padded on the right, where a causal model does not look: no mask is needed. With `labels`
        the head takes part even when there are none, so that no weight is left without a gradient.
        """
        language_model = self.language_model
        hidden = language_model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        states = hidden[rows, columns]
        vectors = normalize(states.float(), dim=-1) if self.correction is None else self.correction(states)
        if labels is None:
            return vectors, vectors.new_zeros(())
        at_rows, at_columns, expected = labels
        if not len(expected):
            return vectors, self._head(hidden[:1, :1].flatten(0, 1)).float().sum() * 0.0
        return vectors, self._generation(hidden[at_rows, at_columns], expected)

    def _generation(self, states: Tensor, expected: Tensor) -> Tensor:
        size = max(1, _LOGITS // int(self.language_model.config.get_text_config().vocab_size))
        if len(states) <= size:
            return self._surprise(states, expected)
        parts = [
            checkpoint(self._surprise, part, own, use_reentrant=False)
            for part, own in zip(torch.split(states, size), torch.split(expected, size), strict=True)
        ]
        return torch.stack(parts).sum()

    def _surprise(self, states: Tensor, expected: Tensor) -> Tensor:
        return generation_loss(self._head(states), expected, tokens=1)

    def _head(self, states: Tensor) -> Tensor:
        """Logits [T, vocabulary], with whatever the architecture does to them."""
        model = self.language_model
        output = model.get_output_embeddings()
        if hasattr(model, "cls"):  # BERT: a transformation stands before the output embeddings
            states = model.cls.predictions.transform(states)
        # The softmax over tied word embeddings has a gradient for every row at every step, and Adam turns the
        # faintest into a full-sized move.
        logits: Tensor = (
            output(states)
            if self._head_trains_embeddings
            else linear(states, output.weight.detach(), output.bias)
        )
        config = model.config.get_text_config()
        scale = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
        logits = logits if scale == 1.0 else logits * scale
        cap = getattr(config, "final_logit_softcapping", None)
        return torch.tanh(logits / cap) * cap if cap else logits


@contextmanager
def whole_weights(model: Any) -> Iterator[None]:
    """Inside, every process has all weights of a sharded model, in the precision of its forward.

    All processes must enter; inside they need nothing of each other, so that one may search or save while
    the others wait. Nothing happens with a model that is not sharded.
    """
    parts = [part for part in model.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.unshard()
        # A forward would give the weights of its layer away again.
        part.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


def without_shards(model: Any) -> Any:
    """A causal language model that can be saved, made of one whose weights are whole at present.

    A sharded model would save its shards, whatever it has at hand. The model itself if it is not sharded.
    """
    if not any(isinstance(part, FSDPModule) for part in model.modules()):
        return model
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        plain: Any = AutoModelForCausalLM.from_config(model.config)  # type: ignore[no-untyped-call]
    kept = plain.state_dict().keys()
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    plain.load_state_dict({name: value.detach() for name, value in named if name in kept}, assign=True)
    plain.tie_weights()
    return plain


logger = logging.getLogger(__name__)

# A new marker starts at the mean of all tokens, moved by this share of their spread, so that no two agree.
_SPREAD = 0.1
# What a thinker prefers: warm, because what differs between its thoughts is part of what they gain; two
# sentences; and the query's own vector stays in the mean. Chosen on EntailmentBank's dev split.
_SETTINGS = {"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 48, "query_weight": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Backbone:
    """A model ready to be trained.

    `model` is the whole as it is trained (for LoRA a `PeftModel`), `language_model` the causal language model
    in it. `base` names what a low-rank adapter lies upon. `template` has the limits of training, `deployed`
    those of the checkpoint that will be saved. `correction` is the matrix that a thinker was trained with
    before.
    """

    model: Any
    language_model: Any
    base: str
    tokenizer: Any
    template: AnyTemplate
    deployed: TemplateConfig | ThinkerConfig
    correction: Matrix | None = None

    @property
    def width(self) -> int:
        """How many numbers a vector has."""
        return int(self.language_model.config.get_text_config().hidden_size)


def open_backbone(model: ModelSection, data: DataSection, *, seed: int, device: torch.device) -> Backbone:
    """Load the base, give it the markers it lacks and choose what is trained.

    Full tuning trains every weight; LoRA and QLoRA train low-rank matrices and the rows of the markers. A
    base that is an adapter itself is trained further, upon its own base. Raises `ModelNotFoundError` and
    `CheckpointError` for a base that cannot be trained to think and embed.
    """
    know_plain_attention()
    before = Path(model.base) if model.tuning == "lora" and is_adapter(Path(model.base)) else None
    base = model.base if before is None else base_of(before)
    loaded = load_causal_lm(base, _options(model, device), attention=model.attention, purpose="QLoRA")
    language_model, tokenizer = loaded.model, loaded.tokenizer
    add_markers(language_model, tokenizer, model.layout, seed=seed)
    template = template_of(model.layout, tokenizer, data, positions=_positions(language_model))
    if model.gradient_checkpointing:
        _checkpoint_activations(language_model)
    language_model.config.use_cache = False
    if before is not None:
        trained = _further(language_model, before)
    elif model.tuning == "full":
        trained = language_model
    else:
        trained = _with_lora(language_model, model, tokenizer, seed)
    return Backbone(
        model=trained,
        language_model=language_model,
        base=base,
        tokenizer=tokenizer,
        template=template,
        deployed=_deployed(loaded.folder, model.layout, language_model, data.instruction),
        correction=Matrix.beside(before or loaded.folder) if model.layout == "chat" else None,
    )


def _checkpoint_activations(language_model: Any) -> None:
    # The method has a new name from transformers 5.2x on, where the old one warns.
    newer = getattr(language_model, "activation_checkpointing_enable", None)
    if newer is not None:
        newer(activation_checkpointing_kwargs={"use_reentrant": False})
    else:
        language_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def compute_dtype(model: ModelSection, device: torch.device) -> torch.dtype:
    """What the forward computes in."""
    if model.dtype == "fastest":
        return torch.bfloat16 if device.type == "cuda" or has_bfloat16() else torch.float32
    if model.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.bfloat16 if model.dtype == "bfloat16" else torch.float32


def add_markers(model: Any, tokenizer: Any, layout: TrainedLayout, *, seed: int) -> None:
    """Give a model and its tokenizer the markers of a layout that they lack.

    Their rows start near the mean of all rows, each moved by a little of its own.
    """
    from tokenizers import AddedToken

    known = tokenizer.get_vocab()
    missing = tuple(marker for marker in markers_of(layout) if marker not in known)
    if not missing:
        return
    tokens = [AddedToken(marker, special=True, normalized=False) for marker in missing]
    tokenizer.add_tokens(tokens, special_tokens=True)
    before = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > before:
        # Rows beyond the vocabulary are often there for alignment already.
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    ids = torch.tensor(tokenizer.convert_tokens_to_ids(list(missing)))
    used = min(before, int(ids.min()))
    for table in {id(t): t for t in (model.get_input_embeddings(), model.get_output_embeddings())}.values():
        _start_rows(table, ids, used, seed)
    logger.info("New tokens of the %s layout: %s", layout, " ".join(missing))


def _start_rows(table: nn.Module | None, ids: torch.Tensor, used: int, seed: int) -> None:
    if table is None:
        return
    weight: torch.Tensor = table.weight  # type: ignore[assignment]
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        known = weight[:used].float()
        moved = torch.randn(len(ids), weight.shape[1], generator=noise).to(known) * known.std(0) * _SPREAD
        weight[ids.to(weight.device)] = (known.mean(0) + moved).to(weight.dtype)


def marker_ids(tokenizer: Any, layout: TrainedLayout) -> list[int]:
    """The ids of the markers, whose rows are trained in every kind of tuning."""
    return [int(i) for i in tokenizer.convert_tokens_to_ids(list(markers_of(layout)))]


def _options(model: ModelSection, device: torch.device) -> LoadOptions:
    # Full tuning keeps float32 weights and computes under autocast: bfloat16 weights would lose small steps.
    dtype = torch.float32 if model.tuning == "full" else compute_dtype(model, device)
    return LoadOptions(
        device=str(device), dtype=str(dtype).removeprefix("torch."), load_in_4bit=model.tuning == "qlora"
    )


def _with_lora(language_model: Any, model: ModelSection, tokenizer: Any, seed: int) -> Any:
    from peft import LoraConfig, get_peft_model

    for parameter in language_model.parameters():
        parameter.requires_grad_(False)
    settings = model.lora
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # peft divides it, a fraction is fine
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets),
        trainable_token_indices=marker_ids(tokenizer, model.layout) or None,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(seed)  # the matrices start the same in every process and after every start
    try:
        return get_peft_model(language_model, config)
    except ValueError as error:
        parts = language_model.named_modules()
        linear = {name.rpartition(".")[2] for name, part in parts if isinstance(part, nn.Linear)}
        raise SettingsError(
            f"model.lora.targets is {list(settings.targets)} and {model.base} cannot be adapted there: "
            f"{first_line(error)}.",
            hint=other_targets(linear),
        ) from error


def _further(language_model: Any, adapter: Path) -> Any:
    """The model with an adapter that was trained before, whose matrices learn again."""
    from peft import PeftModel

    for parameter in language_model.parameters():
        parameter.requires_grad_(False)
    return PeftModel.from_pretrained(language_model, str(adapter), is_trainable=True)


def uncast_inputs(model: Any, *, autocast: bool) -> AbstractContextManager[None]:
    """Inside, low-rank matrices in float32 take a rounded state as it comes.

    Autocast rounds again what peft makes wide for them: two copies of every state, for the same product.
    """
    if not autocast or not hasattr(model, "peft_config"):
        return nullcontext()
    from peft.helpers import disable_input_dtype_casting

    return disable_input_dtype_casting(model)


def _positions(language_model: Any) -> int | None:
    found = getattr(language_model.config.get_text_config(), "max_position_embeddings", None)
    return int(found) if found else None


def _deployed(
    folder: Path, layout: TrainedLayout, language_model: Any, instruction: str
) -> TemplateConfig | ThinkerConfig:
    if layout == "chat":
        return ThinkerConfig(prompt=writer_prompt(instruction), settings=_SETTINGS)
    return replace(_limits(folder, layout, language_model), instruction=instruction)


def _limits(folder: Path, layout: Layout, language_model: Any) -> TemplateConfig:
    # A model answers longer queries than it was trained on; its base's own limits stay.
    path = folder / CONFIG_NAME
    if path.is_file():
        found = TemplateConfig.from_file(path)
        if found.layout == layout:
            return found
    usual = TemplateConfig()
    length = min(usual.max_length, _positions(language_model) or usual.max_length)
    return TemplateConfig(
        layout=layout, max_length=length, max_query_tokens=min(usual.max_query_tokens, length // 2)
    )
