"""The commands together, and what becomes of an error in any of them."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from o1_retriever.cli import asking, caching, demo, evaluate, indexing, information, plugins
from o1_retriever.cli.options import DEBUG, Debug
from o1_retriever.cli.terminal import fail, stop
from o1_retriever.errors import O1RetrieverError

_AGAIN = "Type the command again with --debug to see where."


class Commands(TyperGroup):
    """The command group: own commands first, then those of other packages; every error becomes one line."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order in which they are shown."""
        own = super().list_commands(ctx)
        return [*own, *sorted(set(plugins.found()) - set(own))]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, None if there is none."""
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        point = plugins.found().get(cmd_name)
        return None if point is None else plugins.PluginCommand(point)

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
            if _is_usage_error(error) or ctx.meta.get(DEBUG):
                raise
            fail(*_explained(error))
            raise typer.Exit(1) from None


def _is_usage_error(error: Exception) -> bool:
    # click's own, or the copy of it that newer versions of typer bring.
    return any(kind.__name__ == "ClickException" for kind in type(error).__mro__)


def _explained(error: Exception) -> tuple[str, str | None]:
    if isinstance(error, O1RetrieverError):
        return error.message, error.hint
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'The system says'}: {error.strerror}.", _AGAIN
    if type(error).__name__ == "OutOfMemoryError":
        return "The device has not enough memory.", "Try --4bit, another --device, or fewer thoughts (-k 1)."
    return f"Something unexpected happened: {type(error).__name__}: {error}.", _AGAIN


app = typer.Typer(
    cls=Commands,
    help="Retrieval that thinks: a language model writes thoughts about your question, and both are searched "
    "for together.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("index")(indexing.index)
app.command("search")(asking.search)
app.command("think")(asking.think)
app.command("eval")(evaluate.evaluate)
app.command("info")(information.info)
app.command("demo")(demo.demo)
app.add_typer(caching.app, name="cache")


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
