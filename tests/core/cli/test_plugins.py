"""Commands of other packages: found by their entry points, loaded when used, harmless when broken."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support.commands import ok, refused, run

MODULE = """
from pathlib import Path
from typing import Annotated

import typer

Path("loaded").write_text("yes")

def greet(name: str, loud: Annotated[bool, typer.Option("--loud", help="Say it loud.")] = False) -> None:
    '''Greet somebody.'''
    typer.echo(f"Hello {name}".upper() if loud else f"Hello {name}")

app = typer.Typer()

@app.command()
def one() -> None:
    '''The first.'''
    typer.echo("one")

@app.command()
def two() -> None:
    '''The second.'''
    typer.echo("two")

broken = 7
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a distribution of one module with entry points, as pip leaves it."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(name: str, source: str, **points: str) -> Path:
        module = tmp_path / f"{name}_plugin.py"
        module.write_text(source)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"{verb} = {name}_plugin:{value}" for verb, value in points.items()]
        (info / "entry_points.txt").write_text("\n".join(["[o1_retriever.commands]", *lines, ""]))
        monkeypatch.delitem(sys.modules, f"{name}_plugin", raising=False)
        return module

    yield install
    for name in [name for name in sys.modules if name.endswith("_plugin")]:
        del sys.modules[name]


def test_a_function_becomes_a_command(install):
    install("waver", MODULE, greet="greet")
    assert ok("greet", "you") == "Hello you\n"
    assert ok("greet", "you", "--loud") == "HELLO YOU\n"
    assert "Say it loud." in ok("greet", "--help")
    assert run("greet").exit_code == 2


def test_an_app_becomes_a_command_with_commands_of_its_own(install):
    install("waver", MODULE, wave="app")
    assert ok("wave", "two") == "two\n"
    assert "The first." in ok("wave", "--help")


def test_help_names_them_without_loading_them(install, here):
    install("waver", MODULE, greet="greet")
    said = ok("--help")
    assert "greet" in said
    assert "Provided by waver." in said
    assert not (here / "loaded").exists()
    ok("greet", "you")
    assert (here / "loaded").exists()


@pytest.mark.parametrize(
    ("source", "value", "expected"),
    [
        ("import no_such_module", "app", "(no_such_module is missing)"),
        ("import no_such_module", "app [train]", "Type: pip install 'waver[train]'"),
        ("1 / 0", "app", "ZeroDivisionError"),
        ("from typer import NoSuchThing", "app", "cannot be imported"),
        (MODULE, "broken", "expected a typer app or a function"),
        (MODULE, "missing", "AttributeError"),
        (
            "from o1_retriever.errors import require\nrequire('no_such', extra='train', purpose='Waving')",
            "app",
            "pip install 'o1-retriever[train]'",
        ),
    ],
)
def test_a_broken_one_names_itself_and_breaks_nothing_else(install, source, value, expected):
    install("waver", source, wave=value)
    said = refused("wave", "two")
    assert expected in said
    if "o1-retriever[" not in expected:
        assert "The command 'wave' of waver" in said
    assert "wave" in ok("--help")
    assert ok("cache", "path")


def test_own_commands_come_first(install, here):
    install("waver", MODULE, cache="greet")
    assert ok("cache", "path")
    assert not (here / "loaded").exists()
    assert ok("--help").count("│ cache ") == 1
