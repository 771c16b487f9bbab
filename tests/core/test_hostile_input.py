"""Files that were made to harm whoever reads them are refused in words."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from o1_retriever.cli.evaluate import read_questions
from o1_retriever.engine.checkpoint import base_of, read_stored
from o1_retriever.engine.template import CONFIG_NAME, TemplateConfig
from o1_retriever.errors import O1RetrieverError, SettingsError
from o1_retriever.query import read_history
from o1_retriever.search.result import SearchSettings
from o1_retriever.thinkers import RecordedThinker
from o1_retriever.thinkers.config import CONFIG_NAME as THINKER_NAME
from o1_retriever.thinkers.config import ThinkerConfig
from o1_retriever.thought import ThoughtSettings

DEEP = "[" * 100_000


def named(name: str, read: Callable[[Path], object]) -> Callable[[Path], object]:
    """Read a folder that holds the deep text under a name."""

    def reading(folder: Path) -> object:
        (folder / name).write_text(DEEP)
        return read(folder)

    return reading


def weights(folder: Path) -> object:
    header = DEEP.encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"0")
    return read_stored(folder)


READERS = {
    "recorded thoughts": named("a.jsonl", lambda folder: RecordedThinker(folder / "a.jsonl")),
    "a conversation": named("a.json", lambda folder: read_history(folder / "a.json")),
    "questions": named("a.jsonl", lambda folder: read_questions(folder / "a.jsonl")),
    "our config": named(CONFIG_NAME, lambda folder: TemplateConfig.from_file(folder / CONFIG_NAME)),
    "a thinker's config": named(THINKER_NAME, ThinkerConfig.beside),
    "an adapter's config": named("adapter_config.json", base_of),
    "weights": weights,
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_what_is_nested_too_deeply_is_refused(read: Callable[[Path], object], tmp_path: Path) -> None:
    with pytest.raises(O1RetrieverError):
        read(tmp_path)


@pytest.mark.parametrize(
    ("settings", "name"),
    [(ThoughtSettings, "thinking"), (SearchSettings, "thinking"), (SearchSettings, "pooling")],
)
def test_arrays_and_other_things_are_no_words(settings: Callable[..., object], name: str) -> None:
    for value in (np.zeros(2), ["never"], {}, 3):
        with pytest.raises(SettingsError, match=f"{name} is"):
            settings(**{name: value})
