"""What stands beside the weights of a trained thinker: its chat, how it samples, and its small matrix."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from o1_retriever.endpoint.chat import ChatPrompt
from o1_retriever.errors import CheckpointError, SettingsError, require
from o1_retriever.thought import ThoughtSettings, Vector

CONFIG_NAME = "o1_thinker.json"
MATRIX = "o1_correction.safetensors"

# What reading a damaged config may end with.
_WRONG = (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError, SettingsError)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Correction:
    """W h: what a thinker's state adds to the vector of the encoder that it was trained beside.

    `down` float32 [rank, width] and `up` [dimension, rank] are the two factors of W. A state is scaled to a
    root mean square of 1 first, and the result by 1 / sqrt(dimension). `encoder` are the `weights` in the
    space of that encoder, None where they are not known: beside another one nothing is corrected.
    """

    down: Vector
    up: Vector
    encoder: str | None = None

    def of(self, states: Vector) -> Vector:
        """The corrections [n, dimension] of states [n, width]."""
        scaled = states / np.sqrt(np.square(states).mean(axis=-1, keepdims=True) + np.finfo(np.float32).eps)
        return np.asarray(scaled @ self.down.T @ self.up.T / len(self.up) ** 0.5, dtype=np.float32)

    @property
    def identity(self) -> str:
        """A hash of the numbers."""
        digest = hashlib.blake2b(digest_size=16)
        for part in (self.down, self.up):
            digest.update(np.ascontiguousarray(part, np.float32).tobytes())
        return digest.hexdigest()

    @classmethod
    def beside(cls, folder: Path) -> Correction | None:
        """The matrix in a model's folder, None without one. Raises `CheckpointError` for a damaged one."""
        path = folder / MATRIX
        if not path.is_file():
            return None
        require("safetensors", extra="local", purpose="A thinker's matrix")
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "numpy") as parts:
                encoder = (parts.metadata() or {}).get("encoder")
                down, up = (np.asarray(parts.get_tensor(name), np.float32) for name in ("down", "up"))
            if down.ndim != 2 or up.ndim != 2 or len(down) != up.shape[1]:
                raise ValueError(f"shapes {down.shape} and {up.shape}")
            if not (np.isfinite(down).all() and np.isfinite(up).all()):
                raise ValueError("numbers that are not finite")
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise CheckpointError(
                f"{path} cannot be used: {type(error).__name__}: {error}. Expected the matrices down "
                "[rank, width] and up [dimension, rank]."
            ) from None
        return cls(down=down, up=up, encoder=encoder)

    def save(self, folder: Path) -> None:
        """Write the file into a model's folder."""
        from safetensors.numpy import save_file

        parts = {name: np.ascontiguousarray(getattr(self, name), np.float32) for name in ("down", "up")}
        save_file(
            parts, folder / MATRIX, metadata=None if self.encoder is None else {"encoder": self.encoder}
        )
        (folder / MATRIX).chmod(0o644)


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinkerConfig:
    """A trained thinker's own small config file, `o1_thinker.json`.

    `settings` are the `ThoughtSettings` that it prefers; what is missing there falls back to a local model's.
    `correction` stands in a file of its own.
    """

    prompt: ChatPrompt = field(default_factory=ChatPrompt)
    settings: dict[str, Any] = field(default_factory=dict)
    correction: Correction | None = None

    @classmethod
    def beside(cls, folder: Path) -> ThinkerConfig | None:
        """The config in a model's folder, None without one. Raises `CheckpointError` for a damaged one."""
        path = folder / CONFIG_NAME
        if not path.is_file():
            return None
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            prompt = data["prompt"]
            examples = tuple((str(query), str(thought)) for query, thought in prompt.get("examples", ()))
            found = ChatPrompt(user=prompt["user"], system=prompt.get("system"), examples=examples)
            settings = dict(data.get("settings", {}))
            ThoughtSettings().with_changes(**settings)
        except _WRONG as error:
            raise CheckpointError(
                f"{path} cannot be used: {type(error).__name__}: {error}. Expected an object with a prompt "
                "(user, system, examples) and settings."
            ) from None
        return cls(prompt=found, settings=settings, correction=Correction.beside(folder))

    def save(self, folder: Path) -> None:
        """Write the files into a model's folder."""
        own = {"prompt": asdict(self.prompt), "settings": self.settings}
        text = json.dumps({"format_version": 1, **own}, indent=2, ensure_ascii=False)
        (folder / CONFIG_NAME).write_text(text + "\n", encoding="utf-8")
        if self.correction is not None:
            self.correction.save(folder)
