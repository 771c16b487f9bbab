"""`o1-retriever cache`: what is kept of earlier thoughts, and forgetting it."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from rich.filesize import decimal

from o1_retriever.cli.options import with_options
from o1_retriever.cli.terminal import Facts, output, problem, section, write_json
from o1_retriever.reporting.text import counted

app = typer.Typer(
    help="Look after the cache of thoughts and query vectors.", no_args_is_help=True, add_completion=False
)


@app.command("info")
@with_options
def info(as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False) -> None:
    """Show what the cache holds."""
    record = cache_record()
    if as_json:
        write_json(record)
    else:
        output().print(section("Cache", cache_rows(record)))


@app.command("clear")
@with_options
def clear() -> None:
    """Forget all thoughts and vectors."""
    from o1_retriever.cache import ThoughtCache, default_cache_path

    if not default_cache_path().is_dir():
        output().print("The cache was empty.")
        return
    with ThoughtCache() as cache:
        before = cache.info()
        cache.clear()
    output().print(f"Forgot {counted(before.thoughts, 'thought')} and {counted(before.vectors, 'vector')}.")


@app.command("path")
@with_options
def path() -> None:
    """Show where the cache is."""
    from o1_retriever.cache import default_cache_path

    sys.stdout.write(f"{default_cache_path()}\n")


def cache_record() -> dict[str, Any]:
    """What the cache holds; looking does not create it."""
    from o1_retriever.cache import ThoughtCache, default_cache_path

    path = default_cache_path()
    if not path.is_dir():
        return {"path": str(path), "max_bytes": None} | dict.fromkeys(
            ("thoughts", "vectors", "bytes", "file_bytes"), 0
        )
    with ThoughtCache() as cache:
        return cache.info().to_dict()


def cache_rows(record: dict[str, Any]) -> Facts:
    """The cache as lines."""
    if "problem" in record:
        return problem(record)
    room = f" of at most {decimal(record['max_bytes'])}" if record["max_bytes"] else ""
    return [
        ("path", record["path"]),
        ("holds", f"{counted(record['thoughts'], 'thought')}, {counted(record['vectors'], 'query vector')}"),
        ("size", f"{decimal(record['file_bytes'])}{room}"),
    ]
