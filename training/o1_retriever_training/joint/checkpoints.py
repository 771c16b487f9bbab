"""Checkpoints that count only when they are whole: a mark is written last, and a kill leaves none."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from o1_retriever.storage.files import written_whole
from o1_retriever_training.errors import OtherRecipeError, TrainingError

logger = logging.getLogger(__name__)

MARK = "complete.json"
_PREFIX = "checkpoint-"


@contextlib.contextmanager
def enough_space(folder: Path, *others: type[Exception]) -> Iterator[None]:
    """Say what to do when a folder cannot be written, which may also raise `others`.

    Raises `TrainingError`.
    """
    kinds: tuple[type[Exception], ...] = (OSError, SafetensorError, *others)
    try:
        yield
    except kinds as error:
        raise TrainingError(
            f"{folder} could not be written: {error}. The last checkpoint is whole.",
            hint="Free some space, then type the same command: it goes on from there.",
        ) from error


def mark(folder: Path, *, fingerprint: str, step: int, data: str = "") -> None:
    """Say that a checkpoint is whole: what recipe and data it belongs to, and every file with its size."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.name.startswith(MARK):
            continue
        # A mark that outlived a power failure must not speak of data that did not.
        with path.open("rb") as file:
            os.fsync(file.fileno())
        files[str(path.relative_to(folder))] = path.stat().st_size
    content = {"recipe": fingerprint, "data": data, "step": step, "files": files}
    with written_whole(folder / MARK) as text:
        json.dump(content, text, indent=1)


def is_whole(folder: Path) -> bool:
    """Whether a checkpoint was finished and nothing of it is gone or shorter."""
    content = _marked(folder)
    if content is None:
        return False
    return all(
        (folder / name).is_file() and (folder / name).stat().st_size == size
        for name, size in content["files"].items()
    )


def newest(folder: Path, *, fingerprint: str) -> Path | None:
    """The latest whole checkpoint in `folder`; None where there is none.

    Raises `OtherRecipeError` when it belongs to another recipe.
    """
    for checkpoint in sorted(_checkpoints(folder), key=step_of, reverse=True):
        content = _marked(checkpoint)
        if content is None or not is_whole(checkpoint):
            logger.warning("%s was not finished and is skipped", checkpoint)
            continue
        if content["recipe"] != fingerprint:
            raise OtherRecipeError(
                f"{checkpoint} belongs to the recipe {content['recipe']}; this one is {fingerprint}.",
                hint="Give another output, or start over with --from-scratch: what is there is removed.",
            )
        return checkpoint
    return None


def check_data(checkpoint: Path, data: str) -> None:
    """Raise `OtherRecipeError` when a checkpoint was trained on other rows than those of today."""
    content = _marked(checkpoint) or {}
    if content.get("data", data) != data:
        raise OtherRecipeError(
            f"The rows have changed since {checkpoint} was written: their order would be another one.",
            hint="Bring the rows back, give another output, or start over with --from-scratch.",
        )


def rotate(folder: Path, *, keep: int, best: int | None) -> None:
    """Remove all but the last `keep` whole checkpoints and that of step `best`, and what is not whole."""
    whole = sorted((path for path in _checkpoints(folder) if is_whole(path)), key=step_of)
    kept = {*whole[-keep:], *(path for path in whole if step_of(path) == best)}
    for path in _checkpoints(folder):
        if path not in kept:
            # Without its mark first: a removal that is cut short leaves no whole-looking checkpoint.
            (path / MARK).unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint was written after."""
    return int(checkpoint.name.removeprefix(_PREFIX))


def _checkpoints(folder: Path) -> list[Path]:
    found = folder.glob(f"{_PREFIX}*") if folder.is_dir() else []
    return [path for path in found if path.is_dir() and path.name.removeprefix(_PREFIX).isdigit()]


def _marked(folder: Path) -> dict[str, Any] | None:
    try:
        content = json.loads((folder / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and {"recipe", "files"} <= content.keys() else None
