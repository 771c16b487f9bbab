"""The distribution as a stranger installs it: built, listed, installed, started."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import o1_retriever
from tests.support.commands import save
from tests.support.environments import metadata, run

pytestmark = pytest.mark.packaging


def folders(root: Path) -> list[Path]:
    settings = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    return [root / package for package in settings["wheel"]["packages"]]


def packages(root: Path) -> set[str]:
    return {folder.name for folder in folders(root)}


def test_the_wheel_holds_the_packages_and_nothing_else(root: Path, wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == packages(root)
    assert {f"{package}/py.typed" for package in packages(root)} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert [name for name in names if name.endswith(".json")] == [
        "o1_retriever/cli/catalogue.json",
        "o1_retriever/cli/demo.json",
    ]
    assert wheel.stat().st_size < 1_000_000


def test_the_wheel_holds_every_file_of_the_packages(root: Path, wheel: Path, tracked: list[str]) -> None:
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {
        (root / name).relative_to(folder.parent).as_posix()
        for folder in folders(root)
        for name in tracked
        if (root / name).is_relative_to(folder)
    }
    assert held == expected - {"o1_retriever/README.md"}


def test_the_source_distribution_holds_the_sources_and_their_tests(sdist: Path, tracked: list[str]) -> None:
    with tarfile.open(sdist) as archive:
        held = {each.name.partition("/")[2] for each in archive.getmembers() if each.isfile()}
    roots = (
        "o1_retriever/",
        "integrations/",
        "training/o1_retriever_training/",
        "training/recipes/",
        "tests/",
    )
    pages = {"README.md", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "SECURITY.md", "LICENSE"}
    own = {name for name in tracked if name.startswith(roots)} | pages
    assert held == own | {"PKG-INFO", "pyproject.toml", ".gitignore"}


def test_the_version_stands_in_one_place(root: Path, wheel: Path) -> None:
    assert metadata(wheel)["Version"] == o1_retriever.__version__
    assert o1_retriever.__version__ in wheel.name
    place = f'__version__ = "{o1_retriever.__version__}"'
    assert (root / "o1_retriever" / "__init__.py").read_text(encoding="utf-8").count(place) == 1
    assert "version" not in tomllib.loads((root / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with the wheel; what it needs is that of this environment: only our files are new."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "env", with_pip=True)
    python = folder / "env" / "bin" / "python"
    command = [python, "-m", "pip", "install", "--no-deps", "--quiet", wheel]
    subprocess.run(command, check=True, capture_output=True)
    here = next(path for path in sys.path if path.endswith("site-packages"))
    site = next((folder / "env" / "lib").glob("python*/site-packages"))
    (site / "zz_dependencies.pth").write_text(here + "\n")
    return python


def test_somebody_elses_program_is_checked_strictly(installed: Path, tmp_path: Path) -> None:
    program = tmp_path / "consumer.py"
    program.write_bytes((Path(__file__).parent / "consumer.py").read_bytes())
    command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", installed, program]
    done = run(command, tmp_path, check=False)
    # The one mistake in it is found, so that the types were read and are no `Any`.
    assert "Found 1 error in 1 file" in done.stdout, done.stdout
    assert "Incompatible return value type" in done.stdout


def test_it_installs_and_starts_away_from_the_tree(installed: Path, tmp_path: Path) -> None:
    python, script = installed, installed.parent / "o1-retriever"

    def said(*command: object) -> str:
        return run(list(command), tmp_path).stdout

    where = "import o1_retriever; print(o1_retriever.__file__)"
    assert str(python.parent.parent) in said(python, "-c", where)
    assert "search" in said(script, "--help")
    use = """
from o1_retriever import ThinkingEmbedder
import numpy as np

def think(queries, k): return [["a thought"] * k for _ in queries]
def encode(texts): return np.ones((len(texts), 3))

print(ThinkingEmbedder.from_parts(think, encode, cache=False).encode_queries(["why?"]).shape)
"""
    assert said(python, "-c", use).strip() == "(1, 3)"
    model = save(tmp_path / "model")
    shown = said(script, "demo", "--model", model, "-n", "1", "--max-new-tokens", "3")
    assert shown.count("Right passage: ") == 5
    assert "o1-retriever index FOLDER" in shown
