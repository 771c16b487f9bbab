"""From a folder of documents to a training file: queries, round trip, thoughts, vote, negatives, report."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from o1_retriever.documents import Chunking, read_documents
from o1_retriever.documents.files import find_files
from o1_retriever.errors import DocumentError
from o1_retriever_training.corpus import read_corpus
from o1_retriever_training.errors import DataError
from o1_retriever_training.experts import as_expert
from o1_retriever_training.ledger import write_whole
from o1_retriever_training.negatives import MiningRules, mine_negatives
from o1_retriever_training.quality_page import write_page
from o1_retriever_training.queries import query_recipe, round_trip
from o1_retriever_training.recipe import Recipe
from o1_retriever_training.synthesize import Options, synthesize
from o1_retriever_training.vote import VoteRules, vote

FEWEST_CHARACTERS = 80  # a passage shorter than that is a heading or a page number


@dataclass(frozen=True, slots=True, kw_only=True)
class DataPlan:
    """What a folder becomes: queries per passage, who searches, who votes, and which negatives.

    `within` is how high a query must find its passage again. `most` bounds the passages (None: all).
    """

    queries_per_passage: int = 2
    by: str = "bm25"
    within: int = 1
    committee: Sequence[Any] = ("bm25", "minilm")
    rules: VoteRules = field(default_factory=VoteRules)
    mining: MiningRules = field(default_factory=lambda: MiningRules(count=7))
    most: int | None = None


def make_data(
    folder: str | Path,
    out: str | Path,
    *,
    expert: Any,
    recipe: Recipe | None = None,
    plan: DataPlan | None = None,
    options: Options | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Write `train.jsonl` and `report.html` into the folder `out`, beside what every stage has written.

    The same call goes on where it was stopped. `say` is told what each stage has done. Raises `DataError`
    when the folder holds nothing to read, and what the stages raise.
    """
    plan, options = plan or DataPlan(), options or Options()
    work = Path(out)
    work.mkdir(parents=True, exist_ok=True)
    writer = as_expert(expert)
    counts: dict[str, Any] = {"passages": _passages(Path(folder), work, plan.most)}
    say(f"{counts['passages']} passages")
    corpus = read_corpus(work / "passages.jsonl")
    synthesize(
        work / "passages.jsonl",
        work / "queries.jsonl",
        experts=writer,
        recipe=query_recipe(plan.queries_per_passage, seed=(recipe or Recipe()).seed),
        options=options,
    )
    trip = round_trip(
        work / "queries.jsonl",
        work / "pairs.jsonl",
        corpus,
        by=plan.by,
        within=plan.within,
        show=options.show,
    )
    counts["queries"] = trip
    say(f"{trip['written']} queries, of which {trip['kept']} find their passage")
    if not trip["kept"]:
        raise DataError(f"None of {trip['written']} queries finds its passage again.", hint="Try --within 3")
    tally, _ = synthesize(
        work / "pairs.jsonl", work / "thoughts.jsonl", experts=writer, recipe=recipe, options=options
    )
    say(f"thoughts: {tally.note(options.prices)}")
    counts["vote"] = vote(
        work / "thoughts.jsonl",
        work / "voted.jsonl",
        committee=plan.committee,
        rules=plan.rules,
        show=options.show,
    )
    say(f"{counts['vote']['voted']} rows voted, {counts['vote']['unanimous']:.0%} unanimous")
    counts["negatives"] = mine_negatives(
        work / "voted.jsonl",
        work / "train.jsonl",
        corpus=work / "passages.jsonl",
        by=plan.by,
        rules=plan.mining,
        options=options,
    )
    write_page(work / "train.jsonl", work / "report.html")
    return counts


def _passages(folder: Path, work: Path, most: int | None) -> int:
    """Cut the folder's files into passages; how many there are."""
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}; expected documents.")
    lines: list[str] = []
    seen: set[str] = set()
    skipped: list[str] = []
    for name in find_files(folder, leave_out=work.resolve()).files:
        try:
            for document in islice(read_documents(folder / name, source=name, chunking=Chunking()), most):
                text = document.text.strip()
                title = document.metadata.get("title")
                if len(text) < FEWEST_CHARACTERS or text in seen:
                    continue
                seen.add(text)
                row = {"_id": document.id, "query": text, "source": name, "title_of_section": title}
                lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        except DocumentError as error:
            skipped.append(str(error))
    if not lines:
        why = f" ({skipped[0]})" if skipped else ""
        raise DataError(
            f"{folder} holds no passage of at least {FEWEST_CHARACTERS} characters{why}.",
            hint="Pass a folder with txt, md, html, pdf, py or jsonl files.",
        )
    write_whole(work / "passages.jsonl", "".join(lines[:most]))
    return len(lines[:most])
