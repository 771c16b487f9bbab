"""The control: the same model, thoughts about another question."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from o1_retriever import ThinkingEmbedder
from o1_retriever.evaluation.controls import with_other_thoughts


def test_a_query_gets_the_thoughts_about_the_next_one_and_its_own_fast_vector(root: Path) -> None:
    embedder = ThinkingEmbedder.from_pretrained(root / "models" / "o1-embedder-22m", cache=False)
    queries = ["What is ice?", "Why do birds sing?", "Who wrote letters?"]
    settings = embedder.settings.with_changes(thinking="always", n_thoughts=2, max_new_tokens=8)
    own = embedder.embed_queries(queries, settings=settings)
    others = with_other_thoughts(embedder, queries).embed_queries(queries, settings=settings)
    for number, found in enumerate(others):
        expected = own[(number + 1) % 3].thoughts
        assert [thought.text for thought in found.thoughts] == [thought.text for thought in expected]
        assert not np.allclose(found.vector, own[number].vector, atol=1e-4)
        assert not np.allclose(found.vector, own[(number + 1) % 3].vector, atol=1e-4)
    never = settings.with_changes(thinking="never")
    fast = with_other_thoughts(embedder, queries).embed_queries(queries, settings=never)
    for found, wanted in zip(fast, embedder.embed_queries(queries, settings=never), strict=True):
        np.testing.assert_allclose(found.vector, wanted.vector, atol=1e-6)
