"""Rows of token ids of different lengths as batches, sized by their tokens and not by their number."""

from __future__ import annotations

import ctypes
import errno
import logging
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_C_LIBRARY: Any = ctypes.CDLL(None) if sys.platform == "linux" else None

# Tokens of one forward pass, padding included, and tokens whose keys and values are held while thinking.
# A processor's matrix products are at full speed from some hundred tokens on: 4096 at once take 200 MB more
# than 1024 and are no faster. A GPU wants more at once.
_FORWARD_TOKENS = {"cpu": 1024}
_HELD_TOKENS = {"cpu": 1 << 15}
# On a CPU, batches are padded to a multiple of so many tokens: 64 products of rows and width instead of 1024.
WIDTHS = 16
# After so many batches on a CPU, what they held is given back, which takes 20 ms.
_MANY = 16
_done = 0  # since then


def forward_tokens(device: Any) -> int:
    """How many tokens, padding included, to run through the model at once."""
    return _FORWARD_TOKENS.get(device.type, 1 << 15)


def held_tokens(device: Any) -> int:
    """How many tokens' keys and values to hold while thinking."""
    return _HELD_TOKENS.get(device.type, 1 << 17)


def by_tokens(lengths: Sequence[int], tokens: int, most: int | None = None) -> Iterator[list[int]]:
    """Places of the rows in batches, longest rows first, so that each batch holds rows of similar length.

    A batch has at most `tokens` tokens when padded, and at most `most` rows (None: any number); a single row
    may be longer.
    """
    order = sorted(range(len(lengths)), key=lambda place: lengths[place], reverse=True)
    start = 0
    while start < len(order):
        count = min(max(1, tokens // max(1, lengths[order[start]])), most or len(order))
        yield order[start : start + count]
        start += count


def padded(
    rows: Sequence[Sequence[int]], device: Any, *, side: Literal["left", "right"], multiple: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask (rows, width), a multiple. Padded on the left, all rows end together."""
    import torch

    width = -(-max(len(row) for row in rows) // multiple) * multiple
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        span = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[place, span] = torch.tensor(row)
        mask[place, span] = 1
    return ids.to(device), mask.to(device)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a batch was too large for the device's memory."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def free_memory(device: Any) -> None:
    """Give back what batches held."""
    import torch

    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "cpu" and hasattr(_C_LIBRARY, "malloc_trim"):
        # glibc keeps what lies between blocks in use: batches of ever new shapes leave ever more of it.
        _C_LIBRARY.malloc_trim(0)


def batch_done(device: Any) -> None:
    """Count a batch, of whatever call; what many have held is given back."""
    global _done
    _done += 1
    if _done >= _MANY and device.type == "cpu":
        _done = 0
        free_memory(device)
