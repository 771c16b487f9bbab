"""What goes wrong is said in one line, with what to type."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from o1_retriever import errors
from o1_retriever.cli.app import Commands
from o1_retriever.cli.options import Debug
from tests.support.commands import refused, run


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["think", ""], "The query is empty; expected some text."),
        (["think", " \n"], "only whitespace"),
        (["think", "\udcff"], "lone surrogate"),
        (["think", "Why?", "-n", "0"], "expected a value from 1"),
        (["think", "Why?", "--temperature", "-1"], "temperature"),
        (["think", "Why?", "--device", "tpu9"], "expected cpu, cuda"),
        (["think", "Why?", "--model", "./nowhere"], "There is no folder ./nowhere"),
        (["think", "Why?", "--model", "no-such/model"], "Give an existing folder, or a Hub id"),
        (["think", "Why?", "--model", "notes"], "notes has no config.json"),
        (["think", "Why?", "--model", "x", "--encoder", "y"], "Leave out --model"),
        (["think", "Why?", "--encoder", "e", "--thinker-model", "m"], "without an endpoint"),
        (["think", "Why?", "--encoder", "e", "--thinker", "nowhere.jsonl"], "There is no file nowhere.jsonl"),
        (["think", "-"], "Standard input holds no question"),
        (["search", "Why?"], "Type: o1-retriever index FOLDER"),
        (["index", "nowhere"], "nowhere: there is no such folder"),
        (["index", "notes/kitchen.md"], "type: o1-retriever index notes --include kitchen.md"),
        (["index", "notes", "--include", "*.pdf"], "expected some of"),
        (["index", "notes", "--overlap", "500"], "overlap is 500"),
        (["index", "notes", "--index", "notes/kitchen.md"], "Choose another"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(arguments, expected):
    assert expected in refused(*arguments, stdin="")


def test_a_bad_question_in_the_middle_is_named(indexed):
    said = refused("search", "-", "--fast", stdin=b"fine\n\xff\xfe\n")
    assert "query 1 has a lone surrogate" in said


def test_a_folder_that_lacks_weights_or_markers(here, model):
    bare = Path(shutil.copytree(model, here / "bare"))
    (bare / "model.safetensors").unlink()
    assert "bare has no weights; expected model.safetensors" in refused("think", "Why?", "--model", "bare")
    plain = Path(shutil.copytree(model, here / "plain"))
    (plain / "o1_embedder.json").unlink()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        file = plain / name
        file.write_text(file.read_text().replace("<emb>", "<embed>"))
    assert "special tokens" in refused("think", "Why?", "--model", "plain")


def test_an_index_of_another_model_is_refused(indexed, other_model):
    for command in (("search", "Why?"), ("index", "notes")):
        said = refused(*command, "--model", str(other_model))
        assert "was built by another document space: weights" in said
        assert "index into another folder" in said


def test_an_index_that_is_empty_or_damaged(indexed):
    (indexed / "notes" / "kitchen.md").unlink()
    file = indexed / ".o1-index" / "documents" / "documents.sqlite3"
    file.write_bytes(b"not a database at all" * 300)
    assert "Delete that folder and index again" in refused("search", "Why?")


def test_a_filter_that_is_wrong_is_said_before_anything_is_loaded(here):
    said = refused("search", "Why?", "--where", '{"page": {"$nonsense": 1}}')
    assert "at page found the operator '$nonsense'; expected one of $eq" in said


def test_a_cache_folder_that_cannot_be_used(here, monkeypatch):
    (here / "file").write_text("x")
    monkeypatch.setenv("O1_RETRIEVER_CACHE", str(here / "file"))
    assert "The cache folder" in refused("think", "Why?")


def test_a_missing_extra_names_itself(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "chromadb", None)
    assert "pip install 'o1-retriever[index]'" in refused("index", "notes")


def every_error() -> list[type[errors.O1RetrieverError]]:
    found, todo = [], [errors.O1RetrieverError]
    while todo:
        todo += (kind := todo.pop()).__subclasses__()
        found.append(kind)
    return [kind for kind in found if kind.__module__ == errors.__name__]


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_every_error_of_the_library_is_one_line_and_debug_has_the_traceback(kind, raising):
    made = {
        "DocumentError": lambda: kind("a.pdf", "it\nis broken."),
        "MissingExtraError": lambda: kind("pkg", "index", "This"),
        "WrongVersionError": lambda: kind("pkg", "index", "This", found="1", expected=">=2"),
    }
    error = made.get(kind.__name__, lambda: kind("Found\nnothing."))()
    error.hint = "Type: this"
    result = CliRunner().invoke(raising(error), ["fail"])
    assert result.exit_code == 1
    assert result.stderr == f"Error: {' '.join(error.message.split())} Type: this\n"
    assert CliRunner().invoke(raising(error), ["--debug", "fail"]).exception is error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (PermissionError(13, "Permission denied", "a.txt"), "a.txt: Permission denied."),
        (RuntimeError("odd"), "Something unexpected happened: RuntimeError: odd."),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA..."), "Try --4bit"),
    ],
)
def test_other_errors_are_one_line_too(error, expected, raising):
    result = CliRunner().invoke(raising(error), ["fail"])
    assert result.exit_code == 1
    assert expected in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_interruption_says_that_nothing_is_lost(raising):
    result = CliRunner().invoke(raising(KeyboardInterrupt()), ["fail"])
    assert result.exit_code == 130
    assert result.stderr == "Interrupted. What was done is kept: type the same command to go on.\n"


@pytest.fixture
def raising():
    """A command line of one command, which raises what it is told."""

    def build(error: BaseException) -> typer.Typer:
        built = typer.Typer(cls=Commands, pretty_exceptions_enable=False)

        @built.command("fail")
        def fail() -> None:
            raise error

        @built.callback()
        def options(debug: Debug = False) -> None: ...

        return built

    return build


@pytest.mark.parametrize(
    "arguments",
    [
        ["frobnicate"],
        ["search"],
        ["search", "Why?", "--hits", "0"],
        ["search", "Why?", "-k", "0"],
        ["search", "Why?", "--thoughts", "3"],
        ["think", "Why?", "-k", "3"],
        ["think", "Why?", "--fast"],
        ["eval", "--data", "x", "--thinking", "never,1"],
        ["search", "Why?", "--where", "page"],
        ["search", "Why?", "--where", "$or=1"],
        ["search", "Why?", "--where", '{"page": '],
        ["think", "Why?", "--dtype", "float8"],
        ["index"],
        ["cache", "burn"],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments):
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output
