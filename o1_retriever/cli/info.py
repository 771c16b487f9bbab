"""`o1-retriever info`: the model, where it would run, the cache and the index, without loading the model.

`o1-retriever cache` shows the cache alone, and forgets what it holds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.filesize import decimal

from o1_retriever.cli.models import (
    check_pair,
    encoder_name,
    identities_file,
    model_name,
    place_of,
    thinker_dtype,
    thinker_name,
)
from o1_retriever.cli.options import IndexOptions, ModelOptions, find_file, in_force, with_options
from o1_retriever.cli.terminal import Facts, output, problem, section, write_json
from o1_retriever.errors import ModelNotFoundError, O1RetrieverError
from o1_retriever.reporting import counted
from o1_retriever.vectors import Precision


@with_options
def info(
    *,
    target: IndexOptions,
    model: ModelOptions,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
) -> None:
    """Show the model, device, number format, cache and index."""
    from o1_retriever import __version__

    file = find_file()
    record: dict[str, Any] = {
        "version": __version__,
        "config": None if file is None else str(file),
        "settings": {name: {"value": each.value, "from": each.source} for name, each in in_force().items()},
        "model": model_record(model),
        **device_record(model),
        "cache": tried(cache_record),
        "index": tried(lambda: index_record(target.index)),
    }
    if as_json:
        write_json(record)
        return
    rows = [*model_rows(record["model"]), ("device", record["device"]), ("dtype", record["dtype"])]
    console = output()
    console.print(section(f"o1-retriever {__version__}", rows))
    if record["settings"]:
        lines = [(name, f"{each['value']}  ({each['from']})") for name, each in record["settings"].items()]
        console.print("", section("Settings that nobody has to type", lines), sep="\n")
    console.print("", section("Cache", cache_rows(record["cache"])), sep="\n")
    console.print("", section("Index", index_rows(record["index"])), sep="\n")


def model_record(options: ModelOptions) -> dict[str, Any]:
    """The model that the options name; `problem` says what keeps it from being used, None if nothing does."""
    record: dict[str, Any] = {"name": None, "folder": None, "problem": None}
    try:
        name = model_name(options)
        if name is None:
            record = {
                "encoder": encoder_name(options),
                "thinker": thinker_name(options),
                "thinker_model": options.thinker_model,
                "problem": None,
            }
            check_pair(options)
            return record
        record["name"] = name
        folder = _folder(name)
        record["folder"] = str(folder)
        return record | _weights(folder) | _checkpoint(folder)
    except O1RetrieverError as error:
        return record | {"problem": str(error)}


def _folder(name: str) -> Path:
    """The folder of a model, of one of the Hub only if it has been downloaded."""
    from o1_retriever.engine.checkpoint import find_folder

    here, _ = place_of(name)
    if here is None:
        raise ModelNotFoundError(f"There is no folder {name} here; it would be downloaded from the Hub.")
    return find_folder(str(here))


def _weights(folder: Path) -> dict[str, Any]:
    """Size, number and format of the weights, from the headers of their files."""
    from o1_retriever.engine.checkpoint import read_stored

    stored = read_stored(folder)
    return {"weights_bytes": stored.bytes, "parameters": stored.parameters, "stored_as": sorted(stored.kinds)}


def _checkpoint(folder: Path) -> dict[str, Any]:
    """Architecture, layout and lengths, from the checkpoint's config and tokenizer."""
    from o1_retriever.engine.load import read_config, read_template
    from o1_retriever.engine.template import MARKERS

    config, tokenizer = read_config(folder)
    template = read_template(folder, tokenizer)
    ids, rows = tokenizer.get_vocab(), config.get_text_config().vocab_size
    # A marker that only the tokenizer's config names has an id for which the model has no row.
    missing = [marker for marker in MARKERS[template.layout] if ids.get(marker, rows) >= rows]
    return {
        "architecture": (config.architectures or [config.model_type])[0],
        "dimension": config.get_text_config().hidden_size,
        "layout": template.layout,
        "max_tokens": template.max_length,
        "settings": template.settings,
        "problem": f"its tokenizer lacks {' '.join(missing)}" if missing else None,
    }


def device_record(options: ModelOptions) -> dict[str, str]:
    """Where the model would run, in which number format, of a pair the thinker if it is a model here.

    Raises `SettingsError` for a device not here.
    """
    device, kind, in_8_bits = _numbers(options)
    quantised = "nf4" if options.four_bit else "int8" if in_8_bits else None
    return {"device": device, "dtype": Precision(dtype=kind, quantization=quantised).format}


def numbers(options: ModelOptions) -> tuple[str, str]:
    """The device, and the number format that tells how much memory loading takes there. Raises as above."""
    device, kind, in_8_bits = _numbers(options)
    # Those of 8 bits are made of float32.
    return device, "nf4" if options.four_bit else "float32" if in_8_bits else kind


def _numbers(options: ModelOptions) -> tuple[str, str, bool]:
    from o1_retriever.engine.weights import device_named, dtype_named
    from o1_retriever.thinkers import is_elsewhere

    device, name, writes = device_named(options.device), str(options.dtype), options.model is None
    if writes and is_elsewhere(thinker_name(options)):
        name, writes = "float32" if options.encoder_dtype == "auto" else str(options.encoder_dtype), False
    elif writes:
        name = thinker_dtype(options)
    if options.four_bit and name == "fastest":
        name = "auto"
    kind, in_8_bits = dtype_named(name, device, writes=writes)
    return device, str(kind).removeprefix("torch."), in_8_bits


def index_record(path: Path) -> dict[str, Any]:
    """What the index holds. Raises `IndexNotFoundError` or another `StoreError`."""
    from o1_retriever.index.index import Index

    with Index(path, create=False) as index:
        info = index.info()
    return {
        "path": str(info.path),
        "documents": info.documents,
        "folders": info.roots,
        "bytes": info.bytes,
        "fingerprint": info.space.fingerprint,
        "space": info.space.to_dict(),
        "precision": info.precision.to_dict(),
    }


def tried(look: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A record, or one whose only entry `problem` says why there is none."""
    try:
        return look()
    except O1RetrieverError as error:
        return {"problem": str(error)}


def model_rows(record: dict[str, Any]) -> Facts:
    """The model as lines."""
    if "encoder" in record:
        thinker = " ".join(part for part in (record["thinker_model"], record["thinker"]) if part)
        return [("encoder", record["encoder"]), ("thinker", thinker), *problem(record)]
    if "layout" not in record:
        return [("model", record["name"] or "none"), *problem(record)]
    shape = (
        f"{record['architecture']}, {record['dimension']} dimensions, at most {record['max_tokens']} tokens"
    )
    settings = ", ".join(f"{name} {value}" for name, value in record["settings"].items())
    weights = f"{record['parameters'] / 1e6:,.1f} million, {decimal(record['weights_bytes'])}"
    return [
        ("model", record["name"]),
        ("kind", shape),
        ("weights", f"{weights} as {', '.join(record['stored_as'])}"),
        ("layout", record["layout"]),
        ("thinks with", settings or "the library's defaults"),
        *problem(record),
    ]


def index_rows(record: dict[str, Any]) -> Facts:
    """The index as lines."""
    if "problem" in record:
        return problem(record)
    folders = record["folders"].items()
    return [
        ("path", record["path"]),
        ("holds", f"{counted(record['documents'], 'passage')}, {decimal(record['bytes'])}"),
        *(("folder", f"{name} ({counted(files, 'file')})") for name, files in folders if name),
        ("fingerprint", record["fingerprint"]),
    ]


cache = typer.Typer(
    help="Look after the cache of thoughts and query vectors.", no_args_is_help=True, add_completion=False
)


@cache.command("info")
@with_options
def cache_info(as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False) -> None:
    """Show what the cache holds."""
    record = cache_record()
    if as_json:
        write_json(record)
    else:
        output().print(section("Cache", cache_rows(record)))


@cache.command("clear")
@with_options
def clear() -> None:
    """Forget all thoughts and vectors."""
    from o1_retriever.cache import ThoughtCache, default_cache_path

    if not default_cache_path().is_dir():
        output().print("The cache was empty.")
        return
    with ThoughtCache() as kept:
        before = kept.info()
        kept.clear()
    identities_file().unlink(missing_ok=True)
    output().print(f"Forgot {counted(before.thoughts, 'thought')} and {counted(before.vectors, 'vector')}.")


@cache.command("path")
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
    with ThoughtCache() as kept:
        return kept.info().to_dict()


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
