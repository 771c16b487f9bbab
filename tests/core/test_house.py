"""Rules of the house that no type checker sees: imports point one way, the package is light, names exist."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import o1_retriever
from o1_retriever import errors

CORE = Path(o1_retriever.__file__).parent
ADAPTERS = CORE.parent / "integrations"
FRAMEWORKS = {
    "langchain", "langchain_core", "llama_index", "langchain_o1_retriever", "llama_index_o1_retriever",
    "chroma_o1_retriever", "mteb_o1_retriever", "o1_retriever_training",
}  # fmt: skip
HEAVY = {"torch", "transformers", "chromadb", "sentence_transformers", "bitsandbytes", "openai", "numpy"}


def modules(folder: Path) -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(folder.rglob("*.py")):
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", ["o1_retriever"])
def test_the_core_imports_no_framework_and_no_training(package: str) -> None:
    for path, tree in modules(CORE):
        assert not imported(tree) & FRAMEWORKS, path


def test_an_adapter_knows_its_own_framework_and_the_core_alone() -> None:
    packages = {path.name for path in ADAPTERS.iterdir() if (path / "__init__.py").is_file()}
    assert packages == {name for name in FRAMEWORKS if name.endswith("_o1_retriever")}
    for path, tree in modules(ADAPTERS):
        own = path.relative_to(ADAPTERS).parts[0]
        known = {own, own.removesuffix("_o1_retriever"), f"{own.removesuffix('_o1_retriever')}_core"}
        assert not imported(tree) & FRAMEWORKS - known, path


def loaded_by(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=CORE.parent
    )
    return set(run.stdout.split())


def test_importing_the_package_is_light_and_silent() -> None:
    assert not loaded_by("import o1_retriever") & HEAVY
    assert "torch" not in loaded_by(
        "from o1_retriever import ThinkingEmbedder, Retriever, Index, ThoughtSettings"
    )
    run = subprocess.run(
        [sys.executable, "-W", "always", "-c", "import o1_retriever"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == run.stderr == ""


def test_the_public_names_are_there() -> None:
    for name in o1_retriever.__all__:
        assert getattr(o1_retriever, name) is not None
        assert name in dir(o1_retriever)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        o1_retriever.Nothing  # noqa: B018


def test_every_extra_that_a_message_names_exists(root: Path) -> None:
    extras = set(tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    named = set()
    for _, tree in [*modules(CORE), *modules(ADAPTERS)]:
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "extra" and isinstance(node.value, ast.Constant):
                named.add(node.value.value)
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                named |= set(re.findall(r"o1-retriever\[([a-z0-9-]+)\]", node.value))
    assert named, "no message names an extra: the search is broken"
    assert named <= extras


def test_the_tree_of_errors_is_drawn_completely() -> None:
    for name, kind in inspect.getmembers(errors, inspect.isclass):
        if kind.__module__ == errors.__name__:
            assert re.search(rf"\b{name}\b", errors.__doc__ or ""), name
            assert issubclass(kind, errors.O1RetrieverError)


def test_nothing_is_printed_by_the_library() -> None:
    for path, tree in [*modules(CORE), *modules(ADAPTERS)]:
        calls = [
            n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "print"
        ]
        assert not calls, path
