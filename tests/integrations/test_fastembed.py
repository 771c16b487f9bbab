"""The interface of fastembed's `TextEmbedding`."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from fastembed_o1_retriever import O1TextEmbedding
from o1_retriever.errors import InputError
from tests.support.adapters import QUERY, TEXTS, TURNS, Mind, last_turn_embedder, small_embedder


def test_queries_are_thought_about_and_passages_are_not() -> None:
    mind = Mind()
    embedder = small_embedder(mind)
    model = O1TextEmbedding(embedder)
    texts = list(TEXTS.values())
    for rows in (model.embed(texts), model.passage_embed(iter(texts), batch_size=2)):
        assert np.allclose(list(rows), embedder.encode_documents(texts), atol=1e-6)
    [one] = model.embed(texts[0], parallel=2)
    assert (one.shape, one.dtype, model.embedding_size) == ((256,), np.float32, 256)
    assert mind.asked == []
    [vector] = model.query_embed(QUERY)
    assert np.allclose(vector, embedder.encode_queries(QUERY), atol=1e-6)
    assert len(list(model.query_embed([QUERY, "dough"]))) == 2
    assert model.model_name == embedder.space.fingerprint
    with pytest.raises(InputError, match="query 0 is empty"):
        list(model.query_embed(""))


def test_a_history_is_read() -> None:
    model = O1TextEmbedding(last_turn_embedder())
    [after], [alone] = model.query_embed(QUERY, histories=[TURNS]), model.query_embed(QUERY)
    assert not np.allclose(after, alone)


@pytest.mark.parametrize("name", ["embed", "query_embed", "passage_embed"])
def test_it_is_called_as_fastembed_is(name: str) -> None:
    theirs = pytest.importorskip("fastembed", reason="needs fastembed").TextEmbedding
    parameters = inspect.signature(getattr(theirs, name)).parameters
    named = [key for key, each in parameters.items() if each.kind is each.POSITIONAL_OR_KEYWORD]
    ours = inspect.signature(getattr(O1TextEmbedding, name)).parameters
    assert list(ours)[: len(named)] == named
    assert any(each.kind is each.VAR_KEYWORD for each in ours.values())
    assert isinstance(inspect.getattr_static(theirs, "embedding_size"), property)
