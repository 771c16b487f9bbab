"""`o1-retriever info`: the model, where it would run, the cache and the index, without loading the model."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from o1_retriever.cli.options import IndexOptions, ModelOptions, with_options
from o1_retriever.cli.terminal import output, write_json


@with_options
def info(
    *,
    target: IndexOptions,
    model: ModelOptions,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
) -> None:
    """Show the model, device, number format, cache and index."""
    from o1_retriever import __version__
    from o1_retriever.cli import records

    found: dict[str, Any] = {
        "version": __version__,
        "model": records.model_record(model),
        **records.device_record(model),
        "cache": records.tried(records.cache_record),
        "index": records.tried(lambda: records.index_record(target.index)),
    }
    if as_json:
        write_json(found)
        return
    rows = [*records.model_rows(found["model"]), ("device", found["device"]), ("dtype", found["dtype"])]
    console = output()
    console.print(records.section(f"o1-retriever {__version__}", rows))
    console.print("", records.section("Cache", records.cache_rows(found["cache"])), sep="\n")
    console.print("", records.section("Index", records.index_rows(found["index"])), sep="\n")
