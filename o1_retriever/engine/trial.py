"""Whether the engine's steps give what a model gives: tried once, on models that no test of ours has seen."""

from __future__ import annotations

import logging

import torch

from o1_retriever.engine.load import LocalModel
from o1_retriever.engine.passes import Prefix, prefill
from o1_retriever.engine.steps import Shared
from o1_retriever.errors import O1RetrieverError

logger = logging.getLogger(__name__)

# transformers' names of the architectures whose thoughts are tested against plain passes.
_KNOWN = frozenset(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi", "phi3", "bert"))
# Two prompts of different lengths, as one is padded then, and what each is fed behind.
_PROMPTS, _FED = ((5, 6, 7), (8, 9, 10, 11, 12, 13)), ((14, 15), (16, 17))
# How far logits may be off, as a share of them: the rounding of half precision, and no more.
_OFF = 0.05


def steps_work(local: LocalModel) -> bool:
    """Whether thoughts can be written by steps; where not, a warning says why."""
    if local.model.config.get_text_config().model_type in _KNOWN:
        return True
    try:
        off = _difference(local)
    except Exception as error:  # whatever an architecture raises that expects something else
        why = error.message if isinstance(error, O1RetrieverError) else repr(error)
    else:
        if off < _OFF:
            return True
        why = "its steps give something else than a whole pass"
    logger.warning(
        "The engine cannot run a %s (%s). transformers' generate writes its thoughts, which takes several "
        "times as long; behind a server, such as llama.cpp's or vLLM's, it is faster.",
        type(local.model).__name__,
        why,
    )
    return False


@torch.inference_mode()
def _difference(local: LocalModel) -> float:
    """How far the logits after some steps are from those of whole passes, as a share of them."""
    window = max(map(len, _PROMPTS)) + len(_FED[0])
    slots, step = local.once(Shared).borrow(local, len(_PROMPTS), window, spare=1, prefix=Prefix())
    started = prefill(local, _PROMPTS)
    slots.take_in(started.layers, started.real)
    positions = torch.tensor([len(prompt) for prompt in _PROMPTS], device=local.device)
    found = started.logits
    for fed in torch.tensor(_FED, device=local.device).T:
        slots.open_column()
        found, _ = step(fed, positions)
        slots.close_column()
        positions = positions + 1
    local.once(Shared).give_back(slots, step)
    expected = torch.cat([_whole(local, [*prompt, *fed]) for prompt, fed in zip(_PROMPTS, _FED, strict=True)])
    return float((found.float() - expected).norm() / expected.norm())


def _whole(local: LocalModel, ids: list[int]) -> torch.Tensor:
    with local.lock:
        output = local.model(input_ids=torch.tensor([ids], device=local.device))
    logits: torch.Tensor = output.logits[:, -1].float()
    return logits
