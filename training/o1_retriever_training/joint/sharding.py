"""Weights that are split over processes (FSDP 2), brought together for what one process does alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule


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
