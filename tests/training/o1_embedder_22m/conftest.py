"""The scripts of training/o1_embedder_22m find each other by name, as they do when they are run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[3] / "training" / "o1_embedder_22m"


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    known = set(sys.modules)
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield
    for name in set(sys.modules) - known:  # `data` and `model` are names that others may want
        if (SCRIPTS / f"{name}.py").is_file():
            del sys.modules[name]
