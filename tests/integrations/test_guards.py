"""Without its framework, an adapter says what to install; with it, it imports no other framework."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

# Importing from a meta path that refuses the framework is what an environment without it looks like.
REFUSING = """
import sys
class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Refusing())
"""
ADAPTERS = {
    "langchain_o1_retriever": ("langchain_core", "langchain"),
    "llama_index_o1_retriever": ("llama_index", "llama-index"),
    "chroma_o1_retriever": ("chromadb", "index"),
    "mteb_o1_retriever": ("mteb", "eval"),
    "haystack_o1_retriever": ("haystack", "haystack"),
    "dspy_o1_retriever": ("dspy", "dspy"),
    "o1_retriever_server": ("fastapi", "serve"),
}


def run(code: str, root: Path, *first: Path) -> str:
    """What a script says in an environment of which the folders `first` are a part."""
    places = ":".join(map(str, [*first, root, root / "integrations"]))
    path = {"PYTHONPATH": places, "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=path, cwd=root)
    return done.stdout + done.stderr


@pytest.mark.parametrize("package", ADAPTERS)
def test_a_missing_framework_names_its_extra(package: str, root: Path) -> None:
    framework, extra = ADAPTERS[package]
    code = REFUSING.format(names=[framework]) + f"import {package}"
    said = run(code, root)
    assert "MissingExtraError" in said
    assert f"pip install 'o1-retriever[{extra}]'" in said


@pytest.mark.parametrize("package", ADAPTERS)
def test_an_adapter_needs_its_own_framework_alone(package: str, root: Path) -> None:
    framework, _ = ADAPTERS[package]
    pytest.importorskip(framework)
    others = [each for each, _ in ADAPTERS.values() if each != framework]
    others += ["langchain", "langchain_chroma"]
    others += [] if framework in ("haystack", "dspy") else ["openai"]  # which these two import themselves
    code = REFUSING.format(names=others) + f"import {package}; print(sorted({package}.__all__))"
    assert run(code, root).strip().startswith("['"), run(code, root)


@pytest.mark.parametrize("package", ADAPTERS)
def test_a_framework_of_another_version_is_named_with_the_versions_that_fit(
    package: str, root: Path, tmp_path: Path
) -> None:
    framework, extra = ADAPTERS[package]
    pytest.importorskip(framework)
    name = {"llama_index": "llama-index-core", "haystack": "haystack-ai"}.get(
        framework, framework.replace("_", "-")
    )
    # An installation of this library that asks for a version that nobody has.
    info = tmp_path / "o1_retriever-1.dist-info"
    info.mkdir()
    asked = f'Requires-Dist: {name}<99.1,>=99; extra == "{extra}"'
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: o1-retriever\nVersion: 1\n{asked}\n")
    said = run(f"import {package}", root, tmp_path)
    assert "WrongVersionError" in said
    assert f"needs {name} <99.1,>=99; found version {version(name)}." in said
    assert f"pip install 'o1-retriever[{extra}]'" in said
