"""info and cache."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch

from o1_retriever.engine.weights import Int8Weights, has_bfloat16, has_kernel
from tests.support.commands import ok


def test_info_reads_and_loads_nothing(indexed, model):
    found = json.loads(ok("info", "--json"))
    assert found["model"]["name"] == str(model)
    assert found["model"]["architecture"] == "LlamaForCausalLM"
    assert found["model"]["layout"] == "paper"
    assert found["model"]["dimension"] == 32
    assert found["model"]["parameters"] > 10_000
    assert found["model"]["weights_bytes"] == (model / "model.safetensors").stat().st_size
    assert found["model"]["problem"] is None
    assert found["index"]["documents"] == 4
    assert list(found["index"]["folders"].values()) == [3]
    assert {"device", "dtype", "cache", "version"} <= set(found)
    said = ok("info")
    for part in ("LlamaForCausalLM", "paper", "4 passages", "0 thoughts", found["index"]["fingerprint"]):
        assert part in said


def test_info_says_what_is_missing(here, monkeypatch):
    monkeypatch.setenv("O1_RETRIEVER_MODEL", "nowhere/at/all")
    found = json.loads(ok("info", "--json", "--dtype", "bfloat16", "--4bit"))
    assert "There is no folder nowhere/at/all" in found["model"]["problem"]
    assert "o1-retriever index FOLDER" in found["index"]["problem"]
    assert found["dtype"] == "nf4, computing in bfloat16"
    assert "would be downloaded" in ok("info", "--model", "some/model").replace("\n", " ").replace("  ", " ")
    pair = json.loads(ok("info", "--json", "--thinker", "http://127.0.0.1:1/v1"))
    assert pair["model"]["encoder"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert pair["model"]["problem"] is None
    monkeypatch.delenv("O1_RETRIEVER_MODEL")
    assert json.loads(ok("info", "--json"))["model"]["thinker"] == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_info_says_in_which_numbers_a_thinker_computes(here):
    def dtype(*options):
        return json.loads(ok("info", "--json", *options))["dtype"]

    assert dtype("--dtype", "int8") == "int8, computing in float32"
    if has_bfloat16() and has_kernel(Int8Weights, torch.bfloat16):
        assert dtype("--thinker", "mine") == "int8, computing in bfloat16"
        assert dtype("--dtype", "fastest", "--model", "some/model") == "bfloat16"
    assert dtype("--dtype", "auto", "--model", "some/model") == "float32"
    assert dtype("--thinker", "http://127.0.0.1:1/v1") == "float32"  # of the encoder, which alone is here
    assert dtype("--4bit", "--thinker", "mine") == "nf4, computing in float32"


def test_info_names_markers_that_the_tokenizer_lacks(here, model):
    broken = Path(shutil.copytree(model, here / "broken"))
    file = broken / "tokenizer.json"
    file.write_text(file.read_text().replace("<emb>", "<em>"))
    assert json.loads(ok("info", "--json", "--model", "broken"))["model"]["problem"].endswith("lacks <emb>")
    (broken / "model.safetensors").write_bytes(b"\xff" * 100)
    assert "no safetensors file" in json.loads(ok("info", "--json", "--model", "broken"))["model"]["problem"]


def test_the_cache_can_be_looked_at_and_cleared(here):
    folder = Path(ok("cache", "path").strip())
    assert folder == Path(os.environ["O1_RETRIEVER_CACHE"])
    ok("think", "Why?")
    assert json.loads(ok("cache", "info", "--json"))["thoughts"] == 2
    assert "2 thoughts" in ok("cache", "info")
    assert ok("cache", "clear").startswith("Forgot 2 thoughts and ")
    assert json.loads(ok("cache", "info", "--json"))["thoughts"] == 0


def test_looking_at_a_cache_does_not_make_one(here, monkeypatch):
    monkeypatch.setenv("O1_RETRIEVER_CACHE", str(here / "none"))
    assert json.loads(ok("cache", "info", "--json"))["thoughts"] == 0
    assert "empty" in ok("cache", "clear")
    assert not (here / "none").exists()
