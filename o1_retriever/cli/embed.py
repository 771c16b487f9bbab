"""`o1-retriever embed` and `load`: many documents to files of vectors, and from there into a vector store."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from o1_retriever.cli.options import ModelOptions, with_options
from o1_retriever.cli.terminal import output, warn
from o1_retriever.errors import SettingsError, StoreError, require
from o1_retriever.reporting import counted

if TYPE_CHECKING:
    from o1_retriever.index.shards import Manifest, ShardOptions

_SHOWN = 20  # problems of a check


@dataclass(frozen=True, kw_only=True)
class RecordOptions:
    """Which fields of the records are read, and how the vectors are kept."""

    text_field: Annotated[str | None, typer.Option(help="The field that holds the text.")] = None
    id_field: Annotated[
        str | None, typer.Option(help="The field that holds the id (default: id, _id, or the row's number).")
    ] = None
    numbers: Annotated[
        Literal["float32", "float16", "int8"], typer.Option(help="The number format of the vectors.")
    ] = "float32"
    shard_rows: Annotated[int, typer.Option(min=1, help="Rows of the source in one shard.")] = 20_000
    texts: Annotated[
        bool, typer.Option("--texts/--no-texts", help="Keep the texts, which a store needs.")
    ] = True
    batch_size: Annotated[int, typer.Option(min=1, help="Documents embedded at once.")] = 32

    def shard_options(self) -> ShardOptions:
        """The same for the library."""
        from o1_retriever.documents.records import Fields
        from o1_retriever.index.shards import ShardOptions

        return ShardOptions(
            numbers=self.numbers,
            rows=self.shard_rows,
            fields=Fields(text=self.text_field, id=self.id_field),
            texts=self.texts,
            batch_size=self.batch_size,
        )


_ray = {"rich_help_panel": "Ray (extra ray)"}


@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """Whether a cluster of Ray does the work, and with how much of it."""

    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Let a cluster work: its address, auto, or local.", **_ray),
    ] = None
    actors: Annotated[int, typer.Option(min=1, help="Actors, each with the model loaded once.", **_ray)] = 1
    cpus: Annotated[float, typer.Option(min=0, help="Processors for each actor.", **_ray)] = 1
    gpus: Annotated[
        float, typer.Option(min=0, help="GPUs for each actor; 0.5 lets two share one.", **_ray)
    ] = 0

    def cluster(self) -> Any:
        """The cluster, entered; None where this process does the work."""
        if self.ray is None:
            if self.actors > 1:
                raise SettingsError(
                    f"Found --actors {self.actors} without a cluster.",
                    hint="Add --ray local, or its address.",
                )
            return None
        package = require("ray_o1_retriever", extra="ray", purpose="--ray")
        address = None if self.ray == "local" else self.ray
        return package.Cluster(address, actors=self.actors, cpus=self.cpus, gpus=self.gpus)


@with_options
def embed(
    source: Annotated[
        str, typer.Argument(help="A .jsonl or .parquet file, a folder of them, or hub:NAME[:SPLIT].")
    ] = "",
    folder: Annotated[
        Path | None, typer.Argument(metavar="DEST", help="The folder for the shards.", show_default=False)
    ] = None,
    *,
    files: RecordOptions,
    cluster: RayOptions,
    model: ModelOptions,
    check: Annotated[
        Path | None, typer.Option("--check", metavar="DEST", help="Only verify the shards of this folder.")
    ] = None,
) -> None:
    """Embed all documents of SOURCE into Parquet files in DEST, in constant memory.

    Type it again after it was interrupted: shards that are there are not made again. The manifest, written
    last, says that all of them are. `--check DEST` reads and verifies them.
    """
    if check is not None:
        _check(check)
        return
    if not source or folder is None:
        raise SettingsError(
            "Found no SOURCE or no DEST; expected both.", hint="Type: o1-retriever embed rows.jsonl shards/"
        )
    from o1_retriever.cli.models import load_embedder
    from o1_retriever.index.shards import embed_shards

    workers = cluster.cluster()
    embedder = load_embedder(model)
    maker = None if workers is None else workers.shard_maker(embedder)
    started = time.perf_counter()
    manifest = embed_shards(source, folder, embedder, options=files.shard_options(), maker=maker)
    _say(manifest, folder, time.perf_counter() - started)


def _check(folder: Path) -> None:
    from o1_retriever.index.shards import check_shards

    found = check_shards(folder)
    if found.problems:
        for problem in found.problems[:_SHOWN]:
            warn(problem)
        raise StoreError(
            f"{folder} has {counted(len(found.problems), 'problem')}, as said above.",
            hint="Delete those files and type the same o1-retriever embed command again.",
        )
    output().print(f"{folder}: {_described(found.manifest)}; all as the manifest says", soft_wrap=True)


def _say(manifest: Manifest, folder: Path, seconds: float) -> None:
    for what, count in manifest.left_out.items():
        warn(f"{counted(count, 'row')} of {manifest.source} left out: {what}")
    if manifest.repeated_ids:
        warn(
            f"{counted(manifest.repeated_ids, 'document')} with the id of an earlier one: in a store the "
            "last one counts."
        )
    output().print(f"{folder}: {_described(manifest)}, in {seconds:.1f} s", markup=False, soft_wrap=True)


@with_options
def load(
    folder: Annotated[
        Path, typer.Argument(metavar="DEST", help="A folder that embed has made.", show_default=False)
    ],
    *,
    into: Annotated[
        str,
        typer.Option(
            help="A folder for our own index, chroma:URL, qdrant:URL or qdrant:FOLDER, lancedb:FOLDER, or "
            "postgresql://...",
            show_default=False,
        ),
    ],
    collection: Annotated[str, typer.Option(help="The name of the collection or table.")] = "documents",
) -> None:
    """Load the shards of DEST into a vector store, ready for a Retriever.

    Type it again after it was interrupted: what is there is replaced by itself, and nothing is doubled.
    """
    from o1_retriever.index.foreign import load_shards, opened_for

    started = time.perf_counter()
    with opened_for(into, collection, folder) as target:
        count = load_shards(folder, target)
        seconds = time.perf_counter() - started
        output().print(
            f"{target.name}: {counted(count, 'document')} loaded, {target.count():,} in all, "
            f"in {seconds:.1f} s",
            markup=False,
            soft_wrap=True,
        )


def _described(manifest: Manifest) -> str:
    """What a folder of shards holds, in a line."""
    repeated = f", {counted(manifest.repeated_ids, 'repeated id')}" if manifest.repeated_ids else ""
    return (
        f"{counted(manifest.documents, 'document')} in {counted(len(manifest.shards), 'shard')} "
        f"({manifest.numbers}, {manifest.space['dimension']} numbers each){repeated}, "
        f"document space {manifest.fingerprint}"
    )
