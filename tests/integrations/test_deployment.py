"""The files of deploy/: they are not built here, but what they say is read and compared with the program."""

from __future__ import annotations

import configparser
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra `serve`")
pytest.importorskip("yaml", reason="needs the extra `documents`")

import typer
import yaml

from o1_retriever_server.command import serve

GRACE = 60  # seconds that the program takes at most to end


@pytest.fixture(scope="module")
def deploy(root: Path) -> Path:
    if not (root / "deploy").is_dir():
        pytest.skip("the source distribution has no deploy")
    return root / "deploy"


def options() -> dict[str, Any]:
    """The options of `serve` by what is typed, with the variable that says the same."""
    app = typer.Typer()
    app.command()(serve)
    return {name: each.envvar for each in typer.main.get_command(app).params for name in each.opts}


def check(arguments: list[str]) -> None:
    """That each option of a command line is one of `serve`."""
    assert arguments[0] == "serve"
    assert {each for each in arguments if each.startswith("--")} <= set(options())


def test_the_image_starts_the_server_with_options_that_it_has(deploy: Path, root: Path) -> None:
    text = (deploy / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = dict(re.findall(r"^([A-Z]+) (.*)$", text, re.MULTILINE))  # the last of each
    assert json.loads(lines["ENTRYPOINT"]) == ["o1-retriever"]
    check(json.loads(lines["CMD"]))
    assert lines["USER"] == "10001"
    variables = set(re.findall(r"(O1_RETRIEVER_\w+)=", lines["ENV"]))
    assert variables <= {*options().values(), "O1_RETRIEVER_CACHE"}
    assert variables >= {"O1_RETRIEVER_HOST", "O1_RETRIEVER_KEYS"}
    extras = re.search(r"\$\{wheel\}\[([a-z,]+)\]", text)
    assert extras is not None
    project = (root / "pyproject.toml").read_text(encoding="utf-8")
    assert all(re.search(rf"^{extra} = ", project, re.MULTILINE) for extra in extras[1].split(","))


def test_compose_keeps_the_keys_out_of_the_environment_and_listens_here_alone(deploy: Path) -> None:
    service = yaml.safe_load((deploy / "compose.yaml").read_text(encoding="utf-8"))["services"]["retriever"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert service["secrets"] == ["o1_keys"]
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert int(service["stop_grace_period"].rstrip("s")) > GRACE
    assert (deploy.parent / service["build"]["dockerfile"]).is_file()


def test_the_files_say_what_else_they_need(deploy: Path) -> None:
    user = re.search(r"^USER (\d+)$", (deploy / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert user is not None
    compose = (deploy / "compose.yaml").read_text(encoding="utf-8")
    assert f"chown {user[1]} keys && chmod 400 keys" in compose
    unit = (deploy / "o1-retriever.service").read_text(encoding="utf-8")
    assert "# On a GPU: PrivateDevices=no\nPrivateDevices=yes\n" in unit


def test_the_unit_starts_the_server_and_gives_it_time_to_end(deploy: Path) -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None, delimiters="=")
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(deploy / "o1-retriever.service", encoding="utf-8")
    program, *arguments = shlex.split(unit["Service"]["ExecStart"])
    assert Path(program).name == "o1-retriever"
    check(arguments)
    assert int(unit["Service"]["TimeoutStopSec"]) > GRACE
    assert unit["Service"]["DynamicUser"] == "yes"
