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
def tracked(root: Path) -> list[str]:
    """The files of the repository; whatever else lies in the folder belongs to its owner."""
    if not (root / ".git").exists():
        pytest.skip("the source distribution is no repository")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, check=True, capture_output=True, text=True)
    return [name for name in listed.stdout.split("\0") if name and (root / name).is_file()]


@pytest.fixture(scope="session")
def distributions(root: Path, tracked: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the source distribution and the wheel, built of what a fresh clone holds."""
    clone = tmp_path_factory.mktemp("clone")
    for name in tracked:
        if not name.startswith("models/"):  # large, and in neither of the two
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, clone / name)
    out = tmp_path_factory.mktemp("dist")
    # The source distribution first and the wheel from it, as an index would serve them.
    subprocess.run([sys.executable, "-m", "build", "--outdir", out, clone], check=True, capture_output=True)
    return out


@pytest.fixture(scope="session")
def wheel(distributions: Path) -> Path:
    return next(distributions.glob("*.whl"))


@pytest.fixture(scope="session")
def sdist(distributions: Path) -> Path:
    [found] = distributions.glob("*.tar.gz")
    return found


@pytest.fixture(scope="session")
def base(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Base]:
    """What the wheel needs without any extra, installed once for all environments."""
    folder = tmp_path_factory.mktemp("base")
    yield Base(folder, wheel)
    shutil.rmtree(folder)
