"""What a user of ThinkingEmbedder relies on: vectors, thoughts, caching, inputs, both roads."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from o1_retriever import ThinkingEmbedder, Thought, ThoughtSettings
from o1_retriever.encoders import CallableEncoder
from o1_retriever.errors import EncoderError, InputError, SettingsError, ThinkerError
from o1_retriever.query import Query
from o1_retriever.thinking import PairBackend
from tests.support.tiny import tiny_model

WARM = ThoughtSettings(n_thoughts=3, temperature=1.0, top_p=0.95, max_new_tokens=12)


@pytest.fixture(scope="module")
def model() -> tuple[Any, Any]:
    return tiny_model("qwen2")


def local(model: tuple[Any, Any], **options: Any) -> ThinkingEmbedder:
    return ThinkingEmbedder.from_model(*model, settings=WARM, **{"cache": False, **options})


def letters(texts: Sequence[str]) -> np.ndarray:
    """A real, if simple, encoder: counts of letters."""
    return np.array(
        [[text.lower().count(chr(97 + i)) + 0.01 for i in range(26)] for text in texts], np.float32
    )


class Notebook:
    """A thinker that writes down what it was asked."""

    identity = "notebook"

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, int]] = []

    def think(
        self, queries: Sequence[Query], *, settings: ThoughtSettings, start: int = 0
    ) -> list[list[Thought]]:
        self.asked += [(query.text, start, settings.n_thoughts) for query in queries]
        wanted = range(start, settings.n_thoughts)
        return [[self._thought(query.text, i) for i in wanted] for query in queries]

    def _thought(self, query: str, index: int) -> Thought:
        if "fail" in query and (index == 1 or "all" in query):
            return Thought.failure("no answer")
        return Thought(text="xyz"[index % 3] * 5, prompt_tokens=2, completion_tokens=5)


def pair(tmp_path: Path | None = None) -> tuple[ThinkingEmbedder, Notebook]:
    notebook = Notebook()
    encoder = CallableEncoder(letters, name="letters")
    return ThinkingEmbedder.from_parts(notebook, encoder, cache=tmp_path or False, settings=WARM), notebook


class TestVectors:
    def test_the_query_vector_is_the_normalised_mean_of_its_thoughts(self, model: tuple[Any, Any]) -> None:
        embedding = local(model).embed_query("why?")
        assert embedding.vectors.shape == (3, 32)
        assert np.allclose(np.linalg.norm(embedding.vectors, axis=1), 1, atol=1e-5)
        mean = embedding.vectors.mean(0)
        assert np.allclose(embedding.vector, mean / np.linalg.norm(mean), atol=1e-6)
        assert embedding.vector.dtype == np.float32

    def test_parity_mode_leaves_the_plain_mean(self, model: tuple[Any, Any]) -> None:
        plain = local(model).embed_queries(["why?"], normalize_embeddings=False)[0]
        assert np.allclose(plain.vector, plain.vectors.mean(0), atol=1e-6)
        assert np.linalg.norm(plain.vector) < 0.999

    def test_vectors_are_truncated_then_normalised_then_averaged(self, model: tuple[Any, Any]) -> None:
        embedder = local(model)
        full = embedder.embed_query("why?")
        short = embedder.embed_queries(["why?"], truncate_dim=8)[0]
        rows = full.vectors[:, :8] / np.linalg.norm(full.vectors[:, :8], axis=1, keepdims=True)
        mean = rows.mean(0)
        assert np.allclose(short.vector, mean / np.linalg.norm(mean), atol=1e-5)
        documents = embedder.encode_documents(["a text"], truncate_dim=8)
        assert documents.shape == (1, 8)
        assert np.allclose(np.linalg.norm(documents), 1, atol=1e-5)

    @pytest.mark.parametrize("dim", [None, 8])
    def test_the_querys_own_vector_counts_as_much_as_asked_beside_the_thoughts(
        self, model: tuple[Any, Any], dim: int | None
    ) -> None:
        embedder = local(model)
        fast = embedder.embed_query("why?", settings=WARM.with_changes(thinking="never")).vectors[0]
        fast = fast[:dim] / np.linalg.norm(fast[:dim])
        weighted = WARM.with_changes(query_weight=2.0)
        for normalize in (True, False):
            [found] = embedder.embed_queries(
                ["why?"], settings=weighted, truncate_dim=dim, normalize_embeddings=normalize
            )
            mean = (found.vectors.mean(axis=0) + 2 * fast) / 3
            expected = mean / np.linalg.norm(mean) if normalize else mean
            np.testing.assert_allclose(found.vector, expected, atol=1e-6)
            assert len(found.vectors) == 3
        with pytest.raises(SettingsError, match="query_weight is -1"):
            ThoughtSettings(query_weight=-1)

    def test_the_fast_path_has_no_thoughts(self, model: tuple[Any, Any]) -> None:
        embedder = local(model)
        fast = embedder.embed_query("why?", settings=WARM.with_changes(thinking="never"))
        assert fast.thoughts == ()
        assert not fast.thought_about
        assert fast.vectors.shape == (1, 32)
        assert not np.allclose(fast.vector, embedder.embed_query("why?").vector, atol=1e-3)

    def test_a_single_string_gives_a_single_vector(self, model: tuple[Any, Any]) -> None:
        embedder = local(model)
        assert embedder.encode_queries("why?").shape == (32,)
        assert embedder.encode_documents("a text").shape == (32,)
        assert embedder.encode_queries([]).shape == (0, 32)
        assert embedder.encode_documents([]).shape == (0, 32)

    def test_tensors_on_request(self, model: tuple[Any, Any]) -> None:
        rows = local(model).encode_documents(["a", "b"], convert_to_tensor=True)
        assert isinstance(rows, torch.Tensor)
        assert rows.shape == (2, 32)

    def test_raw_document_vectors_on_request(self, model: tuple[Any, Any]) -> None:
        raw = local(model).encode_documents(["a text"], normalize_embeddings=False)
        unit = local(model).encode_documents(["a text"])
        assert not np.isclose(np.linalg.norm(raw), 1, atol=1e-2)
        assert np.allclose(raw / np.linalg.norm(raw), unit, atol=1e-5)

    def test_order_is_kept_and_duplicates_are_computed_once(self, tmp_path: Path) -> None:
        embedder, notebook = pair()
        rows = embedder.encode_queries(["long query", "b", "long query", "c"])
        assert [query for query, _, _ in notebook.asked] == ["long query", "b", "c"]
        assert np.array_equal(rows[0], rows[2])
        assert np.allclose(rows[1], embedder.encode_queries("b"))

    @pytest.mark.parametrize("dim", [0, 33, -1, True, 1.5, "8"])
    def test_an_impossible_dimension_is_refused(self, model: tuple[Any, Any], dim: Any) -> None:
        with pytest.raises(SettingsError, match="1 to 32"):
            local(model).encode_documents(["a"], truncate_dim=dim)

    @pytest.mark.parametrize("texts", [None, 5, b"bytes", [None]])
    def test_what_is_no_list_of_texts_is_refused(self, model: tuple[Any, Any], texts: Any) -> None:
        for encode in (local(model).encode_documents, local(model).encode_queries):
            with pytest.raises(InputError):
                encode(texts)

    @pytest.mark.parametrize("size", [0, -1, True, 1.5, "8"])
    def test_an_impossible_batch_is_refused(self, model: tuple[Any, Any], size: Any) -> None:
        for encode in (local(model).encode_documents, local(model).encode_queries):
            with pytest.raises(SettingsError, match="batch_size is"):
                encode(["a"], batch_size=size)


class TestPairs:
    def test_a_thought_is_embedded_behind_its_query(self) -> None:
        embedder, _ = pair()
        embedding = embedder.embed_query("why")
        expected = letters(["why xxxxx", "why yyyyy", "why zzzzz"])
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        assert np.allclose(embedding.vectors, expected, atol=1e-6)
        assert embedding.thought_tokens == 15
        assert embedding.prompt_tokens == 6

    def test_a_failed_thought_is_left_out_and_reported(self) -> None:
        embedding = pair()[0].embed_query("fail one")
        assert embedding.vectors.shape == (2, 26)
        assert [thought.failed for thought in embedding.thoughts] == [False, True, False]
        assert embedding.thoughts[1].error == "no answer"

    def test_a_query_without_any_thought_is_embedded_and_says_so(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        embedder = pair()[0]
        with caplog.at_level(logging.WARNING):
            embedding = embedder.embed_query("fail all")
        assert not embedding.thought_about
        assert len(embedding.thoughts) == 3
        fast = embedder.embed_query("fail all", settings=WARM.with_changes(thinking="never"))
        assert np.allclose(embedding.vector, fast.vector)
        assert "no answer" in caplog.text

    def test_plain_functions_will_do(self) -> None:
        def think(queries: list[str], k: int) -> list[list[str]]:
            return [[f"{query} {i}" for i in range(k)] for query in queries]

        embedder = ThinkingEmbedder.from_parts(think, letters, cache=False)
        assert [t.text for t in embedder.think(["a"], n_thoughts=2)[0]] == ["a 0", "a 1"]
        assert embedder.encode_queries(["a"]).shape == (1, 26)

    def test_a_thinker_that_returns_too_few_is_an_error(self) -> None:
        class Lazy(Notebook):
            def think(self, *arguments: Any, **options: Any) -> list[list[Thought]]:
                return [row[:-1] for row in super().think(*arguments, **options)]

        backend = PairBackend(Lazy(), CallableEncoder(letters, name="letters"))
        with pytest.raises(ThinkerError, match="expected 3"):
            ThinkingEmbedder(backend, cache=False, settings=WARM).embed_query("why")

    def test_vectors_that_are_no_direction_are_an_error(self) -> None:
        zeros = CallableEncoder(lambda texts: np.zeros((len(texts), 4), np.float32), name="zeros")
        embedder = ThinkingEmbedder.from_parts(Notebook(), zeros, cache=False)
        with pytest.raises(EncoderError):
            embedder.encode_documents(["a"])


class TestCache:
    def test_a_repeated_query_runs_no_model(self, tmp_path: Path) -> None:
        embedder, notebook = pair(tmp_path)
        first = embedder.embed_query("why")
        again = embedder.embed_query("why")
        assert len(notebook.asked) == 1
        assert np.array_equal(first.vector, again.vector)
        assert all(thought.cached for thought in again.thoughts)
        assert not any(thought.cached for thought in first.thoughts)
        assert again.thoughts == first.thoughts

    def test_it_lasts_beyond_the_process(self, tmp_path: Path) -> None:
        pair(tmp_path)[0].embed_query("why")
        embedder, notebook = pair(tmp_path)
        embedder.embed_query("why")
        assert notebook.asked == []

    def test_three_thoughts_reuse_the_first(self, tmp_path: Path) -> None:
        embedder, notebook = pair(tmp_path)
        embedder.embed_query("why", settings=WARM.with_changes(n_thoughts=1))
        embedder.embed_query("why")
        assert notebook.asked == [("why", 0, 1), ("why", 1, 3)]

    def test_a_failed_thought_is_asked_for_again(self, tmp_path: Path) -> None:
        embedder, notebook = pair(tmp_path)
        embedder.embed_query("fail one")
        embedder.embed_query("fail one")
        assert notebook.asked == [("fail one", 0, 3), ("fail one", 1, 3)]

    def test_other_sampling_thinks_anew(self, tmp_path: Path) -> None:
        embedder, notebook = pair(tmp_path)
        embedder.embed_query("why")
        for changes in ({"temperature": 0.5}, {"top_p": 0.5}, {"max_new_tokens": 5}, {"seed": 3}):
            before = len(notebook.asked)
            embedder.embed_query("why", settings=WARM.with_changes(**changes))
            assert len(notebook.asked) == before + 1, changes

    def test_the_local_model_is_not_run_on_a_hit(self, tmp_path: Path, model: tuple[Any, Any]) -> None:
        embedder = local(model, cache=tmp_path)
        first = embedder.embed_query("why?")
        fast = embedder.embed_query("why?", settings=WARM.with_changes(thinking="never"))
        runs: list[Any] = []
        handle = model[0].base_model.register_forward_hook(lambda *arguments: runs.append(arguments))
        try:
            again = embedder.embed_query("why?")
            fast_again = embedder.embed_query("why?", settings=WARM.with_changes(thinking="never"))
            assert runs == []
            embedder.embed_query("something else")
            assert runs
        finally:
            handle.remove()
        assert np.array_equal(first.vector, again.vector)
        assert np.array_equal(fast.vector, fast_again.vector)

    def test_a_thought_whose_vector_is_gone_is_embedded_again(
        self, tmp_path: Path, model: tuple[Any, Any]
    ) -> None:
        embedder = local(model, cache=tmp_path / "one")
        first = embedder.embed_query("why?")
        assert embedder.cache is not None
        key_rows = embedder.think(["why?"])[0]
        backend = embedder.backend
        rows = dict(backend.embed_queries([("why?", thought) for thought in key_rows], batch_size=2))
        units = np.stack([rows[i] / np.linalg.norm(rows[i]) for i in range(3)])
        assert np.allclose(units, first.vectors, atol=1e-4)

    def test_an_instruction_is_part_of_the_key(self, tmp_path: Path, model: tuple[Any, Any]) -> None:
        one = local(model, cache=tmp_path).embed_query("why?")
        other = local(model, cache=tmp_path, instruction="find: ").embed_query("why?")
        assert not any(thought.cached for thought in other.thoughts)
        assert not np.allclose(one.vector, other.vector, atol=1e-3)

    def test_no_cache_writes_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("O1_RETRIEVER_CACHE", str(tmp_path / "unused"))
        embedder, _ = pair()
        embedder.embed_query("why")
        assert embedder.cache is None
        assert not (tmp_path / "unused").exists()

    def test_what_was_thought_before_an_interruption_is_kept(self, tmp_path: Path) -> None:
        class Stops(Notebook):
            def think(self, queries: Sequence[Query], **options: Any) -> list[list[Thought]]:
                if any("stop" in query.text for query in queries):
                    raise KeyboardInterrupt
                return super().think(queries, **options)

        encoder = CallableEncoder(letters, name="letters")
        embedder = ThinkingEmbedder.from_parts(Stops(), encoder, cache=tmp_path, settings=WARM)
        with pytest.raises(KeyboardInterrupt):
            embedder.embed_queries(["a", "b", "stop"], batch_size=2)
        again, notebook = pair(tmp_path)
        again.embed_queries(["a", "b", "stop"])
        assert [query for query, _, _ in notebook.asked] == ["stop"]


BAD = [("", "empty"), (" \n", "whitespace"), (None, "None"), (3, "int 3"), ("a\ud800", "surrogate")]


class TestInputs:
    @pytest.mark.parametrize(("item", "found"), BAD)
    @pytest.mark.parametrize("verb", ["encode_queries", "encode_documents", "embed_queries", "think"])
    def test_a_bad_item_is_named_by_its_position(self, verb: str, item: Any, found: str) -> None:
        embedder, notebook = pair()
        with pytest.raises(InputError, match=found) as caught:
            getattr(embedder, verb)(["good", item])
        assert caught.value.position == 1
        assert notebook.asked == []

    def test_a_lone_string_is_not_split_into_letters(self) -> None:
        with pytest.raises(InputError, match="list of strings"):
            pair()[0].think("why")  # type: ignore[arg-type]

    def test_a_megabyte_is_truncated_with_one_warning(
        self, model: tuple[Any, Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        embedder = local(model)
        with caplog.at_level(logging.WARNING, logger="o1_retriever"):
            rows = embedder.encode_documents(["x" * 1_000_000, "short", "y" * 5000])
        assert np.isfinite(rows).all()
        messages = [record.getMessage() for record in caplog.records]
        assert messages == ["2 of 3 documents truncated at 158 tokens (the longest has 1000000)"]
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="o1_retriever"):
            embedder.embed_queries(["x" * 5000, "short"])
        assert len(caplog.records) == 1
        assert "1 of 2 queries truncated" in caplog.text

    def test_text_that_spells_markers_is_plain_text(self, model: tuple[Any, Any]) -> None:
        embedder = local(model)
        plain, spelled = embedder.encode_documents(["a < emb >", "a <emb>"])
        assert not np.allclose(plain, spelled)
        template = embedder.backend.local.template  # type: ignore[attr-defined]
        assert template.emb not in template.text_ids(["a <emb>"])[0]

    def test_settings_out_of_range_say_what_was_expected(self) -> None:
        numbers = ({"n_thoughts": 0}, {"n_thoughts": 1.5}, {"n_thoughts": True})
        for bad in (*numbers, {"temperature": -1}, {"top_p": 0}, {"seed": -1}):
            with pytest.raises(SettingsError, match="expected"):
                ThoughtSettings(**bad)
        with pytest.raises(SettingsError, match="'always' or 'never'"):
            ThoughtSettings(thinking="sometimes")  # type: ignore[arg-type]
        with pytest.raises(SettingsError, match="temprature"):
            WARM.with_changes(temprature=1)
