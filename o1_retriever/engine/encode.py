"""Embed finished token sequences: documents, fast queries, and thoughts that were written before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from o1_retriever.engine.load import LocalModel
from o1_retriever.engine.padding import padded
from o1_retriever.thought import Vector

if TYPE_CHECKING:
    import torch


def embed_sequences(
    local: LocalModel, sequences: Sequence[Sequence[int]], *, batch_size: int
) -> Iterator[tuple[int, Vector]]:
    """Yield (place, state) of the last token of each sequence, longest first; a state is (dimension,).

    Only the base model runs: no language-model head. Rows of a batch are of similar length, padded on
    the right, where a causal model cannot see the padding.
    """
    import torch

    order = sorted(range(len(sequences)), key=lambda place: len(sequences[place]), reverse=True)
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        with local.lock, torch.inference_mode():
            states = last_states(local, [sequences[place] for place in places])
        yield from zip(places, states, strict=True)


def last_states(local: LocalModel, rows: Sequence[Sequence[int]]) -> Vector:
    """Hidden states of the last tokens of one batch, float32 (rows, dimension)."""
    import torch

    ids, mask = padded(rows, local.device, side="right")
    hidden: torch.Tensor = local.model.base_model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=torch.arange(ids.shape[1], device=local.device)[None].expand(len(rows), -1),
        use_cache=False,
    ).last_hidden_state
    last = torch.tensor([len(row) - 1 for row in rows], device=local.device)
    states = hidden[torch.arange(len(rows), device=local.device), last]
    return np.asarray(states.float().cpu().numpy(), dtype=np.float32)
