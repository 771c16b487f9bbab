"""Commands that other packages add: entry points of the group `o1_retriever.commands`.

The entry point's name is the command, its value a typer app or a function with typer's annotations. It is
loaded when its command is used, so that neither a slow nor a broken package touches the other commands.
"""

from __future__ import annotations

import inspect
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import typer
from typer.core import TyperCommand

from o1_retriever.errors import MissingExtraError, O1RetrieverError, SettingsError

GROUP = "o1_retriever.commands"


def found() -> dict[str, EntryPoint]:
    """The entry points by command; of two with the same name the first package's, in alphabetical order."""
    points = sorted(entry_points(group=GROUP), key=lambda point: (point.name, _package(point)), reverse=True)
    return {point.name: point for point in points}


# What the package itself adds; `--help` of all commands says it without loading them.
_OWN = {
    "synthesize": "Have an expert write several thoughts about every query of a file.",
    "vote": "Have a committee of retrievers elect one thought for every row.",
    "negatives": "Add hard negatives from a corpus to every row.",
    "make-data": "Make a training file of a FOLDER: queries, thoughts, votes and negatives.",
    "train": "Train a model to think and embed, as a RECIPE says.",
    "improve": "Have a model think, a committee elect, and train it on that, in rounds.",
    "publish": "Put a trained model's FOLDER on the Hugging Face Hub.",
}


class PluginCommand(TyperCommand):
    """Stands for a command of another package, or of an extra, until it is used."""

    def __init__(self, point: EntryPoint) -> None:
        own = point.module.startswith("o1_retriever")
        said = _OWN.get(point.name) if own else None
        super().__init__(name=point.name, help=said or f"Provided by {_package(point)}.")
        self.rich_help_panel = "Training (extra train)" if own else "Commands of other packages"
        self.point = point

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """The context of the real command, which then takes over."""
        return load(self.point).make_context(info_name, args, parent=parent, **extra)


def load(point: EntryPoint) -> Any:
    """The command behind an entry point.

    Raises `MissingExtraError` as the package raised it, and `SettingsError` naming the package for
    whatever else keeps it from loading.
    """
    whose = f"The command {point.name!r} of {_package(point)}"
    try:
        value = point.load()
    except MissingExtraError:
        raise
    except ImportError as error:
        missing = f" ({error.name} is missing)" if error.name else ""
        raise SettingsError(
            f"{whose} cannot be imported{missing}: {error}.",
            hint=_install(point) if isinstance(error, ModuleNotFoundError) else None,
        ) from error
    except Exception as error:
        raise SettingsError(f"{whose} cannot be loaded: {type(error).__name__}: {error}.") from error
    try:
        return _command(value, point.name)
    except (O1RetrieverError, RuntimeError, AssertionError, TypeError) as error:
        raise SettingsError(
            f"{whose} is {value!r:.50}; expected a typer app or a function with typer's annotations: {error}."
        ) from error


def _command(value: Any, name: str) -> Any:
    if isinstance(value, typer.Typer):
        return typer.main.get_command(value)
    if not inspect.isroutine(value):
        raise TypeError(f"a {type(value).__name__} is neither")
    app = typer.Typer(add_completion=False)
    app.command(name)(value)
    return typer.main.get_command(app)


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.module


def _install(point: EntryPoint) -> str:
    extras = f"[{','.join(point.extras)}]" if point.extras else ""
    return f"Type: pip install '{_package(point)}{extras}'"
