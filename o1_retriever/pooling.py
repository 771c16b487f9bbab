"""From the raw vectors of a query's thoughts to the one vector to search with."""

from __future__ import annotations

import numpy as np

from o1_retriever.errors import EncoderError
from o1_retriever.thought import Vector


def unit(rows: Vector) -> Vector:
    """Rows scaled to length 1; raise `EncoderError` for a row of zeros or of numbers that are not finite."""
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    bad = ~(np.isfinite(lengths) & (lengths > 0))
    if bad.any():
        place = int(np.argmax(bad.reshape(-1)))
        raise EncoderError(
            f"Vector {place} has length {float(lengths.reshape(-1)[place])}; expected a direction."
        )
    return np.asarray(rows / lengths, dtype=np.float32)


def pool(rows: Vector, *, truncate_dim: int | None, normalize: bool) -> tuple[Vector, Vector]:
    """Unit vectors (k, dimension) and their mean (dimension,), itself a unit vector if `normalize`.

    Vectors are truncated first, so that each thought weighs the same in the truncated space.
    """
    vectors = unit(rows[:, :truncate_dim])
    mean = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    return vectors, unit(mean[None])[0] if normalize else mean
