"""Fixtures that every test may use."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import gc
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.support.serve import served_model as served_model

# Until all tests are imported: to look through what grows again and again takes a quarter of that time.
gc.disable()

# Two threads collapse when another process is busy.
torch.set_num_threads(1)

# How long an example takes is the machine's affair.
settings.register_profile(
    "any machine",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("any machine")

# Whoever starts pytest in the background leaves it with SIGINT ignored, and every process that a test starts
# would inherit that; those of a handler do not.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Environments are built first: one worker does that, and another need not wait for it at the end."""
    items.sort(key=lambda item: item.get_closest_marker("packaging") is None)


def pytest_collection_finish() -> None:
    """What has been imported stays: nobody who collects garbage, as each training does, looks through it."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _no_users_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nor does a fixture of a module or of the session, which begins before any test does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("O1_RETRIEVER_CACHE", str(tmp_path_factory.mktemp("fixtures")))
        yield


@pytest.fixture(autouse=True)
def _own_cache_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's own cache."""
    monkeypatch.setenv("O1_RETRIEVER_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT
