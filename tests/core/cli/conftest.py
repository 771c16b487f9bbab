"""A folder with documents to be in, and tiny models."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import NOTES, ok, save


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def other_model(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch, model) -> Path:
    """A folder with documents, and the tiny model as everybody's default."""
    for name, text in NOTES.items():
        file = tmp_path / "notes" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("O1_RETRIEVER_MODEL", str(model))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("O1_RETRIEVER_INDEX", raising=False)
    return tmp_path


@pytest.fixture
def indexed(here) -> Path:
    ok("index", "notes")
    return here
