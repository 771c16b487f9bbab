"""A `.gguf` file is parsed once, however many of its parts are wanted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from o1_retriever import ThoughtSettings
from o1_retriever.engine.checkpoint import gguf_parsed_once
from o1_retriever.errors import CheckpointError
from o1_retriever.query import as_queries
from o1_retriever.thinkers import LocalThinker
from tests.support.tiny import byte_tokenizer

gguf = pytest.importorskip("gguf", reason="needs the extra `local`")

SIZE, HEADS, LAYERS, INNER = 32, 2, 2, 64


def whole_file(path: Path) -> Path:
    """A tiny Llama with the tokenizer of the other tests, as llama.cpp stores it."""
    words = byte_tokenizer(None).get_vocab()
    tokens = [*sorted(words, key=lambda word: words[word]), "ab"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(600)
    writer.add_embedding_length(SIZE)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(words["</s>"])
    draw = np.random.default_rng(0)
    shapes = {"token_embd": (len(tokens), SIZE), "output": (len(tokens), SIZE), "output_norm": (SIZE,)}
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        shapes |= {f"{block}attn_q": (SIZE, SIZE), f"{block}attn_output": (SIZE, SIZE)}
        shapes |= {f"{block}attn_k": (SIZE // HEADS, SIZE), f"{block}attn_v": (SIZE // HEADS, SIZE)}
        shapes |= {f"{block}ffn_gate": (INNER, SIZE), f"{block}ffn_up": (INNER, SIZE)}
        shapes |= {f"{block}ffn_down": (SIZE, INNER)}
        shapes |= {f"{block}attn_norm": (SIZE,), f"{block}ffn_norm": (SIZE,)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", draw.normal(0, 0.3, shape).astype(np.float32))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    return path


@pytest.fixture
def parses(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were parsed."""
    files: list[Path] = []

    class Counted(gguf.GGUFReader):  # type: ignore[misc]
        """Notes each parse."""

        def __init__(self, path: Any, *rest: Any) -> None:
            files.append(Path(path))
            super().__init__(path, *rest)

    monkeypatch.setattr(gguf, "GGUFReader", Counted)
    return files


def test_a_model_is_loaded_with_one_parse_of_its_file(
    tmp_path: Path, parses: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    file, usual = whole_file(tmp_path / "a.gguf"), (gguf.GGUFReader, gguf.get_tensor_name_map)
    thinker = LocalThinker(str(file))
    assert parses == [file]
    assert "de-quantizing" not in capsys.readouterr().err
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == usual, "other callers get what they always got"
    [thoughts] = thinker.think(as_queries(["why?"]), settings=ThoughtSettings(max_new_tokens=5))
    assert len(thoughts) == 3


def test_what_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    usual = gguf.GGUFReader
    file = whole_file(tmp_path / "a.gguf")
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(CheckpointError, match="whole GGUF file"):
        LocalThinker(str(file))
    assert gguf.GGUFReader is usual


def test_parses_within_one_another_are_one(tmp_path: Path, parses: list[Path]) -> None:
    file = whole_file(tmp_path / "a.gguf")
    with gguf_parsed_once():
        with gguf_parsed_once():
            gguf.GGUFReader(file)
        gguf.GGUFReader(file)
    assert parses == [file]
