"""The wheel, built once, and environments that hold it with what one extra asks for and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.environments import Base


@pytest.fixture(scope="session")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    # The source distribution first and the wheel from it, as an index would serve them.
    subprocess.run([sys.executable, "-m", "build", "--outdir", out, root], check=True, capture_output=True)
    assert len(list(out.glob("*.tar.gz"))) == 1
    return next(out.glob("*.whl"))


@pytest.fixture(scope="session")
def base(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Base]:
    """What the wheel needs without any extra, installed once for all environments."""
    folder = tmp_path_factory.mktemp("base")
    yield Base(folder, wheel)
    shutil.rmtree(folder)
