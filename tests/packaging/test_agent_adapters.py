"""LangChain's own adapter for MCP, which asks for an older mcp than ours: in an environment of its own."""

from __future__ import annotations

import venv
from pathlib import Path

import pytest

pytest.importorskip("mcp", reason="needs the extra `serve`")
pytest.importorskip("chromadb", reason="needs the extra `index`")

from o1_retriever import Index
from o1_retriever.documents import Document
from o1_retriever_server import create_app
from tests.support.adapters import TEXTS, small_embedder
from tests.support.environments import run
from tests.support.http_server import serving

pytestmark = [pytest.mark.packaging, pytest.mark.timeout(900)]

AGENT = Path(__file__).parent / "uses" / "agent_of_langchain.py"


def test_an_agent_of_langchain_finds_by_its_own_reasoning(tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    run([python, "-m", "pip", "install", "--quiet", "langchain-mcp-adapters", "langchain"], tmp_path)
    with Index(tmp_path / "index", small_embedder()) as index:
        index.add(Document(id=name, text=text) for name, text in TEXTS.items())
        with serving(create_app(small_embedder(), {"facts": index})) as server:
            said = run([python, "-P", AGENT, f"{server.url}/mcp"], tmp_path).stdout
    assert said.strip() == f"explain index_status search think: {TEXTS['bread']}"
