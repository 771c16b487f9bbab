"""Documents of any number, from any iterable, in constant memory, and only through what embedding needs."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from o1_retriever import ThinkingEmbedder, ThoughtSettings, query
from o1_retriever.engine import passes as engine_passes
from o1_retriever.engine.backend import LocalBackend
from o1_retriever.errors import InputError
from tests.support.caches import EXAMPLES
from tests.support.engine import TOLERANCE, before_passes, exact_model, gap, plain_state, watched

MODELS = ["llama", "mistral-window", "gemma2", "bert"]
documents = st.builds(lambda letter, length: letter * length, st.sampled_from("abß"), st.integers(1, 60))


def embedder_of(architecture: str = "llama") -> ThinkingEmbedder:
    return ThinkingEmbedder(LocalBackend(exact_model(architecture)), cache=False)


@contextmanager
def batches(architecture: str = "llama") -> Iterator[list[tuple[int, int]]]:
    """Rows and width of each pass of the base model."""
    seen: list[tuple[int, int]] = []

    def before(_module: Any, _arguments: Any, given: dict[str, Any]) -> None:
        seen.append(tuple(given["input_ids"].shape))

    base = exact_model(architecture).model.base_model
    handle = base.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


@settings(EXAMPLES)
@given(
    architecture=st.sampled_from(MODELS),
    texts=st.lists(documents, max_size=14),
    block=st.integers(1, 20),
    batch_size=st.sampled_from([None, 1, 2, 5]),
    tokens=st.sampled_from([1, 100, 4096]),
)
def test_a_stream_equals_each_document_alone(
    architecture: str,
    texts: list[str],
    block: int,
    batch_size: int | None,
    tokens: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    local, embedder = exact_model(architecture), embedder_of(architecture)
    with monkeypatch.context() as patch:
        patch.setattr(query, "_BLOCK", block)
        patch.setattr(engine_passes, "_FORWARD_TOKENS", {"cpu": tokens})
        blocks = list(embedder.stream_documents((text for text in texts), batch_size=batch_size))
        whole = embedder.encode_documents((text for text in texts), batch_size=batch_size)
    assert [len(rows) for rows in blocks] == [len(texts[i : i + block]) for i in range(0, len(texts), block)]
    assert whole.shape == (len(texts), embedder.dimension)
    if not texts:
        return
    assert gap(np.concatenate(blocks), whole) < TOLERANCE
    rows = [local.template.document(ids) for ids in local.template.text_ids(texts)]
    assert gap(whole, np.stack([plain_state(local, row) for row in rows])) < TOLERANCE


@settings(EXAMPLES)
@given(
    texts=st.lists(documents, min_size=1, max_size=14),
    batch_size=st.sampled_from([None, 1, 2, 5]),
    tokens=st.sampled_from([1, 100, 300, 4096]),
)
@example(texts=["a", "aa", "aaa", "a" * 15], batch_size=None, tokens=100)  # padded to a common width
def test_no_batch_is_larger_than_it_may_be(
    texts: list[str], batch_size: int | None, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, batches() as seen:
        patch.setattr(engine_passes, "_FORWARD_TOKENS", {"cpu": tokens})
        embedder_of().encode_documents(texts, batch_size=batch_size)
    assert all(rows == 1 or rows * width <= tokens for rows, width in seen)
    assert all(batch_size is None or rows <= batch_size for rows, _ in seen)
    assert sum(rows for rows, _ in seen) == len(set(texts)), "equal documents of a block are embedded once"


def test_documents_never_reach_the_language_model_head() -> None:
    local = exact_model("llama")
    head = local.model.get_output_embeddings()
    with before_passes(head, lambda _: None) as passes, batches() as seen:
        embedder_of().encode_documents(["a", "b" * 50])
        assert seen
        assert passes == []
        embedder_of().embed_query("why?", settings=ThoughtSettings(thinking="never"))
        assert passes == [], "nor do queries without thoughts"
        embedder_of().embed_query("why?", settings=ThoughtSettings(n_thoughts=1, max_new_tokens=2))
        assert passes, "while thinking needs it"


class Text(str):
    """A text that can be watched."""

    __slots__ = ("__weakref__",)


def test_no_more_is_read_or_kept_than_two_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query, "_BLOCK", 8)
    living: weakref.WeakSet[Text] = weakref.WeakSet()
    read = 0

    def source() -> Iterator[str]:
        nonlocal read
        for number in range(800):
            read += 1
            text = Text(f"text {number}")
            living.add(text)
            yield text

    most = 0
    with batches() as seen:
        for done, rows in enumerate(embedder_of().stream_documents(source()), 1):
            assert len(rows) == 8
            assert read == 8 * done, "nothing is read before it is needed"
            most = max(most, len(living))
            if done == 40:
                break
    assert most <= 2 * 8 + 1
    assert sum(rows for rows, _ in seen) == 40 * 8


def test_nothing_is_read_before_the_first_block_is_asked_for() -> None:
    def source() -> Iterator[str]:
        raise AssertionError("read too early")
        yield ""

    embedder_of().stream_documents(source())


@pytest.mark.parametrize(("bad", "found"), [("", "empty"), (None, "None"), (7, "int 7"), (b"x", "bytes")])
def test_a_bad_document_is_named_by_its_position_in_the_whole_stream(
    bad: Any, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query, "_BLOCK", 4)
    texts = [f"text {number}" for number in range(20)]
    texts[10] = bad
    stream = embedder_of().stream_documents(iter(texts))
    done = [next(stream), next(stream)]
    with pytest.raises(InputError, match=f"document 10 is {found}") as caught:
        next(stream)
    assert caught.value.position == 10
    # What came before it is whole, and equal to what a good stream gives.
    expected = embedder_of().encode_documents(texts[:8])
    assert gap(np.concatenate(done), expected) < TOLERANCE


def test_an_error_of_the_source_is_the_callers_own() -> None:
    def source() -> Iterator[str]:
        yield "a text"
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(embedder_of().stream_documents(source()))


def test_a_list_with_a_bad_document_costs_no_pass() -> None:
    with batches() as seen, pytest.raises(InputError):
        embedder_of().encode_documents([*(["a"] * 5000), ""])
    assert seen == []


@pytest.mark.parametrize("text", ["a text", b"a text"])
def test_a_lone_text_is_no_stream(text: Any) -> None:
    with pytest.raises(InputError, match="expected a list of strings"):
        list(embedder_of().stream_documents(text))


@settings(EXAMPLES)
@given(
    queries=st.lists(documents, min_size=1, max_size=6, unique=True),
    batch_size=st.integers(1, 4),
    k=st.integers(1, 3),
)
def test_the_batch_size_bounds_the_queries_in_flight(queries: list[str], batch_size: int, k: int) -> None:
    how = ThoughtSettings(n_thoughts=k, temperature=1.0, max_new_tokens=2)
    with watched(exact_model("llama")) as watch, batches() as seen:
        bounded = embedder_of().embed_queries(queries, settings=how, batch_size=batch_size)
    assert watch.flights == [min(batch_size, len(queries)) * k]
    assert max(rows for rows, _ in seen) <= batch_size * k
    for one, other in zip(bounded, embedder_of().embed_queries(queries, settings=how), strict=True):
        assert one.thoughts == other.thoughts
        assert gap(one.vectors, other.vectors) < TOLERANCE
