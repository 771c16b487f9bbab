"""What the tests of the command line share: a tiny model, a folder of documents, running a command."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from typer.testing import CliRunner

from o1_retriever.cli.app import app
from o1_retriever.engine.template import TemplateConfig
from tests.support.tiny import tiny_model

NOTES = {
    "kitchen.md": "# Kitchen\n\n## Mirrors\n\nSteam meets cold glass.\n\n## Kettles\n\nBubbles collapse.\n",
    "storage.jsonl": '{"text": "Pumped storage gives back most.", "title": "Lakes", "year": 2020}\n',
    "sub/code.py": "def answer():\n    return 42\n",
}


def save(folder: Path, *, seed: int = 0) -> Path:
    model, tokenizer = tiny_model("llama", seed=seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    TemplateConfig(settings={"n_thoughts": 2, "max_new_tokens": 6, "temperature": 1.0}).save(folder)
    return folder


def run(*arguments: str, stdin: str | bytes | None = None):
    with own_logging():
        return CliRunner().invoke(app, list(arguments), input=stdin)


@contextmanager
def own_logging() -> Iterator[None]:
    """A command sets up the logging of its process, and is here a guest in one."""
    root, ours = logging.getLogger(), logging.getLogger("o1_retriever")
    before = [list(root.handlers), list(ours.handlers), ours.propagate, ours.level]
    try:
        with warnings.catch_warnings():
            yield
    finally:
        root.handlers[:], ours.handlers[:], ours.propagate = before[0], before[1], before[2]
        ours.setLevel(before[3])


def ok(*arguments: str, stdin: str | bytes | None = None) -> str:
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: str, stdin: str | bytes | None = None) -> str:
    """The one line that a command says before it ends with exit code 1."""
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if not line.startswith("Warning: ")]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    return lines[0]
