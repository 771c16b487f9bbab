"""Where collections come from: a folder, ir_datasets, the Hub, a task of MTEB, or another wording.

The same questions are asked in other wordings with typos, with synonyms, in capitals and in lower case.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from o1_retriever.cache import default_cache_path
from o1_retriever.embedder import ThinkingEmbedder
from o1_retriever.errors import CollectionError, O1RetrieverError, require
from o1_retriever.evaluation.collection import EXCLUDED, Collection, load_collection
from o1_retriever.query import Query
from o1_retriever.thinkers import RecordedThinker, Thinker
from o1_retriever.thinking import PairBackend
from o1_retriever.thought import Thought, ThoughtSettings

HUB = "hub:"
IR_DATASETS = "ir_datasets:"
MTEB = "mteb:"
_EXTRA = "eval-data"


def open_collection(
    name: str, *, split: str = "test", strict: bool = False, work: Path | None = None
) -> Collection:
    """A collection by its folder, or by a name: `hub:OWNER/NAME`, `mteb:TASK`, or one of ir_datasets.

    Such names are `mteb:BrightBiologyRetrieval` and `beir/scifact/test`. What is not a folder is downloaded
    once into a folder in BEIR format below `work` (None: the library's cache folder). ir_datasets and MTEB
    name their splits by the name; `split` then only names the judgments' file. `mteb:TASK@FOLDER` takes the
    task's data from a copy of its data set instead of the Hub. A prefix `ir_datasets:` is accepted too.
    Raises `CollectionError` for what cannot be found or read.
    """
    folder = Path(name).expanduser()
    named = re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)*", name) or name.startswith((HUB, IR_DATASETS, MTEB))
    if folder.is_dir() or not named:
        return load_collection(folder, split=split, strict=strict)
    own = f"{name}@{split}"
    digest = hashlib.blake2b(own.encode(), digest_size=4).hexdigest()
    root = work or default_cache_path() / "collections"
    root /= f"{re.sub(r'[^A-Za-z0-9.]+', '-', own)}-{digest}"
    if not root.is_dir():
        fetch = {HUB: _from_hub, MTEB: _from_mteb}.get(f"{name.partition(':')[0]}:", _from_ir_datasets)
        fresh = root.with_name(f"{root.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            fetch(re.sub(f"^({HUB}|{IR_DATASETS}|{MTEB})", "", name), split, fresh)
        except O1RetrieverError:
            raise
        except Exception as error:
            # Whatever a loader or its network raises, the user needs the name and the reason.
            raise CollectionError(
                f"The collection {name!r} cannot be loaded: {type(error).__name__}: {error}",
                hint="Pass a folder with corpus.jsonl, queries.jsonl and qrels/<split>.tsv instead.",
            ) from error
        fresh.rename(root)
    found = load_collection(root, split=split, strict=strict)
    return replace(found, name=_task_name(name)) if name.startswith(MTEB) else found


def members(name: str) -> list[str]:
    """The collections that a name stands for: those of a benchmark of MTEB, such as `mteb:BRIGHT(v1.1)`.

    Every other name stands for itself. Behind an @ may be the folder of a copy, which all of them take.
    """
    task, at, copy = name.removeprefix(MTEB).partition("@")
    if not name.startswith(MTEB):
        return [name]
    known = {each.name: each for each in _mteb(name).get_benchmarks()}
    if task not in known:
        return [name]
    return [f"{MTEB}{each.metadata.name}{at}{copy}" for each in known[task].tasks]


def _task_name(name: str) -> str:
    return name.removeprefix(MTEB).partition("@")[0]


def _mteb(name: str) -> Any:
    return require("mteb", extra="eval", purpose=f"The collection {name!r} of MTEB")


def write_collection(
    folder: Path,
    *,
    documents: Iterable[Mapping[str, str]],
    queries: Iterable[Mapping[str, str]],
    judgments: Iterable[tuple[str, str, int]],
    excluded: Iterable[tuple[str, str]] = (),
    split: str = "test",
) -> None:
    """Write a folder in BEIR format; documents have `_id`, `title` and `text`, queries `_id` and `text`.

    `excluded` are pairs of a query and a document that must not be found for it.
    """
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    for name, rows in (("corpus.jsonl", documents), ("queries.jsonl", queries)):
        with (folder / name).open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows)
    with (folder / "qrels" / f"{split}.tsv").open("w", encoding="utf-8", newline="\n") as file:
        file.write("query-id\tcorpus-id\tscore\n")
        file.writelines(f"{query}\t{document}\t{grade}\n" for query, document, grade in judgments)
    if pairs := list(excluded):
        (folder / EXCLUDED).mkdir(exist_ok=True)
        with (folder / EXCLUDED / f"{split}.tsv").open("w", encoding="utf-8", newline="\n") as file:
            file.write("query-id\tcorpus-id\n")
            file.writelines(f"{query}\t{document}\n" for query, document in pairs)


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


def _from_mteb(name: str, split: str, folder: Path) -> None:
    """A retrieval task in English, or in the one language that it has."""
    task_name, _, copy = name.partition("@")
    package = _mteb(name)
    try:
        task = package.get_task(task_name)
    except KeyError:
        raise CollectionError(
            f"MTEB {package.__version__} knows no task {task_name!r}.",
            hint="Names are such as BrightBiologyRetrieval; a benchmark, such as BRIGHT(v1.1), is its tasks.",
        ) from None
    splits = list(task.metadata.eval_splits)
    chosen = split if split in splits else splits[0]
    if copy:
        dataset = {**task.metadata.dataset, "path": str(Path(copy).expanduser().absolute()), "revision": None}
        task.metadata = task.metadata.model_copy(update={"dataset": dataset})
    task.load_data()
    if hasattr(task, "queries"):  # tasks that load themselves, BRIGHT among them, leave the older form
        task.convert_v1_dataset_format_to_v2(num_proc=None)
    data = next((each[chosen] for each in getattr(task, "dataset", {}).values() if chosen in each), None)
    if data is None or len(task.hf_subsets) > 1 or "relevant_docs" not in data:
        raise CollectionError(
            f"{task_name!r} is no retrieval task in one language that can be measured here."
        )
    ids = [str(row["id"]) for row in data["corpus"]]
    write_collection(
        folder,
        documents=(
            {"_id": str(row["id"]), "title": row.get("title") or "", "text": row["text"]}
            for row in data["corpus"]
        ),
        queries=({"_id": str(row["id"]), "text": row["text"]} for row in data["queries"]),
        judgments=(
            (query, document, int(grade))
            for query, judged in data["relevant_docs"].items()
            for document, grade in judged.items()
        ),
        excluded=_left_out(task_name, ids, data["top_ranked"] or {}),
        split=split,
    )


def _left_out(task: str, ids: list[str], allowed: Mapping[str, Iterable[str]]) -> list[tuple[str, str]]:
    """The pairs of a query and a document that a task leaves out. `CollectionError` for a reranking task."""
    pairs = []
    for query, documents in allowed.items():
        kept = set(documents)
        if 2 * len(kept) < len(ids):
            raise CollectionError(
                f"{task!r} ranks {len(kept)} documents a query anew; expected a retrieval task."
            )
        pairs += [(query, document) for document in ids if document not in kept]
    return pairs


TYPO_SHARE = 0.2  # of the words that are long enough
_LONG = 4
_WORD = re.compile(r"[^\W\d_]+")

# Everyday words for one another; a word is replaced by the other of its pair, in its own case.
_PAIRS = """
big large|small little|start begin|end finish|fast quick|begins starts|ends finishes|make create|makes creates
show demonstrate|shows demonstrates|help aid|helps aids|need require|needs requires|get obtain|gets obtains
use employ|uses employs|used employed|using employing|change alter|changes alters|cause produce
increase raise|increases raises|decrease reduce|decreases reduces|reduced lowered|buy purchase|keep retain
choose select|happen occur|happens occurs|important significant|difficult hard|easy simple|kind type
people persons|person individual|children kids|doctor physician|illness disease|medicine drug|car automobile
film movie|author writer|country nation|town city|ocean sea|stone rock|forest woods|soil ground|job occupation
energy power|heat warmth|cold chilly|weather climate|animal creature|animals creatures|plant herb|plants herbs
food nourishment|light illumination|movement motion|moves travels|move travel|form shape|result outcome
results outcomes|part piece|parts pieces|effect impact|effects impacts|likely probable|best finest|main chief
correct right|most greatest|describes characterizes|explain clarify|explains clarifies|allow permit
allows permits|protect shield|protects shields|contain hold|contains holds|example instance|method procedure
born birthed|founded established|located situated|famous renowned|old ancient|new recent|rich wealthy
often frequently|always constantly|near close|whole entire|amount quantity|answer reply|ask inquire
associated linked|risk danger|growth development|treatment therapy|cancer tumour|kinds types|causes produces
"""
SYNONYMS = {
    word: other
    for pair in _PAIRS.replace("\n", "|").split("|")
    if pair.strip()
    for word, other in (pair.split(), pair.split()[::-1])
}


def with_typos(text: str, *, seed: int = 0) -> str:
    """Every fifth long word with two letters swapped, or one left out or doubled; at least one in a text.

    The draw depends on the text and the seed alone.
    """
    places = [match.span() for match in _WORD.finditer(text) if len(match.group()) >= _LONG]
    if not places:
        return text
    digest = hashlib.blake2b(text.encode(), digest_size=8, key=str(seed).encode()).digest()
    generator = np.random.default_rng(int.from_bytes(digest, "big"))
    count = max(1, round(TYPO_SHARE * len(places)))
    chosen = sorted(generator.choice(len(places), size=count, replace=False), reverse=True)
    for place in chosen:
        start, end = places[place]
        text = text[:start] + _misspelt(text[start:end], generator) + text[end:]
    return text


def with_synonyms(text: str) -> str:
    """Every word that the built-in list knows replaced by its synonym."""

    def other(match: re.Match[str]) -> str:
        word = match.group()
        found = SYNONYMS.get(word.lower(), word)
        if word.isupper() and len(word) > 1:
            return found.upper()
        return found.capitalize() if word[0].isupper() and found != word else found

    return _WORD.sub(other, text)


WORDINGS: Mapping[str, Callable[[str], str]] = {
    "typos": with_typos,
    "synonyms": with_synonyms,
    "upper case": str.upper,
    "lower case": str.lower,
}


def variants(collection: Collection) -> list[Collection]:
    """The collection itself, and with each other wording of its queries, named after it."""
    return [collection] + [
        collection.with_queries(
            {key: change(text) for key, text in collection.queries.items()},
            name=f"{collection.name} ({name})",
        )
        for name, change in WORDINGS.items()
    ]


def follow_wording(embedder: ThinkingEmbedder, original: Collection, variant: Collection) -> ThinkingEmbedder:
    """The embedder for a variant: recorded thoughts are found by the original wording of a query.

    A thinker that writes is left as it is: it reads the variant's wording, as it would in use.
    """
    backend = embedder.backend
    if not isinstance(backend, PairBackend) or not isinstance(backend.thinker, RecordedThinker):
        return embedder
    if variant is original:
        return embedder
    originals = {variant.queries[key]: text for key, text in original.queries.items()}
    thinker = _Reworded(backend.thinker, originals)
    cache = embedder.cache if embedder.cache is not None else False
    return ThinkingEmbedder.from_parts(thinker, backend.encoder, settings=embedder.settings, cache=cache)


class _Reworded:
    """Asks a thinker about the original wording."""

    identity = None  # nothing is gained by keeping again what is recorded

    def __init__(self, thinker: Thinker, originals: Mapping[str, str]) -> None:
        self._thinker = thinker
        self._originals = originals

    def think(
        self, queries: Sequence[Query], *, settings: ThoughtSettings, start: int = 0
    ) -> list[list[Thought]]:
        known = [Query(self._originals.get(query.text, query.text)) for query in queries]
        return self._thinker.think(known, settings=settings, start=start)


def _misspelt(word: str, generator: np.random.Generator) -> str:
    # The first letter stays: people seldom miss it.
    place = int(generator.integers(1, len(word) - 1))
    kind = int(generator.integers(3))
    if kind == 0:
        return word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    if kind == 1:
        return word[:place] + word[place + 1 :]
    return word[: place + 1] + word[place:]
