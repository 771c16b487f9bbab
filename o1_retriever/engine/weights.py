"""A short identity of a model's weights, so that vectors of two models are never mixed up."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

_BLOCK = 1 << 20
_BLOCKS = 64
_SAMPLE = 1 << 14


def hash_files(folder: Path) -> str:
    """Hash of a checkpoint's safetensors files and its tokenizer, 32 hexadecimal digits.

    Files up to 64 MiB are read whole. Of a larger one the length, the first block (with the names, shapes and
    types of all tensors) and 63 more blocks of 1 MiB spread evenly over it are read: enough to tell any
    two trainings apart, and under a second for a model of any size.
    """
    digest = hashlib.blake2b(digest_size=16)
    files = [*sorted(folder.glob("*.safetensors")), folder / "tokenizer.json", folder / "tokenizer.model"]
    for path in files:
        if not path.is_file():
            continue
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}:".encode())
        step = max(_BLOCK, (size - _BLOCK) // (_BLOCKS - 1))
        with path.open("rb") as file:
            for start in range(0, size, step):
                file.seek(start)
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def hash_model(model: Any) -> str:
    """Hash of a loaded model's weights, 32 hexadecimal digits: names, shapes and up to 16k values of each."""
    import torch

    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name}:{tuple(value.shape)}:{value.dtype}:".encode())
        flat = value.detach().reshape(-1)
        stride = max(1, flat.numel() // _SAMPLE)
        sample = flat[::stride].cpu().contiguous()
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
