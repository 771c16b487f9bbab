"""Publishing to a server that speaks the Hub's API, through the Hub's own client in a process of its own."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from o1_retriever_training.publishing.card import CardFacts
from o1_retriever_training.publishing.hub import PublishError, check_token, publish
from o1_retriever_training.publishing.staging import stage
from tests.support.hub_repos import Entry, Repo
from tests.support.hub_server import Fault, HubServer, hub_server
from tests.support.publishing import command, environment, litter, published, saved

pytestmark = pytest.mark.long

NAME = "me/tiny"


@pytest.fixture
def server() -> Iterator[HubServer]:
    with hub_server() as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = saved(tmp_path_factory.mktemp("publishing") / "model")
    litter(found)
    return found


def puts(server: HubServer) -> int:
    return sum(count for (method, _), count in server.seen.items() if method == "PUT")


def test_publishing_twice(server: HubServer, folder: Path, tmp_path: Path) -> None:
    done = published(server, tmp_path, folder, "--repo", NAME)
    assert done.returncode == 0, done.stderr
    assert f"{server.url}/{NAME} (private): 14 files sent." in done.stdout
    repo = server.repos[NAME]
    assert repo.private
    assert repo.files.keys() >= {"model.safetensors", "README.md", "training_recipe.yaml"}
    assert not [path for path in repo.files if "checkpoint" in path or path.endswith(".pt")]
    assert repo.files["model.safetensors"].content == (folder / "model.safetensors").read_bytes()
    assert len(repo.commits) == 2
    before = puts(server)
    again = published(server, tmp_path, folder, "--repo", NAME)
    assert "0 files sent, 14 were there." in again.stdout
    assert (puts(server), len(repo.commits)) == (before, 2)
    public = published(server, tmp_path, folder, "--repo", NAME, "--public")
    assert f"{NAME} (public): 0 files sent" in public.stdout
    assert not repo.private
    refused = published(server, tmp_path, folder, "--repo", NAME)
    assert refused.returncode == 1
    assert "is public, and what is sent there anybody can read" in refused.stderr


def test_a_dry_run_asks_nobody(folder: Path, tmp_path: Path, server: HubServer) -> None:
    done = published(
        server, tmp_path, folder, "--repo", NAME, "--dry-run", "--staging", tmp_path / "s", token=None
    )
    assert done.returncode == 0, done.stderr
    assert not server.seen
    assert re.search(r"model\.safetensors +[\d.]+ kB", done.stdout)
    assert re.search(r"optimizer\.pt +10 bytes +state of the training", done.stdout)
    assert re.search(r"\.env +10 bytes +may hold secrets", done.stdout)
    assert "Nothing was sent" in done.stdout
    assert (tmp_path / "s" / "README.md").is_file()


def test_tokens_that_do_not_do(server: HubServer, folder: Path, tmp_path: Path) -> None:
    for token, said in ((None, "There is no token"), ("hf_wrong", "The Hub refuses the token")):
        done = published(server, tmp_path, folder, "--repo", NAME, token=token)
        assert done.returncode == 1
        assert said in done.stderr
        assert "hf auth login" in done.stderr
        assert "Traceback" not in done.stderr
    done = published(server, tmp_path, folder, "--repo", "you/tiny")
    assert "may not write to you/tiny (HTTP 403" in done.stderr
    server.tokens["hf_reader"] = "me"
    server.readers.add("hf_reader")
    done = published(server, tmp_path, folder, "--repo", NAME, token="hf_reader")
    assert f"may not write to {NAME} (HTTP 403" in done.stderr
    assert server.repos == {}


def test_no_token_from_python(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi

    staged = stage(folder, tmp_path / "staging", facts=CardFacts(repo=NAME))
    with pytest.raises(PublishError, match="There is no token"):
        publish(staged, NAME, api=HfApi(token=False))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "absent"))
    with pytest.raises(PublishError, match="There is no token"):
        check_token()


def test_a_repository_of_something_else_is_left_alone(
    server: HubServer, folder: Path, tmp_path: Path
) -> None:
    theirs = {"README.md": Entry(b"# Mine", large=False), "old.safetensors": Entry(b"weights", large=True)}
    repo = server.repos[NAME] = Repo(private=True)
    repo.commit({**repo.files, "README.md": theirs["README.md"]})
    done = published(server, tmp_path, folder, "--repo", NAME)
    assert "1 would be replaced and 0 removed (README.md). Nothing was sent." in done.stderr
    repo.commit({**repo.files, **theirs})
    done = published(server, tmp_path, folder, "--repo", NAME)
    assert done.returncode == 1
    assert "1 would be replaced and 1 removed (README.md, old.safetensors). Nothing was sent." in done.stderr
    assert "--force" in done.stderr
    assert repo.files["README.md"].content == b"# Mine"
    assert puts(server) == 0
    forced = published(server, tmp_path, folder, "--repo", NAME, "--force")
    assert "14 files sent, 1 removed" in forced.stdout, forced.stderr
    assert "old.safetensors" not in repo.files
    assert ".gitattributes" in repo.files


def test_a_connection_that_breaks_in_the_middle_is_made_again(
    server: HubServer, folder: Path, tmp_path: Path
) -> None:
    def fault(method: str, path: str, number: int) -> Fault | None:
        if method == "PUT" and number == 0:
            return Fault(after=1000)
        return Fault(status=500) if path.endswith("/commit/main") and number == 0 else None

    server.fault = fault
    done = published(server, tmp_path, folder, "--repo", NAME)
    assert done.returncode == 0, done.stderr
    assert "Trying again" in done.stderr
    assert len(server.repos[NAME].commits) == 2
    assert (
        server.repos[NAME].files["model.safetensors"].content == (folder / "model.safetensors").read_bytes()
    )


@pytest.mark.slow
def test_a_connection_that_stays_broken(server: HubServer, folder: Path, tmp_path: Path) -> None:
    """A minute, which the Hub's client and the command wait for it."""
    server.fault = lambda method, path, number: Fault(after=100) if method == "PUT" else None
    done = published(server, tmp_path, folder, "--repo", NAME)
    assert done.returncode == 1
    assert "The upload to me/tiny broke off" in done.stderr
    assert "Type the same command again" in done.stderr.splitlines()[-1]
    server.fault = lambda method, path, number: None
    assert published(server, tmp_path, folder, "--repo", NAME).returncode == 0


def test_what_has_arrived_is_not_sent_again(server: HubServer, folder: Path, tmp_path: Path) -> None:
    """The storage refuses the second large file; the next command sends that one alone, and commits."""
    put: list[str] = []

    def fault(method: str, path: str, number: int) -> Fault | None:
        if method == "PUT":
            put.append(path)
            return Fault(status=403) if len(put) == 2 else None
        return None

    server.fault = fault
    first = published(server, tmp_path, folder, "--repo", NAME)
    assert first.returncode == 1
    assert "The upload to me/tiny broke off" in first.stderr
    assert "same command again" in first.stderr
    assert len(server.repos[NAME].commits) == 1, "half a model must never be seen"
    stored, count = set(server.blobs), len(put)
    assert stored
    second = published(server, tmp_path, folder, "--repo", NAME)
    assert second.returncode == 0, second.stderr
    assert not {path.split("/")[2] for path in put[count:]} & stored
    assert stored < server.blobs.keys()
    assert {"model.safetensors", "tokenizer.json"} <= server.repos[NAME].files.keys()


def test_a_process_that_is_killed_goes_on(server: HubServer, folder: Path, tmp_path: Path) -> None:
    reached = []

    def fault(method: str, path: str, number: int) -> Fault | None:
        if path.endswith("/commit/main") and not reached:
            reached.append(True)
            time.sleep(30)  # until it is killed
        return None

    server.fault = fault
    process = subprocess.Popen(
        command("publish", folder, "--repo", NAME),
        env=environment(server, tmp_path),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 250
    while not reached and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=250) == -signal.SIGKILL
    assert len(server.repos[NAME].commits) == 1
    before = puts(server)
    done = published(server, tmp_path, folder, "--repo", NAME)
    assert done.returncode == 0, done.stderr
    assert puts(server) == before, "the large files had arrived"
    assert len(server.repos[NAME].commits) == 2


def test_a_commit_whose_answer_was_lost_is_not_made_twice(
    server: HubServer, folder: Path, tmp_path: Path
) -> None:
    """The server commits and then closes the connection."""
    server.lose_answer = lambda path, number: path.endswith("/commit/main") and number == 0
    done = published(server, tmp_path, folder, "--repo", NAME)
    assert done.returncode == 0, done.stderr
    assert len(server.repos[NAME].commits) == 2


def test_somebody_else_commits_meanwhile(server: HubServer, folder: Path, tmp_path: Path) -> None:
    def fault(method: str, path: str, number: int) -> Fault | None:
        if path.endswith("/commit/main") and number == 0:
            repo = server.repos[NAME]
            repo.commit({**repo.files, "theirs.txt": Entry(b"x", large=False)})
        return None

    server.fault = fault
    done = published(server, tmp_path, folder, "--repo", NAME)
    assert done.returncode == 1
    assert "Somebody else has changed me/tiny meanwhile (HTTP 412" in done.stderr
    assert set(server.repos[NAME].files) == {".gitattributes", "theirs.txt"}


def test_offline_and_a_wrong_name(folder: Path, tmp_path: Path, server: HubServer) -> None:
    for name in ("tiny", "me/tiny/more", "me/ti ny"):
        done = published(server, tmp_path, folder, "--repo", name)
        assert done.returncode == 1
        assert "expected user/name" in done.stderr
    arguments = command("publish", folder, "--repo", NAME)
    env = environment(server, tmp_path) | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(arguments, env=env, capture_output=True, text=True, timeout=250, check=False)
    assert "HF_HUB_OFFLINE is set" in done.stderr
    assert not server.seen


def test_metadata_reaches_the_hub_in_its_own_format(server: HubServer, folder: Path, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    row = {
        "collection": "hub:BeIR/scifact",
        "split": "test",
        "system": "tiny never",
        "measures": {"nDCG@10": 0.5},
    }
    results = tmp_path / "results.jsonl"
    results.write_text(json.dumps(row) + "\n")
    refused = published(server, tmp_path, folder, "--repo", NAME, "--license", "nonsense")
    assert "refuses the card's metadata" in refused.stderr
    assert '"license" must be one of' in refused.stderr
    assert puts(server) == 0
    extra = ["--license", "apache-2.0", "--results", results, "--dataset", "someone/facts"]
    done = published(server, tmp_path, folder, "--repo", NAME, *extra)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    card = ModelCard(server.repos[NAME].files["README.md"].content.decode())
    assert (card.data.license, card.data.base_model) == ("apache-2.0", "someone/base")
    assert card.data.datasets == ["someone/facts"]
    (result,) = card.data.eval_results
    assert (result.dataset_type, result.dataset_split, result.metric_type) == (
        "BeIR/scifact",
        "test",
        "ndcg_at_10",
    )
    assert result.metric_value == 0.5
