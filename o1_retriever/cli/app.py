"""The commands in one table, and what becomes of an error in any of them.

A command is loaded when it is used, so that neither a slow nor a broken package touches the other commands.
The table holds our own commands, those of the extra `train` included, and the entry points of the group
`o1_retriever.commands`, by which other packages add commands. A value names a typer app, or a function with
typer's annotations.
"""

from __future__ import annotations

import inspect
import sys
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from o1_retriever.cli.options import DEBUG, Debug
from o1_retriever.cli.terminal import fail, stop
from o1_retriever.errors import MissingExtraError, O1RetrieverError, SettingsError

GROUP = "o1_retriever.commands"

# Name: module, function and the extra that installs what it needs; and what `--help` says without loading it.
OWN = {
    "index": ("o1_retriever.cli.index:index", "Index a FOLDER of documents, or bring its index up to date."),
    "search": (
        "o1_retriever.cli.search:search",
        "Ask a QUERY: think about it, then show the thoughts and the passages they led to.",
    ),
    "think": ("o1_retriever.cli.search:think", "Show what a model thinks about a QUERY, without searching."),
    "eval": ("o1_retriever.cli.evaluate:evaluate", "Measure retrieval with and without thoughts."),
    "embed": (
        "o1_retriever.cli.embed:embed",
        "Embed a file of many documents into Parquet files, on this machine or on a cluster.",
    ),
    "load": ("o1_retriever.cli.embed:load", "Load such files into a vector store."),
    "calibrate": (
        "o1_retriever.cli.evaluate:calibrate",
        "Find out how much thoughts should count, from QUESTIONS whose passages you know.",
    ),
    "size": (
        "o1_retriever.cli.size:size",
        "Say what a load takes of machines like this one: machines, waiting, memory, money.",
    ),
    "init": (
        "o1_retriever.cli.init:init",
        "Begin: three questions, a file of settings, an index, the first answer.",
    ),
    "doctor": (
        "o1_retriever.cli.doctor:doctor",
        "Check what keeps models and folders from working here, and say what to type.",
    ),
    "info": ("o1_retriever.cli.info:info", "Show the model, device, number format, cache and index."),
    "models": (
        "o1_retriever.cli.models:models",
        "List language models that were tried as thinkers, and what they cost here.",
    ),
    "demo": ("o1_retriever.cli.demo:demo", "Ask a small corpus five questions, and see what thinking does."),
    "serve": (
        "o1_retriever_server.command:serve [serve]",
        "Serve vectors, thoughts and search over HTTP, as clients of OpenAI, Cohere and Jina ask for them.",
    ),
    "mcp": (
        "o1_retriever_server.command:mcp [serve]",
        "Give an agent tools over MCP, on standard input and output: search, think, explain, passages.",
    ),
    "cache": ("o1_retriever.cli.info:cache", "Look after the cache of thoughts and query vectors."),
    "synthesize": (
        "o1_retriever_training.commands:synthesize [train]",
        "Have an expert write several thoughts about every query of a file.",
    ),
    "vote": (
        "o1_retriever_training.commands:vote [train]",
        "Have a committee of retrievers elect one thought for every row.",
    ),
    "negatives": (
        "o1_retriever_training.commands:negatives [train]",
        "Add hard negatives from a corpus to every row.",
    ),
    "make-data": (
        "o1_retriever_training.commands:make_data [train]",
        "Make a training file of a FOLDER: queries, thoughts, votes and negatives.",
    ),
    "train": (
        "o1_retriever_training.joint.command:train [train]",
        "Train a model to think and embed, as a RECIPE says.",
    ),
    "adapt": (
        "o1_retriever_training.commands:adapt [train]",
        "Train a small model to think for the INDEX that you have, and keep it if it helps.",
    ),
    "improve": (
        "o1_retriever_training.commands:improve [train]",
        "Have a model think, a committee elect, and train it on that, in rounds.",
    ),
    "publish": (
        "o1_retriever_training.publishing.command:publish [train]",
        "Put a trained model's FOLDER on the Hugging Face Hub.",
    ),
}  # fmt: skip

_AGAIN = "Type the command again with --debug to see where."


class LazyCommand(TyperCommand):
    """Stands for a command until it is used."""

    def __init__(self, point: EntryPoint, line: str, panel: str | None) -> None:
        super().__init__(name=point.name, help=line)
        self.rich_help_panel = panel
        self.point = point

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """The context of the real command, which then takes over."""
        return load(self.point).make_context(info_name, args, parent=parent, **extra)


def load(point: EntryPoint) -> Any:
    """The command behind an entry of the table.

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
        extras = f"[{','.join(point.extras)}]" if point.extras else ""
        hint = f"Type: pip install '{_package(point)}{extras}'"
        raise SettingsError(
            f"{whose} cannot be imported{missing}: {error}.",
            hint=hint if isinstance(error, ModuleNotFoundError) else None,
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
    if point.dist is not None:
        return point.dist.name
    return "o1-retriever" if point.name in OWN else point.module


class Commands(TyperGroup):
    """The command group over the table; every error becomes one line."""

    @cached_property
    def _own(self) -> dict[str, LazyCommand]:
        points = {name: EntryPoint(name=name, value=value, group=GROUP) for name, (value, _) in OWN.items()}
        return {
            name: LazyCommand(
                point, OWN[name][1], "Training (extra train)" if "train" in point.extras else None
            )
            for name, point in points.items()
        }

    @cached_property
    def _others(self) -> dict[str, LazyCommand]:
        # Looking through all installed packages takes longer than most commands: done once, if at all.
        points = sorted(entry_points(group=GROUP), key=lambda point: (point.name, _package(point)))
        commands: dict[str, LazyCommand] = {}
        for point in points:
            if point.name not in OWN and point.name not in commands:  # of two, the first package's
                line = f"Provided by {_package(point)}."
                commands[point.name] = LazyCommand(point, line, "Commands of other packages")
        return commands

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order in which they are shown."""
        return [*super().list_commands(ctx), *self._own, *self._others]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, None if there is none."""
        own = super().get_command(ctx, cmd_name) or self._own.get(cmd_name)
        return own or self._others.get(cmd_name)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; say what went wrong in one line, unless `--debug` wants the traceback."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Exit(stop()) from None
        except BrokenPipeError:
            # Whoever reads the output has enough of it, like `head`; `main` sees to the rest.
            raise typer.Exit(1) from None
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            # A usage error of click, or of the copy of it that newer versions of typer bring.
            usage = any(kind.__name__ == "ClickException" for kind in type(error).__mro__)
            if usage or ctx.meta.get(DEBUG):
                raise
            fail(*_explained(error))
            raise typer.Exit(1) from None


def _explained(error: Exception) -> tuple[str, str | None]:
    if isinstance(error, O1RetrieverError):
        return error.message, error.hint
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'The system says'}: {error.strerror}.", _AGAIN
    if type(error).__name__ == "OutOfMemoryError":
        return "The device has not enough memory.", "Try --4bit, another --device, or fewer thoughts (-n 1)."
    return f"Something unexpected happened: {type(error).__name__}: {error}.", _AGAIN


app = typer.Typer(
    cls=Commands,
    help="Retrieval that thinks: a language model writes thoughts about your question, and both are searched "
    "for together.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        from o1_retriever import __version__

        sys.stdout.write(f"o1-retriever {__version__}\n")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
    debug: Debug = False,
) -> None: ...
