"""One forward for everything: the vectors at `<emb>`, and how surprising the thoughts' tokens are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.functional import linear, normalize
from torch.utils.checkpoint import checkpoint

from o1_retriever_training.joint.losses import generation_loss

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


class JointModel(nn.Module):
    """Wraps a causal language model so that one call gives vectors and the generation loss.

    Everything stands in one `forward`, so that DDP, FSDP and autocast see the language-model head as well.
    """

    def __init__(self, model: Any, language_model: Any, *, head_trains_embeddings: bool = True) -> None:
        super().__init__()
        self.model = model
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
        vectors = normalize(hidden[rows, columns].float(), dim=-1)
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
