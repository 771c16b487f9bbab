"""What makes two vectors comparable, and what only makes them slightly different."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorSpace:
    """Identity of a document space: documents indexed in one cannot be searched from another.

    `weights` is a hash of the encoder's weights (or a name, for an encoder that has none to hash),
    `layout` and `pooling` say how a text becomes a vector, `dimension` is the length of the vectors and
    `max_tokens` where a document is truncated (None: unknown or unlimited).
    """

    weights: str
    layout: str
    pooling: str
    dimension: int
    max_tokens: int | None = None

    def to_dict(self) -> dict[str, str | int | None]:
        """The identity as plain JSON values."""
        return asdict(self)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that stand for the whole identity."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """How the encoder computes. It moves vectors by rounding only: a difference warns, it does not stop."""

    dtype: str = "float32"
    quantization: str | None = None
    device: str = "cpu"

    def to_dict(self) -> dict[str, str | None]:
        """The precision as plain JSON values."""
        return asdict(self)
