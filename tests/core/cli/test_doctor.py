"""doctor: each thing that keeps a beginner from a first answer, and what to type against it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants
from packaging.requirements import Requirement

from o1_retriever.cli.doctor import (
    Accelerator,
    Finding,
    device_finding,
    disk_finding,
    lacking,
    packages,
    without_secrets,
)
from tests.support.commands import ok, run
from tests.support.hub_repos import Entry, Repo
from tests.support.hub_server import hub_server

DECLARED = [
    "numpy>=1.26",
    'no-such-package>=2; extra == "index"',
    'numpy>=999; extra == "local"',
    'o1-retriever[local]; extra == "serve"',
    'typer>=0.1; extra == "endpoint"',
]


def findings(*arguments: str) -> dict[str, dict[str, str]]:
    result = run("doctor", "--json", *arguments)
    record = json.loads(result.stdout)
    states = {each["state"] for each in record["findings"]}
    assert result.exit_code == (1 if "problem" in states else 0)
    return {each["about"]: each for each in record["findings"]}


def test_where_all_is_well_it_says_so_and_leaves_nothing_behind(indexed, model):
    before = sorted(indexed.rglob("*"))
    found = findings()
    assert found[f"model {model}"]["state"] == "ok"
    assert "needs about 0.0 GB of" in found[f"model {model}"]["found"]
    assert found["index"]["found"].startswith("4 passages")
    said = ok("doctor")
    assert "Everything that was named works." in said
    assert "no GPU" in said or "GB" in said
    assert sorted(indexed.rglob("*")) == before


def test_a_missing_extra_and_a_version_that_does_not_fit():
    every = [Requirement(each) for each in DECLARED]
    assert list(lacking(every, "")) == []
    assert list(lacking(every, "index")) == ["no-such-package (missing)"]
    [wrong] = lacking(every, "serve")  # by way of another extra
    assert wrong.startswith("numpy>=999 (found ")
    found = {each.about: each for each in packages(DECLARED, {"index": "an index", "endpoint": "a server"})}
    assert found["extra index"] == Finding(
        "extra index",
        "problem",
        "an index needs no-such-package (missing)",
        "Type: pip install 'o1-retriever[index]'",
    )
    assert "extra endpoint" not in found
    old = [each for each in packages(["numpy>=999"], {}) if each.state == "problem"]
    assert "numpy>=999 (found" in old[0].found


@pytest.mark.parametrize(
    ("here", "state", "says", "hint"),
    [
        (Accelerator(torch="2.13.0+cpu"), "note", "no GPU", None),
        (Accelerator(torch="2.13.0", devices=("NVIDIA H200, 150 GB",), cuda="13.0"), "ok", "H200", None),
        (Accelerator(torch="2.13.0+cpu", driver="550.1"), "problem", "built without CUDA", "--index-url"),
        (
            Accelerator(torch="2.13.0", cuda="13.0", driver="470.2", complaint="The driver is too old"),
            "problem",
            "for CUDA 13.0 cannot use the GPU with driver 470.2: The driver is too old",
            "Update the driver",
        ),
        (Accelerator(torch="none", complaint="no such file: libtorch.so"), "problem", "libtorch", "torch"),
    ],
)
def test_no_gpu_an_old_driver_and_a_torch_without_cuda(here, state, says, hint):
    found = device_finding(here, None)
    assert found.state == state
    assert says in found.found
    assert (found.hint or "").find(hint or "") >= 0
    assert bool(found.hint) == bool(hint)


def test_a_device_that_is_not_there():
    assert device_finding(Accelerator(torch="2.13.0"), "cuda").state == "problem"


def test_too_little_memory(model, monkeypatch):
    # The only thing that is not real: how much of it a container leaves.
    monkeypatch.setattr("o1_retriever.engine.checkpoint.free_bytes", lambda device: 1000)
    found = findings()[f"model {model}"]
    assert found["state"] == "problem"
    assert "0.0 GB are free on cpu" in found["found"]
    assert "smaller model" in found["hint"]


def test_a_full_disk_and_a_folder_that_cannot_be_written(here, monkeypatch):
    full = disk_finding("cache", Path("/c"), 1_000_000, 200_000_000, "Type: export X=/another")
    assert full.state == "problem"
    assert "0.00 GB free; expected 0.20 GB" in full.found
    assert "export X" in (full.hint or "")
    Path("file").write_text("", encoding="utf-8")
    monkeypatch.setenv("O1_RETRIEVER_CACHE", str(here / "file" / "cache"))
    found = findings()["cache"]
    assert found["state"] == "problem"
    assert "cannot be written" in found["found"]
    assert found["hint"] == "Type: export O1_RETRIEVER_CACHE=/another/folder"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub on the loopback interface, with a model for everybody and one that is gated."""
    with hub_server() as server:
        for name in ("me/open", "me/closed"):
            server.repos[name] = Repo(private=False)
            server.repos[name].commit({"model.safetensors": Entry(b"x" * 5000, large=True)})
        server.gated.add("me/closed")
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setenv("HF_TOKEN", "hf_right")
        monkeypatch.delenv("O1_RETRIEVER_MODEL")
        yield server


def test_a_model_of_the_hub_that_is_there_gated_or_missing(hub):
    def about(name):
        return findings("--thinker", name)[f"model {name}"]

    there, gated, missing = about("me/open"), about("me/closed"), about("me/none")
    assert there["state"] == "note"
    assert "the first use downloads it (0.0 GB)" in there["found"]
    assert gated["state"] == missing["state"] == "problem"
    assert "is gated" in gated["found"]
    assert "hf auth login" in gated["hint"]
    assert "no model me/none was found" in missing["found"]
    assert "Check the spelling" in missing["hint"]


def test_no_network(hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    found = findings("--thinker", "me/open")["model me/open"]
    assert found["state"] == "problem"
    assert "could not be looked up" in found["found"]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    found = findings("--thinker", "me/open")["model me/open"]
    assert "HF_HUB_OFFLINE" in found["found"]
    assert found["hint"] == "Type: unset HF_HUB_OFFLINE"


def test_a_bug_report_has_no_secrets(here, monkeypatch):
    monkeypatch.delenv("O1_RETRIEVER_MODEL")
    monkeypatch.setenv("SOME_API_KEY", "very-private-value")
    address = "http://anna:pa55word@127.0.0.1:9/v1?key=abcdef&user=very-private-value"
    Path("o1-retriever.toml").write_text(f'thinker = "{address}"\n', encoding="utf-8")
    said = run("doctor", "--json").stdout + run("doctor").stdout
    assert "127.0.0.1:9/v1" in said
    for secret in ("anna", "pa55word", "abcdef", "very-private-value"):
        assert secret not in said
    assert without_secrets(f"{Path.home()}/x hf_abcdefgh sk-12345678") == "~/x hf_*** sk-***"


@pytest.mark.long
def test_the_first_load_shows_how_far_it_is_and_where_files_go(hub, model, tmp_path):
    hub.repos["me/tiny"] = Repo(private=False)
    hub.repos["me/tiny"].commit(
        {path.name: Entry(path.read_bytes(), large=path.suffix == ".safetensors") for path in model.iterdir()}
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    here = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "o1_retriever", "think", "Why?", "--model", "me/tiny", "--json"]
    first = subprocess.run(command, env=kept | here, capture_output=True, text=True, check=True)
    assert f"me/tiny is not on this machine: downloaded once, into {tmp_path / 'home'}" in first.stderr
    assert "100%" in first.stderr
    assert json.loads(first.stdout)["thoughts"]
    again = subprocess.run(command, env=kept | here, capture_output=True, text=True, check=True)
    assert again.stderr == ""
