"""`o1-retriever index`: bring an index to the state of a folder."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from o1_retriever.cli.options import IndexOptions, ModelOptions, again, with_options
from o1_retriever.cli.terminal import output, warn
from o1_retriever.errors import DocumentError, IndexNotFoundError
from o1_retriever.reporting import counted

if TYPE_CHECKING:
    from rich.table import Table

    from o1_retriever.index.files import FolderReport
    from o1_retriever.index.folder import FolderOptions
    from o1_retriever.index.index import Index

_SHOWN = 10  # names in one line before the rest is counted
_LINES = 20  # warnings; --report has them all


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """Which files, and how they are cut."""

    include: Annotated[list[str] | None, typer.Option(help="Read only files like *.md (repeatable).")] = None
    exclude: Annotated[
        list[str] | None, typer.Option(help="Leave out files or folders like drafts (repeatable).")
    ] = None
    ignore: Annotated[
        bool, typer.Option(help="Leave out build, venv, node_modules and what .gitignore and .o1ignore name.")
    ] = True
    boilerplate: Annotated[
        bool, typer.Option("--boilerplate", help="Keep navigation, footers and banners of web pages.")
    ] = False
    text_field: Annotated[str | None, typer.Option(help="The field of JSON that holds the text.")] = None
    max_megabytes: Annotated[
        int, typer.Option(min=1, help="Skip files that are larger (not those of rows).")
    ] = 64
    max_characters: Annotated[int, typer.Option(help="How long a passage may be.")] = 800
    overlap: Annotated[
        int, typer.Option(help="How much of a passage the next one repeats, in characters.")
    ] = 120
    headings: Annotated[
        bool, typer.Option("--headings/--no-headings", help="Begin passages with the headings above them.")
    ] = False
    batch_size: Annotated[int, typer.Option(min=1, help="Passages embedded at once.")] = 32

    def folder_options(self) -> FolderOptions:
        """The same for the library. Raises `SettingsError` for lengths that cannot be."""
        from o1_retriever.documents import Chunking, ReadOptions
        from o1_retriever.index.folder import FolderOptions

        return FolderOptions(
            include=tuple(self.include or ["*"]),
            exclude=tuple(self.exclude or []),
            ignore=self.ignore,
            chunking=Chunking(
                max_characters=self.max_characters, overlap=self.overlap, context=self.headings
            ),
            reading=ReadOptions(
                text_field=self.text_field,
                boilerplate=self.boilerplate,
                max_bytes=self.max_megabytes * 1_000_000,
            ),
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
    watch: Annotated[
        bool, typer.Option("--watch", help="Follow the folder until you press Ctrl-C; forgets what is gone.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE", help="Keep what became of every file, as JSON.")
    ] = None,
) -> None:
    """Index a FOLDER of documents: texts, web pages, office files, PDF, rows, notebooks, mails and code.

    Type it again when files have changed: only what is new is read and embedded. A run that was interrupted
    goes on where it stopped. It fails only if nothing could be read.
    """
    options = files.folder_options()
    if folder.is_file():
        parent, name = shlex.quote(str(folder.parent)), shlex.quote(folder.name)
        raise DocumentError(
            str(folder),
            "it is a file; expected a folder with documents.",
            hint=f"To index this file alone, type: o1-retriever index {parent} --include {name}",
        )
    if not folder.is_dir():
        raise DocumentError(
            str(folder), "there is no such folder; expected a folder with documents.", hint="Check the path."
        )
    for done, count in _runs(folder, target, model, options, prune=prune, watch=watch):
        show_report(done, folder, count, target, model)
        if report is not None:
            done.save(report)
        if done.skipped and not done.files and not watch:
            raise DocumentError(
                str(folder),
                f"nothing could be read: {counted(len(done.skipped), 'file')} skipped, as said above.",
            )


def _runs(
    folder: Path,
    target: IndexOptions,
    model: ModelOptions,
    options: FolderOptions,
    *,
    prune: bool,
    watch: bool,
) -> Iterator[tuple[FolderReport, int]]:
    """Reports, and after each how many passages there are. The model is loaded where files are to be read."""
    from o1_retriever.cli.models import load_embedder, mark_of
    from o1_retriever.index.folder import follow_folder, sync_folder, sync_unread
    from o1_retriever.index.index import Index

    options = replace(options, embedder=mark_of(model))
    if not watch:
        with suppress(IndexNotFoundError), Index(target.index, create=False) as known:
            if done := sync_unread(known, folder, prune=prune, options=options):
                yield done, known.count()
                return
    with Index(target.index, load_embedder(model)) as opened:
        if watch:
            runs = follow_folder(opened, folder, options=options)
        else:
            runs = iter([sync_folder(opened, folder, prune=prune, options=options)])
        for done in runs:
            yield done, opened.count()


def check_index(index: Index, target: IndexOptions, model: ModelOptions) -> None:
    """Find out before a model is loaded whether there is anything to search, and whether it is up to date."""
    from o1_retriever.index.folder import newer_folders

    if not index.count():
        raise IndexNotFoundError(
            f"The index in {index.path} is empty.", hint="Type: o1-retriever index FOLDER"
        )
    for newer in newer_folders(index):
        command = f"o1-retriever index {shlex.quote(str(newer.path))}{again(target, model)}"
        changed = f"{counted(newer.changed, 'file')} new or changed, {newer.gone} gone"
        warn(f"{newer.path} is newer than the index: {changed}. Type: {command}")


def show_report(
    report: FolderReport, folder: Path, count: int, target: IndexOptions, model: ModelOptions
) -> None:
    """What became of the files of a folder; `count` passages are in the index now."""
    for what, names in _by_value(report.skipped)[:_LINES]:
        which = names[0] if len(names) == 1 else f"{len(names)} files ({_names(names, 3)})"
        warn(f"Skipped {which}: {what}")
    for what, names in _by_value(report.notes)[:_LINES]:
        warn(f"{_names(names, 3)}: {what}")
    console = output()

    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    if report.entries:
        console.print(_table(report))
    say(
        f"{folder}: {counted(report.files, 'file')} read ({report.new} new, {report.changed} changed), "
        f"{len(report.skipped)} skipped, in {report.seconds:.1f} s"
    )
    say(
        f"{target.index}: {counted(report.added, 'passage')} added, {report.removed} removed, "
        f"{report.unchanged} unchanged; {count} in all"
    )
    if report.vanished:
        fate = "removed" if report.pruned else "still found; --prune removes them"
        say(f"No longer in the folder ({fate}): {_names(report.vanished)}")
    if report.moved:
        say(f"Moved: {_names([f'{before} to {now}' for before, now in report.moved])}")
    if report.copies:
        say(
            f"Kept once: {_names([f'{one} (also {_names(more, 3)})' for one, more in report.copies.items()])}"
        )
    left_out = [f"{what} ({number:,})" for what, number in report.passed_over.items()]
    if left_out:
        say(f"Passed over: {_names(left_out)}")
    if report.ignored:
        kinds = [f"{number} {suffix}" for suffix, number in report.ignored.items()]
        say(f"Other kinds of files, not read: {_names(kinds)}")
    say(f'Now type: o1-retriever search "your question"{again(target, model)}')


def _table(report: FolderReport) -> Table:
    """For each kind of file how many were read, their passages, and how many were not."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("kind")
    for name in (columns := ("read", "passages", "skipped", "copies")):
        table.add_column(name, justify="right")
    for kind, counts in report.kinds():
        table.add_row(kind, *(f"{counts[name]:,}" if counts[name] else "" for name in columns))
    return table


def _by_value(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    """The names that have one thing said of them, most of them first."""
    found: dict[str, list[str]] = {}
    for name, what in pairs:
        found.setdefault(what, []).append(name)
    return sorted(found.items(), key=lambda each: -len(each[1]))


def _names(names: Sequence[str], shown: int = _SHOWN) -> str:
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")
