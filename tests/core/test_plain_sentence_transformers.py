"""The checkpoint of the repository in plain sentence-transformers, without our code or any remote code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from o1_retriever import ThinkingEmbedder, ThoughtSettings

package = pytest.importorskip("sentence_transformers", reason="needs the extra `local`")

FAST = ThoughtSettings(thinking="never")
QUERIES = ["Why does my bathroom mirror go blank after a hot shower?", "dew"]


@pytest.fixture(scope="module")
def folder(root: Path) -> Path:
    return root / "models" / "o1-embedder-22m"


@pytest.fixture(scope="module")
def plain(folder: Path) -> Any:
    return package.SentenceTransformer(str(folder), device="cpu")


@pytest.fixture(scope="module")
def ours(folder: Path) -> ThinkingEmbedder:
    return ThinkingEmbedder.from_pretrained(folder, device="cpu", cache=False)


def passages(root: Path) -> list[str]:
    rows = (root / "cookbook" / "data" / "everyday" / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(row)["text"] for row in rows[:12]]
    return [*texts, "short", " ".join(texts)]


def test_documents_and_fast_queries_have_the_same_vectors(
    plain: Any, ours: ThinkingEmbedder, root: Path
) -> None:
    texts = passages(root)
    found = plain.encode_document(texts)
    # The last text is longer than the model reads: the token that is the embedding survives the cut.
    assert len(plain.tokenizer(texts[-1])["input_ids"]) > 512
    assert np.allclose(found, ours.encode_documents(texts, show_progress_bar=False), atol=2e-6)
    assert np.allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)
    queries = plain.encode_query(QUERIES)
    assert np.allclose(queries, ours.encode_queries(QUERIES, settings=FAST), atol=2e-6)
    assert not np.allclose(queries, plain.encode_document(QUERIES), atol=1e-3)
    assert plain.similarity_fn_name == "cosine"


@pytest.mark.long
def test_nothing_of_ours_is_needed(folder: Path) -> None:
    kinds = [module["type"] for module in json.loads((folder / "modules.json").read_text())]
    assert all(kind.startswith("sentence_transformers.") for kind in kinds)
    assert not list(folder.rglob("*.py"))
    assert "auto_map" not in (folder / "config.json").read_text()
    script = (
        "import sys; from sentence_transformers import SentenceTransformer as S;"
        f"print(S({str(folder)!r}, trust_remote_code=False).encode_query('why?').shape);"
        "print(any(name.startswith('o1_retriever') for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["(384,)", "False"]
