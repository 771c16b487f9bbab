"""`o1-retriever index`: bring an index to the state of a folder."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from o1_retriever.cli.options import IndexOptions, ModelOptions, with_options
from o1_retriever.cli.terminal import output, warn
from o1_retriever.errors import DocumentError
from o1_retriever.reporting.text import counted

if TYPE_CHECKING:
    from o1_retriever.index.folder import FolderOptions
    from o1_retriever.index.report import FolderReport

_SHOWN = 10  # names in one line before the rest is counted


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """Which files, and how they are cut."""

    include: Annotated[
        list[str] | None, typer.Option("--include", help="Read only files like *.md (repeatable).")
    ] = None
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", help="Leave out files or folders like drafts (repeatable)."),
    ] = None
    max_characters: Annotated[int, typer.Option("--max-characters", help="How long a passage may be.")] = 800
    overlap: Annotated[
        int, typer.Option("--overlap", help="How much of a passage the next one repeats, in characters.")
    ] = 120
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Passages embedded at once.")] = 32

    def folder_options(self) -> FolderOptions:
        """The same for the library. Raises `SettingsError` for lengths that cannot be."""
        from o1_retriever.documents import Chunking
        from o1_retriever.index.folder import FolderOptions

        return FolderOptions(
            include=tuple(self.include or ["*"]),
            exclude=tuple(self.exclude or []),
            chunking=Chunking(max_characters=self.max_characters, overlap=self.overlap),
            batch_size=self.batch_size,
        )


@with_options
def index(
    folder: Annotated[Path, typer.Argument(help="The folder with your documents.", show_default=False)],
    *,
    files: FileOptions,
    target: IndexOptions,
    model: ModelOptions,
    prune: Annotated[
        bool, typer.Option("--prune", help="Forget files that are no longer in the folder.")
    ] = False,
) -> None:
    """Index a FOLDER of documents: txt, md, html, pdf, py and jsonl.

    Type it again when files have changed: only what is new is embedded. A run that was interrupted goes on
    where it stopped.
    """
    options = files.folder_options()
    if not folder.is_dir():
        problem = "it is a file" if folder.is_file() else "there is no such folder"
        raise DocumentError(
            str(folder), f"{problem}; expected a folder with documents.", hint="Check the path."
        )
    from o1_retriever.cli.models import load_embedder
    from o1_retriever.index.folder import sync_folder
    from o1_retriever.index.index import Index

    embedder = load_embedder(model)
    with Index(target.index, embedder) as opened:
        report = sync_folder(opened, folder, prune=prune, options=options)
        count = opened.count()
    _show(report, folder, target.index, count)


def _show(report: FolderReport, folder: Path, index: Path, count: int) -> None:
    for name, reason in report.skipped:
        warn(f"Skipped {name}: {reason}")
    console = output()

    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    say(
        f"{folder}: {counted(report.files, 'file')} read ({report.new} new, {report.changed} changed) "
        f"in {report.seconds:.1f} s"
    )
    say(
        f"{index}: {counted(report.added, 'passage')} added, {report.removed} removed, {report.unchanged} "
        f"unchanged; {count} in all"
    )
    if report.vanished:
        fate = "removed" if report.pruned else "still found; --prune removes them"
        say(f"No longer in the folder ({fate}): {_names(report.vanished)}")
    if report.ignored:
        kinds = [f"{number} {suffix}" for suffix, number in report.ignored.items()]
        say(f"Other kinds of files, not read: {_names(kinds)}")
    say(f'Now type: o1-retriever search "your question"{index_option(index)}')


def index_option(index: Path) -> str:
    """What to type so that another command uses this index."""
    return "" if index == IndexOptions.index else f" --index {shlex.quote(str(index))}"


def _names(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
