"""docs/compatibility.md, from the tests: which package each file tries in which versions, and what it checks.

`python -m tests.support.compatibility` writes the page. The versions are those of the environment that it is
written in; the lowest are the floors of pyproject.toml, which `make lowest` installs and tries.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "compatibility.md"
# The packages that people have beside ours, by the module that a test imports or asks for.
PACKAGES = {
    "chromadb": "chromadb",
    "datasets": "datasets",
    "dspy": "dspy",
    "fastapi": "fastapi",
    "fastembed": "fastembed",
    "gunicorn": "gunicorn",
    "haystack": "haystack-ai",
    "langchain": "langchain",
    "langchain_chroma": "langchain-chroma",
    "langchain_classic": "langchain-classic",
    "langchain_core": "langchain-core",
    "lancedb": "lancedb",
    "langchain_openai": "langchain-openai",
    "langchain_postgres": "langchain-postgres",
    "langchain_qdrant": "langchain-qdrant",
    "langchain_tests": "langchain-tests",
    "langgraph": "langgraph",
    "llama_index.core": "llama-index-core",
    "llama_index.embeddings": "llama-index-embeddings-openai",
    "llama_index.tools": "llama-index-tools-mcp",
    "llama_index.vector_stores": "llama-index-vector-stores-chroma",
    "mcp": "mcp",
    "mteb": "mteb",
    "openai": "openai",
    "psycopg": "psycopg",
    "qdrant_client": "qdrant-client",
    "ray": "ray",
    "sentence_transformers": "sentence-transformers",
}
ALWAYS = ("torch", "transformers", "numpy", "huggingface-hub")
# Tests of the engine and of training import these too; they are not about living with other programs.
FOLDERS = ("integrations", "core")

HEAD = """# Compatibility

Written by `python -m tests.support.compatibility` from the tests: what stands here is tried by them, with the
real packages.

## Versions

The newest are those of the environment that this page was written in, which `make test` uses. The lowest are
the floors of `pyproject.toml`; `make lowest` installs them into an environment of their own and runs the
tests of the adapters there. torch is the exception: its floor has no CPU build on the package index, which
this page was written with, so that 2.13.0 was tried with the lowest of all others.

| package | lowest | newest |
| --- | --- | --- |
"""
SYSTEMS = (ROOT / "tests" / "support" / "compatibility_runs.md").read_text(encoding="utf-8")


@cache
def nodes(path: Path) -> list[ast.AST]:
    """The syntax tree of a file, all of it."""
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@cache
def modules(path: Path) -> set[str]:
    """The packages of `PACKAGES` that a test file imports, or skips its tests without."""
    found: set[str] = set()
    for node in nodes(path):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "importorskip" and node.args:
            names = [node.args[0].value] if isinstance(node.args[0], ast.Constant) else []
        for name in names:
            found |= {module for module in PACKAGES if f"{name}.".startswith(f"{module}.")}
    return found


def checks(path: Path) -> Iterator[str]:
    """The names of the tests of a file, which are sentences, and the suites of others that it runs."""
    for node in nodes(path):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield node.name.removeprefix("test_").replace("_", " ")
        elif isinstance(node, ast.ClassDef):
            suites = [ast.unparse(base) for base in node.bases if ast.unparse(base).endswith("Tests")]
            yield from (f"all of `{suite}`: {node.name.removeprefix('Test')}" for suite in suites)


def floors() -> dict[str, str]:
    """The lowest version of each package that pyproject.toml asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    asked = [*project["project"]["dependencies"], *project["dependency-groups"]["test"]]
    for extra in project["project"]["optional-dependencies"].values():
        asked += extra
    lowest: dict[str, str] = {}
    for each in map(Requirement, asked):
        for clause in each.specifier:
            if clause.operator == ">=":
                lowest[each.name] = clause.version
    return lowest


def newest(package: str) -> str:
    """The version that is installed here."""
    try:
        return version(package).split("+")[0]
    except PackageNotFoundError:
        return "not tried"


def files() -> list[Path]:
    """The test files that try a package of others."""
    every = [path for name in FOLDERS for path in sorted((ROOT / "tests" / name).rglob("test_*.py"))]
    return [path for path in every if modules(path)]


def page() -> str:
    """The whole page."""
    lowest, tried = floors(), files()
    packages = sorted({PACKAGES[module] for path in tried for module in modules(path)})
    rows = [f"| {name} | {lowest.get(name, 'any')} | {newest(name)} |" for name in (*ALWAYS, *packages)]
    parts = [HEAD + "\n".join(rows), SYSTEMS.strip(), "## What is checked"]
    for path in tried:
        [tree] = [node for node in nodes(path) if isinstance(node, ast.Module)]
        purpose = (ast.get_docstring(tree) or "").split("\n\n")[0]
        names = ", ".join(sorted(PACKAGES[module] for module in modules(path)))
        where = path.relative_to(ROOT).as_posix()
        listed = "\n".join(f"- {check}" for check in checks(path))
        parts.append(f"### {names}: `{where}`\n\n{' '.join(purpose.split())}\n\n{listed}")
    return "\n\n".join(parts) + "\n"


def claims() -> Iterator[tuple[Path, str]]:
    """Each test file that the page names, with each check that it says the file makes."""
    path = ROOT
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if heading := re.fullmatch(r"### .*`(.*)`", line):
            path = ROOT / heading[1]
        elif line.startswith("- ") and path != ROOT:
            yield path, line.removeprefix("- ")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
