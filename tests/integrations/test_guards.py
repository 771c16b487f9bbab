"""Without its framework, an adapter says what to install; with it, it imports no other framework."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
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
loaded = {{name.split(".")[0] for name in sys.modules}} & set({names!r})
assert not loaded, loaded
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


# A process that has imported what all adapters need, and runs each script in a fork of its own.
PARENT = """
import contextlib, gc, importlib, json, os, sys, traceback
gc.disable()  # looking through what is imported takes a quarter of the time
common = ("pydantic", "o1_retriever.search.retriever", "o1_retriever.index.index",
          "o1_retriever.evaluation.collection")
for name in common:
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
for line in sys.stdin:
    job = json.loads(line)
    reading, writing = os.pipe()
    if not os.fork():
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        sys.path[:0] = job["first"]
        try:
            exec(job["code"], {})
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    os.close(writing)
    with open(reading) as file:
        print(json.dumps(file.read()), flush=True)
    os.wait()
"""
Run = Callable[..., str]


@pytest.fixture(scope="module")
def run(root: Path) -> Iterator[Run]:
    """What a script says, in an environment of which the folders `first` are a part."""
    if not hasattr(os, "fork"):
        pytest.skip("this system does not fork")
    path = {"PYTHONPATH": f"{root}:{root / 'integrations'}", "PATH": "/usr/bin:/bin"}
    command, pipe = [sys.executable, "-W", "ignore", "-c", PARENT], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=path, cwd=root) as parent:

        def said(code: str, *first: Path) -> str:
            assert parent.stdin is not None
            assert parent.stdout is not None
            parent.stdin.write(json.dumps({"code": code, "first": list(map(str, first))}) + "\n")
            parent.stdin.flush()
            return str(json.loads(parent.stdout.readline()))

        yield said


@pytest.mark.parametrize("package", ADAPTERS)
def test_a_missing_framework_names_its_extra(package: str, run: Run) -> None:
    framework, extra = ADAPTERS[package]
    code = REFUSING.format(names=[framework]) + f"import {package}"
    said = run(code)
    assert "MissingExtraError" in said
    assert f"pip install 'o1-retriever[{extra}]'" in said


@pytest.mark.parametrize("package", ADAPTERS)
def test_an_adapter_needs_its_own_framework_alone(package: str, run: Run) -> None:
    framework, _ = ADAPTERS[package]
    pytest.importorskip(framework)
    others = [each for each, _ in ADAPTERS.values() if each != framework]
    others += ["langchain", "langchain_chroma"]
    others += [] if framework in ("haystack", "dspy") else ["openai"]  # which these two import themselves
    code = REFUSING.format(names=others) + f"import {package}; print(sorted({package}.__all__))"
    said = run(code)
    assert said.strip().startswith("['"), said


@pytest.mark.parametrize("package", ADAPTERS)
def test_a_framework_of_another_version_is_named_with_the_versions_that_fit(
    package: str, run: Run, tmp_path: Path
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
    said = run(f"import {package}", tmp_path)
    assert "WrongVersionError" in said
    assert f"needs {name} <99.1,>=99; found version {version(name)}." in said
    assert f"pip install 'o1-retriever[{extra}]'" in said
