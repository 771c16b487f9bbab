"""The distribution as a stranger installs it: built, listed, installed, started."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from tests.support.commands import save

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


def test_every_module_of_the_tree_is_in_the_wheel(root: Path, wheel: Path) -> None:
    tree = {
        path.relative_to(folder.parent).as_posix()
        for folder in folders(root)
        for path in folder.rglob("*.py")
    }
    assert len(tree) > 80
    assert tree <= set(zipfile.ZipFile(wheel).namelist())


def test_it_installs_and_starts_away_from_the_tree(wheel: Path, tmp_path: Path) -> None:
    # The dependencies are those of this environment: only our own files are new.
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run(
        [python, "-m", "pip", "install", "--no-deps", "--quiet", wheel], check=True, capture_output=True
    )
    here = next(path for path in sys.path if path.endswith("site-packages"))
    site = next((tmp_path / "env" / "lib").glob("python*/site-packages"))
    (site / "zz_dependencies.pth").write_text(here + "\n")
    where = "import o1_retriever; print(o1_retriever.__file__)"
    found = subprocess.run(
        [python, "-c", where], check=True, capture_output=True, text=True, cwd=tmp_path
    ).stdout
    assert str(tmp_path) in found
    script = tmp_path / "env" / "bin" / "o1-retriever"
    shown = subprocess.run(
        [script, "--help"], check=True, capture_output=True, text=True, cwd=tmp_path
    ).stdout
    assert "search" in shown
    use = """
from o1_retriever import ThinkingEmbedder
import numpy as np

def think(queries, k): return [["a thought"] * k for _ in queries]
def encode(texts): return np.ones((len(texts), 3))

print(ThinkingEmbedder.from_parts(think, encode, cache=False).encode_queries(["why?"]).shape)
"""
    out = subprocess.run([python, "-c", use], check=True, capture_output=True, text=True, cwd=tmp_path).stdout
    assert out.strip() == "(1, 3)"
    empty = tmp_path / "empty"
    empty.mkdir()
    model = save(tmp_path / "model")
    demo = [script, "demo", "--model", model, "-n", "1", "--max-new-tokens", "3"]
    shown = subprocess.run(demo, check=True, capture_output=True, text=True, cwd=empty).stdout
    assert shown.count("Right passage: ") == 5
    assert "o1-retriever index FOLDER" in shown
