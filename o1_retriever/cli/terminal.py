"""All that the command line writes beside a command's own output: errors, warnings, what is going on."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.status import Status

Facts = list[tuple[str, str]]  # names and values, shown below each other

INTERRUPTED = 130  # 128 + SIGINT, as shells say it


def output() -> Console:
    """Where results go: standard output, with colours only where it is a terminal."""
    from rich.console import Console

    return Console(highlight=False)


def messages() -> Console:
    """Where everything else goes: standard error."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def write_json(value: Any) -> None:
    """One JSON value on one line of standard output."""
    encoding = (sys.stdout.encoding or "ascii").lower().replace("-", "")
    sys.stdout.write(json.dumps(value, ensure_ascii=encoding != "utf8") + "\n")
    sys.stdout.flush()


def fail(message: str, hint: str | None = None) -> None:
    """Say on one line what went wrong and what to type."""
    _line("Error", "bold red", message, hint)


def warn(message: str) -> None:
    """Say on one line what the user should know."""
    _line("Warning", "yellow", message)


def stop() -> int:
    """Say that the user has interrupted, and return the exit code for it."""
    messages().print("Interrupted. What was done is kept: type the same command to go on.")
    return INTERRUPTED


@contextmanager
def working(what: str) -> Iterator[None]:
    """Show on a terminal what is going on, and nothing elsewhere; within another's block in its place."""
    if not sys.stderr.isatty():
        yield
    elif _going_on:
        outer, before = _going_on[-1], _going_on[-1].status
        outer.update(what)
        yield
        outer.update(before)
    else:
        with messages().status(what, spinner="dots") as shown:
            _going_on.append(shown)
            try:
                yield
            finally:
                _going_on.clear()


_going_on: list[Status] = []  # the one line of the terminal that says what is going on, while there is one


def configure(*, debug: bool) -> None:
    """Show this library's warnings as one line each, and keep what others log out of the output."""
    show_log("o1_retriever", logging.DEBUG if debug else logging.WARNING)
    if not debug:
        # Without any handler, Python prints the warnings of every library.
        logging.getLogger().addHandler(logging.NullHandler())
        warnings.simplefilter("ignore")


def show_log(name: str, level: int | None = None) -> None:
    """Show what a logger says from `level` on, as one line each; None: figures too where no bar is shown."""
    from o1_retriever.reporting import is_shown

    level = level or (logging.WARNING if is_shown(None) else logging.INFO)
    logger = logging.getLogger(name)
    logger.handlers = [handler for handler in logger.handlers if not isinstance(handler, _Lines)]
    logger.addHandler(_Lines(level))
    logger.propagate = False
    if level < logging.WARNING:
        logger.setLevel(level)


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            warn(record.getMessage())
        elif record.levelno == logging.INFO:
            messages().print(record.getMessage(), soft_wrap=True, markup=False)
        else:
            _line(record.levelname.capitalize(), "dim", record.getMessage())


def _line(label: str, style: str, *parts: str | None) -> None:
    from rich.text import Text

    text = " ".join(" ".join(part.split()) for part in parts if part)
    messages().print(Text.assemble((f"{label}: ", style), text), soft_wrap=True)


def section(title: str, rows: Sequence[tuple[str, str]]) -> Group:
    """A title with names and values below it."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2), pad_edge=True)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(value, style="red" if name == "problem" else ""))
    return Group(Text(title, style="bold"), table)


def problem(record: dict[str, Any]) -> Facts:
    """What keeps the thing that the record is about from being used, as a line."""
    return [("problem", record["problem"])] if record["problem"] else []
