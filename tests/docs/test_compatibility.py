"""The page of compatibility is what the tests say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.compatibility import PACKAGES, PAGE, checks, claims, files, modules


def test_what_the_page_says_is_checked() -> None:
    if not PAGE.is_file():
        pytest.skip("the source distribution has no docs")
    said = list(claims())
    assert len(said) > 100
    made = {path: set(checks(path)) for path, _ in said if path.is_file()}
    gone = [check for path, check in said if check not in made.get(path, ())]
    assert not gone, "type: python -m tests.support.compatibility"


def test_every_adapter_is_on_it(root: Path) -> None:
    tried = {PACKAGES[module] for path in files() for module in modules(path)}
    assert tried >= {
        "langchain-core",
        "langchain-classic",
        "langgraph",
        "llama-index-core",
        "chromadb",
        "mteb",
    }
    assert tried >= {"haystack-ai", "dspy", "fastembed", "sentence-transformers"}
