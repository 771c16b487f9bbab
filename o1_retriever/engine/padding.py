"""Rows of token ids of different lengths as one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch


def padded(
    rows: Sequence[Sequence[int]], device: Any, *, side: Literal["left", "right"]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask (rows, width). Padded on the left, all rows end together."""
    import torch

    width = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        span = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[place, span] = torch.tensor(row)
        mask[place, span] = 1
    return ids.to(device), mask.to(device)
