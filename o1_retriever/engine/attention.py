"""Attention of one new token of every row, as two plain matrix products.

The usual kernels are made for many queries at once. For a single one they read keys and values for each of
the query heads that share them; a product reads them once for all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

_NAME = "o1_step"
# What a model may pass along that changes nothing here: a window is part of the mask already.
_HARMLESS = frozenset(
    ("dropout", "is_causal", "sliding_window", "position_ids", "use_cache", "cache_position")
)
# Half precision would round the scores, which the usual kernels keep in float32.
_DTYPES = (torch.float32, torch.float64)


@contextmanager
def step_attention(model: Any) -> Iterator[None]:
    """Within it, `model` takes this attention, where it is faster and means the same.

    That is on a CPU, for models that would take torch's scaled dot product attention.
    """
    config = model.config.get_text_config(decoder=True)
    usual = config._attn_implementation
    if usual != "sdpa" or model.device.type != "cpu" or model.dtype not in _DTYPES:
        yield
        return
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = usual


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it: query (rows, heads, 1, d), keys (rows, kv heads, columns, d).

    The mask is added to the scores. Gives (rows, 1, heads, d). What is asked for beyond that goes to
    transformers' own function.
    """
    rows, heads, queries, size = query.shape
    unusual = any(value is not None for name, value in options.items() if name not in _HARMLESS)
    if unusual or queries != 1 or attention_mask is None or attention_mask.dtype == torch.bool:
        given: Any = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
        return given  # type: ignore[no-any-return]
    grouped = query.reshape(rows, key.shape[1], heads // key.shape[1], size)
    scaled = grouped * (size**-0.5 if scaling is None else scaling)
    # The long side first: products are a third faster so than the other way round.
    scores = torch.matmul(key, scaled.transpose(-1, -2)).transpose(-1, -2)
    found = torch.matmul(torch.softmax(scores + attention_mask, -1), value)
    return found.reshape(rows, 1, heads, value.shape[-1]), None


AttentionInterface.register(_NAME, attend)
