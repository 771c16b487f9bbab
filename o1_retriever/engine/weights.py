"""A short identity of a model's weights, so that vectors of two models are never mixed up."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from o1_retriever.errors import EncoderError

_BLOCK = 1 << 20
_BLOCKS = 64
CHUNK = 1 << 24  # weights hashed at a time, so that a large model needs little memory for it


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


def hash_signs(model: Any) -> str:
    """Hash of the shapes and signs of all weights, 32 hexadecimal digits.

    Rounding to another floating-point type keeps every sign, so that float32, bfloat16 and float16 copies
    of a model are one space; training flips many. Names do not count, because versions of a library
    rename weights. Packed 4-bit and 8-bit weights hash to a space of their own. Raises `EncoderError`
    for a model without weights.
    """
    import torch

    digests = []
    for weights in model.parameters():
        digest = hashlib.blake2b(str(tuple(weights.shape)).encode(), digest_size=16)
        for part in weights.detach().reshape(-1).split(CHUNK):
            signs = torch.signbit(part) if part.is_floating_point() else part
            data = signs.cpu().numpy()
            digest.update(np.packbits(data).tobytes() if data.dtype == np.bool_ else data.tobytes())
        digests.append(digest.digest())
    if not digests:
        raise EncoderError(
            "The model has no torch weights to tell it from others.",
            hint="An encoder can be given one: SentenceTransformerEncoder(model, name=...).",
        )
    return hashlib.blake2b(b"".join(sorted(digests)), digest_size=16).hexdigest()
