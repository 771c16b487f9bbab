"""Vectors: the space that makes them comparable, what they have to be when they come in, and their mean."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from o1_retriever.errors import EncoderError, SettingsError
from o1_retriever.reporting import counted
from o1_retriever.thought import Vector

if TYPE_CHECKING:
    import torch


def check_vectors(
    answer: Any, count: int, returned: str, *, first: int = 0, dimension: int | None = None
) -> Vector:
    """The answer as float32 (count, dimension), or `EncoderError` naming the first bad text from `first`.

    `returned` begins the message: who returned what follows.
    """
    rows = answer.detach().cpu().float().numpy() if hasattr(answer, "detach") else answer
    if not hasattr(rows, "__len__") or isinstance(rows, str | bytes | dict):
        raise EncoderError(f"{returned} a {type(answer).__name__}; expected one vector per text.")
    if len(rows) != count:
        raise EncoderError(f"{returned} {counted(len(rows), 'vector')}; expected {count}.")
    vectors = [_vector(row, f"{returned}, for text {first + place},") for place, row in enumerate(rows)]
    expected = dimension or len(vectors[0])
    for place, vector in enumerate(vectors):
        if len(vector) != expected:
            raise EncoderError(
                f"{returned}, for text {first + place}, {counted(len(vector), 'number')}; "
                f"expected {expected}, as before."
            )
    return np.stack(vectors)


def _vector(row: Any, returned: str) -> Vector:
    try:
        vector = as_float32(row.detach().cpu().float().numpy() if hasattr(row, "detach") else row)
    except (TypeError, ValueError, OverflowError):
        raise EncoderError(f"{returned} a {type(row).__name__} {row!r:.40}; expected numbers.") from None
    if vector.ndim != 1 or not len(vector):
        raise EncoderError(f"{returned} an array of shape {vector.shape}; expected one vector.")
    if not np.isfinite(vector).all():
        bad = int(np.argmin(np.isfinite(vector)))
        raise EncoderError(f"{returned} {vector[bad]} at place {bad}; expected finite numbers.")
    return vector


def as_float32(values: Any) -> Vector:
    """The values as an array. `ValueError`, `TypeError` or `OverflowError` for what is no real number."""
    array = np.asarray(values)
    if np.iscomplexobj(array):
        raise ValueError("found complex numbers; expected real ones")
    with np.errstate(over="ignore"):
        return np.asarray(array, dtype=np.float32)


def stacked(vectors: Sequence[Vector], dimension: int) -> Vector:
    """Vectors as one array (n, dimension), also where there are none."""
    return np.stack(vectors) if len(vectors) else np.zeros((0, dimension), np.float32)


def delivered(rows: Vector, *, single: bool, convert_to_tensor: bool) -> Vector | torch.Tensor:
    """Rows as they were asked for: the only one for a single text, a torch tensor if wanted."""
    chosen = rows[0] if single else rows
    if not convert_to_tensor:
        return chosen
    import torch

    return torch.from_numpy(chosen)


@contextmanager
def searching(store: str, dimension: int) -> Iterator[None]:
    """Add to what a foreign store raises with what it was searched; the type stays, for those who retry."""
    try:
        yield
    except Exception as error:
        error.add_note(
            f"{store} was searched with a vector of {dimension} numbers. If it holds others, its documents "
            "were embedded by another model or with another truncate_dim."
        )
        raise


def check_dim(truncate_dim: int | None, dimension: int) -> None:
    """Raise `SettingsError` for a length to which vectors of `dimension` cannot be cut."""
    if truncate_dim is not None and not (_is_whole(truncate_dim) and 1 <= truncate_dim <= dimension):
        raise SettingsError(
            f"truncate_dim is {truncate_dim!r:.60}; expected None or a number from 1 to {dimension}."
        )


def check_batch(batch_size: int | None) -> None:
    """Raise `SettingsError` for what is no number of texts to embed at a time."""
    if batch_size is not None and not (_is_whole(batch_size) and batch_size >= 1):
        raise SettingsError(f"batch_size is {batch_size!r:.60}; expected None or a whole number from 1.")


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


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

    @property
    def format(self) -> str:
        """The number format, in words."""
        return f"{self.quantization}, computing in {self.dtype}" if self.quantization else self.dtype

    def to_dict(self) -> dict[str, str | None]:
        """The precision as plain JSON values."""
        return asdict(self)


class InSpace(Protocol):
    """What makes vectors: it says of which space they are, and how it computes them."""

    @property
    def space(self) -> VectorSpace:
        """Identity of the document space."""
        ...

    @property
    def precision(self) -> Precision:
        """How the vectors are computed."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLimit:
    """How much of a text an encoder reads: so many `tokens` of a `tokenizer`, given as its JSON."""

    tokens: int
    tokenizer: str

    @classmethod
    def of(cls, tokenizer: Any, tokens: int | None) -> TokenLimit | None:
        """That of a tokenizer of transformers; None for a slow one, or without a limit."""
        fast = getattr(tokenizer, "backend_tokenizer", None)
        return None if fast is None or tokens is None else cls(tokens=tokens, tokenizer=fast.to_str())

    def count(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text has, without those that a model puts around it."""
        found = _loaded(self.tokenizer).encode_batch_fast(list(texts), add_special_tokens=False)
        return [len(each.ids) for each in found]


@functools.lru_cache(maxsize=2)
def _loaded(tokenizer: str) -> Any:
    from tokenizers import Tokenizer

    loaded = Tokenizer.from_str(tokenizer)
    loaded.no_truncation()
    loaded.no_padding()
    return loaded


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
