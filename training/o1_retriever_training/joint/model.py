"""One forward for everything: the vectors at `<emb>`, and how surprising the thoughts' tokens are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint

from o1_retriever_training.joint.losses import generation_loss

# Logits of so many numbers at once: a thought's vocabulary-sized rows are the largest thing in a step.
_LOGITS = 1 << 26


class JointModel(nn.Module):
    """Wraps a causal language model so that one call gives vectors and the generation loss.

    Everything stands in one `forward`, so that DDP, FSDP and autocast see the language-model head as well.
    """

    def __init__(self, model: Any, language_model: Any) -> None:
        super().__init__()
        self.model = model
        # Under LoRA the same modules as in `model`, with the low-rank matrices in their places. In a list, so
        # that its weights are not registered twice.
        self._inner = [language_model]
        self._no_split_modules = getattr(language_model, "_no_split_modules", None)

    @property
    def language_model(self) -> Any:
        """The causal language model itself."""
        return self._inner[0]

    def forward(
        self,
        ids: Tensor,
        rows: Tensor,
        columns: Tensor,
        labels: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Unit vectors float32 [n, d] of the tokens at (`rows`, `columns`) of `ids` [B, L], and the SUM of
        cross-entropies of `labels`: rows, columns and the ids [T] that are predicted there.

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
        parts: Sequence[Tensor] = [
            checkpoint(self._surprise, states[at : at + size], expected[at : at + size], use_reentrant=False)
            for at in range(0, len(states), size)
        ]
        return torch.stack(list(parts)).sum()

    def _surprise(self, states: Tensor, expected: Tensor) -> Tensor:
        return generation_loss(self._head(states), expected, tokens=1)

    def _head(self, states: Tensor) -> Tensor:
        """Logits [T, vocabulary], with whatever the architecture does to them."""
        model = self.language_model
        if hasattr(model, "cls"):  # BERT: a transformation stands before the output embeddings
            logits: Tensor = model.cls(states[None])[0]
            return logits
        logits = model.get_output_embeddings()(states)
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
