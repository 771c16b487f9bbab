"""Environments for the tests of packaging: the wheel with one extra, over a layer of what it always needs."""

from __future__ import annotations

import email
import importlib.metadata
import os
import shutil
import subprocess
import venv
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from packaging.requirements import Requirement

TOOLS = ("pytest", "pytest-asyncio", "pytest-timeout", "pytest-socket", "hypothesis")
# What a test needs besides its own folder.
SHARED = ("pyproject.toml", "tests", "models", "cookbook", "training/recipes")


def metadata(wheel: Path) -> email.message.Message:
    """The wheel's own metadata."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def requirements(wheel: Path) -> list[str]:
    """What the wheel needs without any extra."""
    every = map(Requirement, metadata(wheel).get_all("Requires-Dist") or [])
    return [str(each) for each in every if each.marker is None or each.marker.evaluate({"extra": ""})]


def extras(wheel: Path) -> list[str]:
    """The extras that the wheel offers."""
    return list(metadata(wheel).get_all("Provides-Extra") or [])


def run(command: list[object], folder: Path, *, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, without our tree on any path, and show what it said when it fails."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(each) for each in command], cwd=folder, env=kept, capture_output=True, text=True
    )
    if check and done.returncode:
        raise AssertionError(f"{command[:4]} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done


class Base:
    """The dependencies of the core, without our wheel: a gigabyte that every environment shares."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.wheel = wheel
        venv.create(folder / "base", with_pip=True)
        self._python = folder / "base" / "bin" / "python"
        # The same version as here, and without a local part such as +cpu, which an index may not know.
        torch = importlib.metadata.version("torch").split("+")[0]
        self._pip(self._python, f"torch=={torch}", *requirements(wheel))
        self.site = next((folder / "base" / "lib").glob("python*/site-packages"))

    @contextmanager
    def environment(self, folder: Path, extra: str) -> Iterator[Environment]:
        """A fresh environment with the wheel, and what one extra asks for ("": none); gone afterwards."""
        venv.create(folder / "env", with_pip=False)
        site = next((folder / "env" / "lib").glob("python*/site-packages"))
        # pip sees the shared layer as installed, and puts into the environment what is missing there.
        (site / "zz_base.pth").write_text(f"{self.site}\n")
        environment = Environment(self, folder, folder / "env" / "bin" / "python")
        try:
            environment.install(f"{self.wheel}[{extra}]" if extra else str(self.wheel))
            yield environment
        finally:
            # pytest keeps the folders of three runs, and these have up to a gigabyte each.
            shutil.rmtree(folder / "env")

    def install(self, python: Path, *names: str) -> None:
        """Install packages into an environment."""
        self._pip(python, *names)

    def _pip(self, python: Path, *names: str) -> None:
        options = ["--python", python, "--disable-pip-version-check"]
        run([self._python, "-m", "pip", *options, "install", "--quiet", *names], self.wheel.parent)


class Environment:
    """An environment with the wheel in it, and no way to our tree."""

    def __init__(self, base: Base, folder: Path, python: Path) -> None:
        self._base = base
        self.folder = folder
        self.python = python

    def install(self, *names: str) -> None:
        """Install further packages."""
        self._base.install(self.python, *names)

    def says(self, script: Path, *arguments: object) -> str:
        """What a script prints there."""
        # -P: the folder of the scripts, some of which are named as packages are, stays off the path.
        return run([self.python, "-P", script, *arguments], self.folder).stdout.strip()

    def tests(self, root: Path, *arguments: str) -> str:
        """Run tests of ours against the installed wheel; the last line of pytest."""
        away = self.folder / "away"
        away.mkdir()
        for name in SHARED:
            if name == "tests":
                shutil.copytree(root / name, away / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                (away / name).parent.mkdir(exist_ok=True)
                (away / name).symlink_to(root / name)
        done = run(
            [self.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments], away, check=False
        )
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        return done.stdout.strip().splitlines()[-1]
