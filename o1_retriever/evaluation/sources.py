"""Collections by name: a folder, a name of ir_datasets, or a data set of the Hub."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from o1_retriever.cache import default_cache_path
from o1_retriever.errors import CollectionError, O1RetrieverError
from o1_retriever.evaluation.collection import Collection, load_collection
from o1_retriever.extras import require

HUB = "hub:"
IR_DATASETS = "ir_datasets:"
_EXTRA = "eval-data"


def open_collection(
    name: str, *, split: str = "test", strict: bool = False, work: Path | None = None
) -> Collection:
    """A collection by its folder, `hub:OWNER/NAME`, or a name of ir_datasets such as `beir/scifact/test`.

    What is not a folder is downloaded once into a folder in BEIR format below `work` (None: the library's
    cache folder). ir_datasets names its splits in the name; `split` then only names the judgments' file.
    A prefix `ir_datasets:` is accepted too. Raises `CollectionError` for what cannot be found or read.
    """
    folder = Path(name).expanduser()
    named = re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)*", name) or name.startswith((HUB, IR_DATASETS))
    if folder.is_dir() or not named:
        return load_collection(folder, split=split, strict=strict)
    own = f"{name}@{split}"
    digest = hashlib.blake2b(own.encode(), digest_size=4).hexdigest()
    root = work or default_cache_path() / "collections"
    root /= f"{re.sub(r'[^A-Za-z0-9.]+', '-', own)}-{digest}"
    if not root.is_dir():
        fetch = _from_hub if name.startswith(HUB) else _from_ir_datasets
        fresh = root.with_name(f"{root.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            fetch(name.removeprefix(HUB).removeprefix(IR_DATASETS), split, fresh)
        except O1RetrieverError:
            raise
        except Exception as error:
            # Whatever a loader or its network raises, the user needs the name and the reason.
            raise CollectionError(
                f"The collection {name!r} cannot be had: {type(error).__name__}: {error}",
                hint="Pass a folder with corpus.jsonl, queries.jsonl and qrels/<split>.tsv instead.",
            ) from error
        fresh.rename(root)
    return load_collection(root, split=split, strict=strict)


def write_collection(
    folder: Path,
    *,
    documents: Iterable[Mapping[str, str]],
    queries: Iterable[Mapping[str, str]],
    judgments: Iterable[tuple[str, str, int]],
    split: str = "test",
) -> None:
    """Write a folder in BEIR format; documents have `_id`, `title` and `text`, queries `_id` and `text`."""
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    for name, rows in (("corpus.jsonl", documents), ("queries.jsonl", queries)):
        with (folder / name).open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows)
    with (folder / "qrels" / f"{split}.tsv").open("w", encoding="utf-8", newline="\n") as file:
        file.write("query-id\tcorpus-id\tscore\n")
        file.writelines(f"{query}\t{document}\t{grade}\n" for query, document, grade in judgments)


def _from_ir_datasets(name: str, split: str, folder: Path) -> None:
    package = require(
        "ir_datasets", extra=_EXTRA, purpose=f"The collection {name!r}, which is no folder here,"
    )
    try:
        dataset = package.load(name)
    except KeyError:
        raise CollectionError(
            f"There is no folder {name!r}, and ir_datasets knows no data set of that name.",
            hint="Its names are such as beir/scifact/test; a data set of the Hub is hub:OWNER/NAME.",
        ) from None

    def text_of(document: Any) -> str:
        text = getattr(document, "text", None)
        return str(document.default_text() if text is None else text)

    write_collection(
        folder,
        documents=(
            {"_id": doc.doc_id, "title": getattr(doc, "title", "") or "", "text": text_of(doc)}
            for doc in dataset.docs_iter()
        ),
        queries=(
            {"_id": query.query_id, "text": getattr(query, "text", None) or query.default_text()}
            for query in dataset.queries_iter()
        ),
        judgments=((row.query_id, row.doc_id, row.relevance) for row in dataset.qrels_iter()),
        split=split,
    )


def _from_hub(name: str, split: str, folder: Path) -> None:
    package = require("datasets", extra=_EXTRA, purpose=f"The data set {name!r} of the Hub")
    load: Callable[..., Any] = package.load_dataset
    configs = package.get_dataset_config_names(name)
    judged = next((config for config in ("default", "qrels") if config in configs), None)
    # BeIR's own data sets keep the judgments in a second one.
    judgments = load(name, judged, split=split) if judged else load(f"{name}-qrels", split=split)
    # Of a part that has one split, whatever it is called, the rows.
    parts = (load(name, part) for part in ("corpus", "queries"))
    corpus, queries = (next(iter(part.values())) if isinstance(part, dict) else part for part in parts)

    def row_of(row: Mapping[str, Any], *names: str) -> dict[str, str]:
        return {"_id": str(row["_id"] if "_id" in row else row["id"])} | {
            key: row.get(key) or "" for key in names
        }

    write_collection(
        folder,
        documents=(row_of(row, "title", "text") for row in corpus),
        queries=(row_of(row, "text") for row in queries),
        judgments=(
            (str(row["query-id"]), str(row["corpus-id"]), int(row.get("score", 1))) for row in judgments
        ),
        split=split,
    )
