"""Following a folder: the index is brought up to date whenever its files change."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from o1_retriever.errors import DocumentError
from o1_retriever.extras import require
from o1_retriever.index.folder import FolderOptions, sync_folder
from o1_retriever.index.index import Index
from o1_retriever.index.report import FolderReport

# Changes that come closer together are taken up at once: a save is several of them.
_TOGETHER_MS = 800


def follow_folder(
    index: Index,
    folder: str | os.PathLike[str],
    *,
    prune: bool = True,
    options: FolderOptions | None = None,
    show_progress_bar: bool | None = None,
    stop: threading.Event | None = None,
) -> Iterator[FolderReport]:
    """The reports of one `sync_folder` now and of one after each change, until `stop` is set.

    A folder that has become empty, or cannot be read for a while, is waited for. Raises as `sync_folder` does
    at the first time.
    """
    watchfiles = require("watchfiles", extra="documents", purpose="Following a folder")
    path = Path(folder).expanduser().resolve()

    def matters(change: Any, name: str) -> bool:
        inside = Path(name)
        if inside.is_relative_to(index.path) or not inside.is_relative_to(path):
            return False
        return not any(
            part.startswith(".") and part != ".o1ignore" for part in inside.relative_to(path).parts
        )

    # Watching begins before the first look, so that nothing is missed between the two.
    changes = watchfiles.watch(
        path,
        watch_filter=matters,
        debounce=_TOGETHER_MS,
        step=100,
        stop_event=stop,
        rust_timeout=500,
        yield_on_timeout=True,
        raise_interrupt=True,
    )
    next(changes, None)
    yield sync_folder(index, path, prune=prune, options=options, show_progress_bar=show_progress_bar)
    for changed in changes:
        if changed:
            try:
                report = sync_folder(
                    index, path, prune=prune, options=options, show_progress_bar=show_progress_bar
                )
            except DocumentError:
                continue
            if report.added or report.removed or report.skipped:
                yield report
