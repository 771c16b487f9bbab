"""Embed finished token sequences: documents, fast queries, and thoughts that were written before."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from o1_retriever.engine.batching import by_tokens, forward_tokens, free_memory, is_out_of_memory, padded
from o1_retriever.engine.load import LocalModel
from o1_retriever.engine.threads import SparingThreads
from o1_retriever.thought import Vector

logger = logging.getLogger(__name__)

# From so many batches on, what they held is given back in the end; fewer leave little.
_MANY = 16


def embed_sequences(
    local: LocalModel, sequences: Sequence[Sequence[int]], *, most: int | None = None
) -> Iterator[tuple[int, Vector]]:
    """Yield (place, state) of the last token of each sequence, longest first; a state is (dimension,).

    Only the base model runs: no language-model head. Batches hold rows of similar length, at most `most`
    (None: as many as make a full pass). When memory runs out all the same, batches are halved from there on.
    """
    tokens = forward_tokens(local.device)
    waiting = deque(by_tokens([len(row) for row in sequences], tokens, most))
    many = len(waiting) >= _MANY
    with SparingThreads(local.device) as threads:
        while waiting:
            threads.look()
            places = waiting.popleft()
            try:
                states = last_states(local, [sequences[place] for place in places])
            except Exception as error:
                if not is_out_of_memory(error) or len(places) == 1:
                    raise
                waiting = _halved([places, *waiting], error)
                free_memory(local.device)
            else:
                yield from zip(places, states, strict=True)
    if many and local.device.type == "cpu":
        free_memory(local.device)


def _halved(batches: Sequence[Sequence[int]], error: Exception) -> deque[list[int]]:
    """All batches cut to half the rows of the first, which was too large."""
    most = -(-len(batches[0]) // 2)
    logger.warning("Out of memory: going on with batches of at most %d texts (%s)", most, str(error))
    return deque(
        list(batch[start : start + most]) for batch in batches for start in range(0, len(batch), most)
    )


def last_states(local: LocalModel, rows: Sequence[Sequence[int]]) -> Vector:
    """Hidden states of the last tokens of one batch, float32 (rows, dimension).

    Padded on the right, where a causal model cannot see the padding: no mask is needed, and attention takes
    its fastest way.
    """
    ids, _ = padded(rows, local.device, side="right")
    positions = torch.arange(ids.shape[1], device=local.device)[None]
    last = torch.tensor([len(row) - 1 for row in rows], device=local.device)
    with local.lock, torch.inference_mode():
        hidden = local.model.base_model(
            input_ids=ids, position_ids=positions, use_cache=False
        ).last_hidden_state
        states = hidden[torch.arange(len(rows), device=local.device), last]
        return np.asarray(states.float().cpu().numpy(), dtype=np.float32)
