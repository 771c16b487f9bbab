"""What keeps a model from thinking is said before it is loaded, with what was found and what to type."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BartConfig, BertConfig, MPNetConfig, T5Config

from o1_retriever.engine.checkpoint import Stored, _cgroup_room, _meminfo, read_stored
from o1_retriever.engine.load import LoadOptions, load_causal_lm
from o1_retriever.errors import CheckpointError, ModelError
from o1_retriever.thinkers import LocalThinker, as_thinker
from tests.support.commands import save
from tests.support.hub_repos import Entry, Repo
from tests.support.hub_server import hub_server
from tests.support.tiny import letter_tokenizer


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("whole"))


def copied(whole: Path, folder: Path, weights: bytes) -> Path:
    for file in whole.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    (folder / "model.safetensors").write_bytes(weights)
    return folder


class TestTruncated:
    """A file that was cut anywhere is told by its length, before anything is loaded."""

    @settings(max_examples=25)
    @given(share=st.floats(0, 0.9999))
    def test_safetensors(self, whole: Path, tmp_path: Path, share: float) -> None:
        weights = (whole / "model.safetensors").read_bytes()
        kept = int(share * len(weights))
        folder = copied(whole, tmp_path, weights[:kept])
        with pytest.raises(CheckpointError) as caught:
            as_thinker(folder)
        assert "model.safetensors" in str(caught.value)
        assert "Copy or download it again." in str(caught.value)
        if kept > 8 + struct.unpack("<Q", weights[:8])[0]:
            assert f"has {kept:,} bytes; expected {len(weights):,}" in str(caught.value)

    @settings(max_examples=12)
    @given(share=st.floats(0.01, 0.99))
    def test_gguf(self, tmp_path: Path, share: float) -> None:
        file = gguf_file(tmp_path / "a.gguf", "llama")
        data = file.read_bytes()
        file.write_bytes(data[: max(5, int(share * len(data)))])
        with pytest.raises(CheckpointError, match=r"ends before its last weight.*Copy or download it again"):
            as_thinker(file)


def gguf_file(path: Path, architecture: str) -> Path:
    gguf = pytest.importorskip("gguf", reason="needs the extra `local`")
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(64)
    writer.add_tensor("token_embd.weight", np.zeros((64, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_of_an_unknown_architecture_names_those_that_are_known(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        as_thinker(gguf_file(tmp_path / "a.gguf", "spiral"))
    said = str(caught.value)
    assert "has the architecture 'spiral'; expected one that transformers unpacks: " in said
    assert "llama, " in said
    assert "llama-server" in said


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (BertConfig(), r"bidirectional bert encoder; .*from_parts\(thinker, encoder\)"),
        (MPNetConfig(), r"a mpnet model; expected a causal language model.*from_parts\(thinker, encoder\)"),
        (T5Config(), r"a t5 model with an encoder and a decoder; expected a causal language model"),
        (BartConfig(), r"a bart model with an encoder and a decoder"),
    ],
)
def test_a_model_that_does_not_write_is_told_by_its_kind(tmp_path: Path, config: Any, expected: str) -> None:
    config.save_pretrained(tmp_path)
    letter_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    with pytest.raises(CheckpointError, match=expected):
        as_thinker(tmp_path)


class TestMemory:
    """What a model needs is weighed before it is loaded."""

    def huge(self, whole: Path, folder: Path) -> Path:
        """A sparse file: a tebibyte and a half by its length, and nothing on the disk."""
        rows = 2**38
        end = rows * 2 * 3
        header = json.dumps({"a": {"dtype": "BF16", "shape": [rows, 3], "data_offsets": [0, end]}}).encode()
        copied(whole, folder, struct.pack("<Q", len(header)) + header)
        with (folder / "model.safetensors").open("r+b") as file:
            file.truncate(8 + len(header) + end)
        return folder

    def test_a_model_that_is_too_large_says_what_it_needs_and_what_is_free(
        self, whole: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(ModelError) as caught:
            LocalThinker(self.huge(whole, tmp_path), dtype="float32", device="cpu")
        found = re.search(
            r"needs about ([\d,.]+) GB as float32, and ([\d,.]+) GB are free on cpu", str(caught.value)
        )
        assert found is not None
        needed, free = (float(text.replace(",", "")) for text in found.groups())
        assert needed == pytest.approx(2**38 * 3 * 4 / 1e9, rel=1e-3)
        assert 0 < free < needed
        assert "a smaller model" in str(caught.value)

    def test_a_format_that_fits_is_named(self, whole: Path, tmp_path: Path, monkeypatch: Any) -> None:
        folder = self.huge(whole, tmp_path)
        stored = read_stored(folder)
        for free, expected in (
            (
                stored.needs("bfloat16"),
                "Pass dtype='bfloat16' or load_in_4bit=True (--4bit), or a smaller model.",
            ),
            (stored.needs("nf4"), "Pass load_in_4bit=True (--4bit), or a smaller model."),
        ):
            monkeypatch.setattr("o1_retriever.engine.checkpoint._meminfo", lambda free=free: free)
            monkeypatch.setattr("o1_retriever.engine.checkpoint._cgroup_room", lambda free: free)
            with pytest.raises(ModelError, match=re.escape(expected)):
                load_causal_lm(folder, LoadOptions(device="cpu", dtype="float32"))

    def test_bytes_are_counted_as_they_are_loaded(self) -> None:
        stored = Stored(kinds={"BF16": 100, "U8": 10}, bytes=210)
        assert [stored.needs(kind) for kind in ("float32", "bfloat16", "nf4")] == [410, 210, 85]

    def test_what_the_system_says_is_free(self, tmp_path: Path) -> None:
        (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   100 kB\nSwapFree: 10 kB\n")
        assert _meminfo(tmp_path / "meminfo") == 110 * 1024
        assert _meminfo(tmp_path / "none") is None
        for name, text in (("memory.max", "1000"), ("memory.current", "900")):
            (tmp_path / name).write_text(f"{text}\n")
        (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 300\nactive_file 50\n")
        assert _cgroup_room(10**6, tmp_path) == 450
        (tmp_path / "memory.max").write_text("max\n")
        assert _cgroup_room(10**6, tmp_path) == 10**6


def test_a_chat_model_without_its_template_is_named_once(
    whole: Path, caplog: pytest.LogCaptureFixture
) -> None:
    LocalThinker(whole)
    [record] = [record for record in caplog.records if "chat template" in record.getMessage()]
    assert str(whole) in record.getMessage()
    assert "chat_template.jinja" in record.getMessage()


SCRIPT = """
import json, sys
from o1_retriever.engine.checkpoint import find_checkpoint
from o1_retriever.errors import ModelNotFoundError
for name in sys.argv[1:]:
    try:
        folder, file = find_checkpoint(name)
        print(json.dumps([str(folder), file]))
    except ModelNotFoundError as error:
        print(json.dumps(str(error)))
"""


def looked_up(url: str, home: Path, *names: str) -> list[Any]:
    """What a process says of names, for which the Hub is at that address."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    said = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_TOKEN": "hf_right", "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", SCRIPT, *names]
    done = subprocess.run(command, env=kept | said, capture_output=True, text=True, timeout=250, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_names_of_the_hub_that_are_not_there_gated_or_files(tmp_path: Path) -> None:
    with hub_server() as server:
        for name in ("me/closed", "me/open"):
            server.repos[name] = Repo(private=False)
            server.repos[name].commit({"a.gguf": Entry(b"GGUF and so on", large=False)})
        server.gated.add("me/closed")
        names = ("me/none", "me/closed", "me/closed:a.gguf", "me/open:b.gguf", "me/open:a.gguf", "me/open")
        none, gated, gated_file, no_file, (folder, file), no_weights = looked_up(server.url, tmp_path, *names)
    assert "no model me/none was found. Check the spelling" in none
    assert "me/closed is gated. Accept its terms on its page, then type: hf auth login" in gated
    assert "me/closed is gated." in gated_file
    assert "on the Hub it could not be looked up" in no_file
    assert (Path(folder) / file).read_bytes() == b"GGUF and so on"
    assert "has no config.json" in no_weights
    # Without a network, what was downloaded is found, and the rest is said to be out of reach.
    again, away = looked_up("http://127.0.0.1:9", tmp_path, "me/open:a.gguf", "me/other")
    assert again == [folder, file]
    assert "while the Hub can be reached" in away
