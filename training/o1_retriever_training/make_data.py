"""From documents to training rows: a folder's files, or the passages of an index.

A folder becomes queries, which must find their passage again, thoughts, votes, negatives and a report.

A passage of an index needs no label: some of its rarer words are the query, and the passage, or a piece of
it, is the thought. Where there are questions with their passages, these are thoughts as well, and so are
thoughts that an expert wrote. So a small model learns what stands in an index, and in which words.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from o1_retriever.documents import Chunking, read_documents
from o1_retriever.errors import DocumentError, SettingsError
from o1_retriever.index.files import find_files
from o1_retriever.reporting import counted, progress
from o1_retriever_training.experts import Expert, as_experts
from o1_retriever_training.ledger import KeyIndex, OtherRecipeError, writing_whole
from o1_retriever_training.negatives import MiningRules, mine_negatives
from o1_retriever_training.pages import write_page
from o1_retriever_training.recipe import Contributor, Recipe
from o1_retriever_training.rows import (
    Corpus,
    DataError,
    TrainingRow,
    count_rows,
    key_of,
    read_corpus,
    read_rows,
)
from o1_retriever_training.scorers import as_scorer
from o1_retriever_training.synthesize import Options, synthesize
from o1_retriever_training.vote import VoteRules, vote

EXAMPLE_QUESTIONS, EXAMPLE_POOL = 3, 1000
FEWEST_CHARACTERS = 80  # a passage shorter than that is a heading or a page number
INSTRUCTION = (
    "You are given a passage. Write one question that somebody would type into a search engine and that this "
    "passage answers. The question must be understood without the passage: name things, do not say 'the "
    "passage' or 'the text'. Reply with the question alone, on one line."
)
_LONGEST = 300  # characters: what is longer is no query, but talk


@dataclass(frozen=True, slots=True, kw_only=True)
class DataPlan:
    """What a folder becomes: queries per passage, who searches, who votes, and which negatives.

    `within` is how high a query must find its passage again; queries are sampled with `temperature`. `most`
    bounds the passages (None: all). `examples` are pairs of query and document in a file, three of which show
    the expert at a time what kind of questions is wanted (None: it is told in words alone).
    """

    queries_per_passage: int = 2
    by: str = "bm25"
    within: int = 1
    committee: Sequence[Any] = ("bm25", "minilm")
    rules: VoteRules = field(default_factory=VoteRules)
    mining: MiningRules = field(default_factory=lambda: MiningRules(count=7))
    most: int | None = None
    temperature: float = 0.9
    examples: str | Path | None = None


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

    Of several experts, the first writes the queries. The same call goes on where it was stopped; what is
    made of other rows or rules than before, and costs nothing but time, is made again. `say` is told what
    each stage has done. Raises `DataError` when the folder holds nothing to read, and what the stages raise.
    """
    plan, options = plan or DataPlan(), options or Options()
    work = Path(out)
    work.mkdir(parents=True, exist_ok=True)
    experts = as_experts(expert)
    writer = next(iter(experts.values()))
    if getattr(writer, "thinks", False):
        name = getattr(writer, "name", writer.identity)
        say(
            f"Warning: {name} was trained to think and takes no instructions: its queries will be thoughts. "
            "A chat model writes better ones."
        )
    counts: dict[str, Any] = {"passages": _passages(Path(folder), work, plan.most, say)}
    say(counted(counts["passages"], "passage"))
    counts["queries"] = question_pairs(work, writer, recipe or Recipe(), plan, options, say)
    tally, _ = synthesize(
        work / "pairs.jsonl", work / "thoughts.jsonl", experts=experts, recipe=recipe, options=options
    )
    say(f"thoughts: {tally.note(options.prices)}")
    thoughts, voted, train = (work / f"{name}.jsonl" for name in ("thoughts", "voted", "train"))
    rules, show = plan.rules, options.show
    voting = partial(vote, thoughts, voted, committee=plan.committee, rules=rules, show=show)
    counts["vote"] = _afresh(voted, voting)
    say(f"{counted(counts['vote']['voted'], 'row')} voted, {counts['vote']['unanimous']:.0%} unanimous")
    passages = work / "passages.jsonl"
    mining = partial(
        mine_negatives, voted, train, corpus=passages, by=plan.by, rules=plan.mining, options=options
    )
    counts["negatives"] = _afresh(train, mining)
    write_page(train, work / "report.html")
    return counts


def question_pairs(
    work: Path,
    writer: Expert,
    recipe: Recipe,
    plan: DataPlan,
    options: Options,
    say: Callable[[str], None],
    *,
    passages: Path | None = None,
    corpus: Path | None = None,
) -> dict[str, int]:
    """Have queries written for passages, and keep those that find them in a corpus: `work`/pairs.jsonl.

    Both files are `work`/passages.jsonl unless they are given. Raises `DataError` where none is kept.
    """
    passages = passages or work / "passages.jsonl"
    shown: list[TrainingRow] = []
    if plan.examples is not None:
        # Turned round: passages stand in the place of queries, questions in that of responses.
        pairs = islice(read_rows(plan.examples), EXAMPLE_POOL)
        shown = [TrainingRow(query=row.pos[0], pos=[row.query]) for row in pairs if row.pos]
    asking = Recipe(
        contributors=(Contributor(n=plan.queries_per_passage, instruction=INSTRUCTION),),
        seed=recipe.seed,
        examples=min(len(shown), EXAMPLE_QUESTIONS),
        labels=("Passage", "Question"),
        max_tokens=64,
        temperature=plan.temperature,
    )
    queries = work / "queries.jsonl"
    tally, _ = synthesize(passages, queries, experts=writer, recipe=asking, options=options, examples=shown)
    trip = round_trip(
        queries,
        work / "pairs.jsonl",
        read_corpus(corpus or passages),
        by=plan.by,
        within=plan.within,
        show=options.show,
    )
    queries_written = counted(trip["written"], "query", "queries")
    say(f"{queries_written} written, {trip['kept']} kept that lead to their passage; {tally.failures} failed")
    if not trip["written"]:
        raise DataError(
            f"No query could be written; {queries} says why of each.",
            hint="Type the command with --retry-failed",
        )
    if not trip["kept"]:
        raise DataError(
            f"{queries_written} written, and none leads to its passage again.", hint="Try --within 3"
        )
    return trip


def _afresh(out: Path, stage: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run a stage, after deleting what it has made under another recipe."""
    try:
        return stage()
    except OtherRecipeError:
        for stale in out.parent.glob(f"{out.name}*"):
            stale.unlink()
        return stage()


def _passages(folder: Path, work: Path, most: int | None, say: Callable[[str], None]) -> int:
    """Cut the folder's files into passages; how many there are."""
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}; expected documents.")
    skipped: list[str] = []
    count = 0
    with writing_whole(work / "passages.jsonl") as target:
        for row in islice(_cut(folder, work, skipped), most):
            target.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    if skipped:
        first = "" if len(skipped) == 1 else ", the first"
        say(f"Warning: {counted(len(skipped), 'file')} could not be read{first}: {skipped[0]}")
    if not count:
        raise DataError(
            f"{folder} holds no passage of at least {FEWEST_CHARACTERS} characters.",
            hint="Pass a folder with texts, pages, office documents or PDF files.",
        )
    return count


def _cut(folder: Path, work: Path, skipped: list[str]) -> Iterator[dict[str, Any]]:
    """The passages of all files, each once; a file that cannot be read is noted in `skipped`."""
    seen = KeyIndex()
    for name in (file.source for file in find_files(folder, leave_out=work.resolve()).files):
        try:
            for document in read_documents(folder / name, source=name, chunking=Chunking()):
                text = document.text.strip()
                if len(text) < FEWEST_CHARACTERS or not seen.see(key_of(text)):
                    continue
                title = document.metadata.get("title")
                yield {"_id": document.id, "query": text, "source": name, "title_of_section": title}
        except DocumentError as error:
            skipped.append(str(error))
    seen.close()


def round_trip(
    written: str | Path,
    out: str | Path,
    corpus: Corpus,
    *,
    by: Any = "bm25",
    within: int = 1,
    show: bool | None = None,
) -> dict[str, int]:
    """Keep a query whose passage is among the first `within` that it finds; write pairs into `out`.

    `written` are rows whose `query` is a passage and whose candidates are queries about it. A query that was
    kept for another passage is left out.
    """
    places = {text: place for place, text in enumerate(corpus.texts)}
    search = as_scorer(by, role="searcher").search(corpus.texts)
    counts = {"written": 0, "kept": 0, "not found": 0, "repeated": 0}
    seen = KeyIndex()
    rows = read_rows(written)
    with (
        progress("Round trip", count_rows(written, show=show), show=show) as advance,
        writing_whole(Path(out)) as target,
    ):
        while chunk := list(islice(rows, 256)):
            pairs = [(query, row.query) for row in chunk for query in _queries(row) if row.query in places]
            found = search([query for query, _ in pairs])
            for (query, passage), scores in zip(pairs, found, strict=True):
                own = scores[places[passage]]
                counts["written"] += 1
                if own <= 0 or np.sum(scores > own) >= within:
                    counts["not found"] += 1
                elif not seen.see(key_of(query.casefold())):
                    counts["repeated"] += 1
                else:
                    counts["kept"] += 1
                    pair = {"query": query, "pos": [passage], "type": "question"}
                    target.write(json.dumps(pair, ensure_ascii=False) + "\n")
            advance(len(chunk))
    seen.close()
    return counts


def _queries(row: TrainingRow) -> Iterator[str]:
    """What an expert wrote about a passage: the first line of each candidate that is no long talk."""
    for place in row.usable:
        query = (row.all_thought[place] or "").strip().splitlines()[0].strip(" \"'*-")
        if query and len(query) <= _LONGEST:
            yield query


_WORD = re.compile(r"[^\W\d_]{3,}")
# What stands between two sentences.
SENTENCE = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+")
_CLOSED = (".", "!", "?", "…")
_FEWEST = 4  # words of a passage that says something


@dataclass(frozen=True, slots=True, kw_only=True)
class RowPlan:
    """How many rows are made, and of what.

    Every passage gives `draws` rows of `keywords` (from, to) of its words, none of which stands in more than
    `common` of the passages. A thought has at most `longest` words; a longer passage gives another piece of
    whole sentences to each row. A question with passages gives `answers` rows, each of
    two to `joined` passages in an order of its own, and each of its thoughts `draws` rows.
    """

    draws: int = 1
    keywords: tuple[int, int] = (2, 4)
    common: float = 0.05
    longest: int = 48
    answers: int = 2
    joined: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        low, high = self.keywords
        for name, value in (("draws", self.draws), ("keywords", low), ("longest", self.longest)):
            if value < 1:
                raise SettingsError(f"{name} is {value}; expected at least 1.")
        if high < low or not 0 < self.common <= 1:
            raise SettingsError(
                f"keywords is {self.keywords} and common {self.common}; expected a range and a share above 0."
            )


def write_rows(
    passages: Sequence[str], questions: Iterable[TrainingRow], out: Path, *, plan: RowPlan | None = None
) -> dict[str, int]:
    """Write training rows about passages and questions, and return how many there are of each kind.

    A row is a query with one thought; its `type` is keywords, answer or thought. The same arguments give the
    same file. Raises `DataError` where nothing can be learned from.
    """
    plan, counts = plan or RowPlan(), Counter[str]()
    with writing_whole(out) as target:
        for row in [*_of_passages(passages, plan), *_of_questions(questions, plan)]:
            counts[row["type"]] += 1
            target.write(json.dumps(row, ensure_ascii=False) + "\n")
        if not counts:
            said = f"None of {counted(len(passages), 'passage')} has {_FEWEST} words"
            raise DataError(f"{said}; expected passages that say something.")
    return dict(counts)


def _of_passages(passages: Sequence[str], plan: RowPlan) -> Iterator[dict[str, str]]:
    frequency = Counter(word for text in passages for word in {*_words(text)})
    most = max(1.0, plan.common * len(passages))
    for place, text in enumerate(passages):
        draw = Random(f"{plan.seed} {place}")
        for piece in pieces(text, plan.draws, plan.longest, draw):
            known = [word for word in dict.fromkeys(_words(piece)) if frequency[word] <= most]
            if len(piece.split()) >= _FEWEST and known:
                count = min(len(known), draw.randint(*plan.keywords))
                yield {
                    "query": " ".join(draw.sample(known, count)),
                    "thought": closed(piece),
                    "type": "keywords",
                }


def _of_questions(questions: Iterable[TrainingRow], plan: RowPlan) -> Iterator[dict[str, str]]:
    for place, row in enumerate(questions):
        draw = Random(f"{plan.seed} question {place}")
        for _ in range(plan.answers if row.pos else 0):
            chosen = draw.sample(row.pos, min(len(row.pos), draw.randint(2, max(2, plan.joined))))
            yield {"query": row.query, "thought": _joined(chosen, plan.longest, draw), "type": "answer"}
        for text in [row.all_thought[place] for place in row.usable] or [row.thought]:
            for _ in range(plan.draws if text else 0):
                yield {"query": row.query, "thought": str(text), "type": "thought"}


def _joined(passages: Sequence[str], longest: int, draw: Random) -> str:
    """As many whole passages as fit, a piece of the first where it is too long itself."""
    parts = pieces(passages[0], 1, longest, draw)
    for text in passages[1:]:
        if sum(len(part.split()) for part in [*parts, text]) <= longest:
            parts.append(text)
    return " ".join(map(closed, parts))


def pieces(text: str, count: int, longest: int, draw: Random) -> list[str]:
    """`count` pieces of whole sentences of a text, each of at most `longest` words; a short text itself."""
    words = text.split()
    if len(words) <= longest:
        return [" ".join(words)] * count
    sentences = SENTENCE.split(" ".join(words))
    starts = [draw.randrange(len(sentences)) for _ in range(count)]
    return [_from(sentences[start:], longest) for start in starts]


def _from(sentences: Sequence[str], longest: int) -> str:
    """The first sentences that fit, the first of them cut where it is too long itself."""
    taken = sentences[0].split()[:longest]
    for sentence in sentences[1:]:
        more = sentence.split()
        if len(taken) + len(more) > longest:
            break
        taken += more
    return " ".join(taken)


def closed(text: str) -> str:
    """A text that ends like a sentence."""
    text = text.strip()
    return text if text.endswith(_CLOSED) else f"{text.rstrip(',;:')}."


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())
