"""The collections as training data: their passages, questions of their train splits, and rows made of both.

Nothing of a split named test is opened. The first 200 questions of the train splits, and EntailmentBank's dev
split, are kept out of training to choose by.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import NamedTuple, TypeAlias

from o1_embedder_22m.sources import read_jsonl
from o1_retriever.evaluation.collection import CollectionReport, Corpus, joined, read_qrels, read_queries
from o1_retriever_training.make_data import closed, pieces

Pair: TypeAlias = tuple[str, str]  # what is asked, and what is written

KEPT_OUT = 200  # questions of a train split
LONGEST = 44  # words of a thought


class Source(NamedTuple):
    """What is particular about a collection."""

    asks: str  # what is asked about its passages
    train: str | None  # the file with its train questions
    dev: str | None  # the split with the questions to choose by
    shown: int  # rows for the asker of each train question
    two: float  # share of the made questions that are about two passages
    draws: int  # rows of keywords of each passage
    rewarded: int  # questions in a step of policy gradient


SOURCES = {
    "entailmentbank": Source("a science exam question", "entailmentbank_train", "dev", 3, 0.35, 2, 36),
    "qasc_2hop": Source("a science exam question", None, None, 0, 0.35, 2, 24),
    "strategyqa_facts": Source("a yes or no question", "strategyqa_train", "train", 2, 0.35, 2, 28),
    "hotpotqa_1k": Source(
        "a question that needs these paragraphs", "hotpotqa_train500", "train", 6, 0.5, 2, 20
    ),
    "scifact": Source("a scientific claim about this", "scifact_train", "train", 4, 0.0, 3, 20),
}
OTHERS = ("squad_nqg_sentences", "qamr")  # questions about passages of no collection


@dataclass(frozen=True)
class Question:
    """A question with the places of its passages, and what may be known: expert thoughts, a conclusion."""

    text: str
    passages: list[int]
    thoughts: list[str] = field(default_factory=list)
    conclusion: str = ""


@dataclass
class Collection:
    """Passages of an index, and questions: to choose by, to learn from, and to be rewarded for."""

    name: str
    corpus: Corpus
    titles: list[str]
    bodies: list[str]
    dev: list[Question]
    taught: list[Question]
    rewarded: list[Question]

    @property
    def source(self) -> Source:
        """What is particular about it."""
        return SOURCES[self.name]

    @property
    def train(self) -> list[Question]:
        """All questions of the train split."""
        return self.taught + self.rewarded

    @property
    def texts(self) -> list[str]:
        """Titles and bodies together, as the index has them."""
        return [
            joined({"title": title, "text": body})
            for title, body in zip(self.titles, self.bodies, strict=True)
        ]


def read_collection(data: Path, name: str, limit: int | None = None) -> Collection:
    """One of `SOURCES` from a folder with `eval/`, `train/`, `expert_thoughts/`; `limit` is of passages."""
    folder, report, source = data / "eval" / name, CollectionReport(name), SOURCES[name]
    corpus = Corpus(folder / "corpus.jsonl", report)
    by_id = {row["_id"]: row for row in read_jsonl(folder / "corpus.jsonl")}
    rows = [by_id[each] for each in corpus.ids[:limit]]
    places = {row["_id"]: place for place, row in enumerate(rows)}
    titles, bodies = ([row.get(key) or "" for row in rows] for key in ("title", "text"))
    found = Collection(name, corpus, titles, bodies, [], [], [])
    if source.dev is None:
        return found
    queries = read_queries(folder / "queries.jsonl", report)
    judged = []
    for query, grades in read_qrels(folder / "qrels" / f"{source.dev}.tsv", report).items():
        relevant = [places[each] for each, grade in grades.items() if grade > 0 and each in places]
        judged.append(Question(queries[query], relevant))
    kept_out = judged[: None if source.dev == "dev" else KEPT_OUT]
    found.dev = [each for each in kept_out if each.passages]
    known = {} if source.dev == "dev" else {each.text: each.passages for each in judged}
    _split(found, list(_train(data, found, {each.text for each in kept_out}, known)))
    return found


def _train(
    data: Path, found: Collection, kept_out: set[str], judged: dict[str, list[int]]
) -> Iterator[Question]:
    """The other train questions; passages that no judgment names are found by their text."""
    by_text = {
        _plain(text): place for texts in (found.texts, found.bodies) for place, text in enumerate(texts)
    }
    expert = data / "expert_thoughts" / f"{found.name}.train.jsonl"
    thoughts = {row["text"]: row["thoughts"] for row in read_jsonl(expert)} if expert.is_file() else {}
    for row in read_jsonl(data / "train" / f"{found.source.train}.jsonl.gz"):
        query = row["query"]
        passages = judged.get(query) or [
            by_text[_plain(text)] for text in row["pos"] if _plain(text) in by_text
        ]
        if query not in kept_out and passages:
            yield Question(query, passages, thoughts.get(query, []), row.get("hypothesis") or "")


def _split(found: Collection, train: Sequence[Question]) -> None:
    """Taught is what an expert has thought about, and half of the rest; rewarded what never was taught."""
    draw = Random(7)
    for each in train:
        (found.taught if each.thoughts or draw.random() < 0.5 else found.rewarded).append(each)


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def piece(found: Collection, place: int, draw: Random, longest: int = LONGEST) -> str:
    """A passage as a thought, or a part of it, behind its title where the body does not begin with that."""
    title, body = found.titles[place], found.bodies[place]
    if not title or title.lower() in body[: len(title) + 40].lower():
        return closed(pieces(body, 1, longest, draw)[0])
    words = len(title.split())
    if words > 25:  # a paper's: one of the two
        return closed(pieces(body, 1, longest, draw)[0]) if draw.random() < 0.6 else closed(title)
    return f"{closed(title)} {closed(pieces(body, 1, max(16, longest - words), draw)[0])}"


def answer(found: Collection, places: Sequence[int], draw: Random, longest: int = LONGEST) -> str:
    """A question's passages as one thought, in any order, as many as fit."""
    first, *others = draw.sample(places, len(places))
    parts = [piece(found, first, draw, longest // 2 + 4 if others else longest)]
    for place in others[:3]:
        more = piece(found, place, draw, longest // 2)
        if len(" ".join([*parts, more]).split()) <= longest:
            parts.append(more)
    return " ".join(parts)


def asking(found: Collection, places: Sequence[int], draw: Random) -> str:
    """What the asker reads: one passage, or two shorter pieces, and what is asked for."""
    longest = 60 if len(places) == 1 else 36
    said = " ".join(piece(found, place, draw, longest) for place in places)
    return f"{said}\n\nWrite {found.source.asks} that this answers."


def asker_pairs(collections: Sequence[Collection], data: Path, draw: Random, others: int) -> list[Pair]:
    """Passages and the question about them, of train questions, and `others` of other data."""
    pairs = [
        (
            asking(found, draw.sample(each.passages, draw.randint(1, min(2, len(each.passages)))), draw),
            each.text,
        )
        for found in collections
        for each in found.train
        for _ in range(found.source.shown)
    ]
    rows = [row for name in OTHERS for row in read_jsonl(data / "train" / f"{name}.jsonl.gz")]
    for row in draw.sample(rows, min(others, len(rows))):
        if len(row["pos"][0].split()) < 80:
            pairs.append((f"{closed(row['pos'][0])}\n\nWrite a question that this answers.", row["query"]))
    return pairs


def word_pairs(collections: Sequence[Collection], draw: Random) -> list[Pair]:
    """Keywords of each passage and the passage; train questions with their passages and expert thoughts."""
    pairs: list[Pair] = []
    for found in collections:
        for _ in range(found.source.draws):
            pairs += _keywords(found, draw)
        for each in found.taught:
            pairs += [(each.text, answer(found, each.passages, draw)) for _ in range(3)]
            pairs += [(each.text, thought) for thought in each.thoughts]
    return pairs


_WORD = re.compile(r"[^\W\d_]{3,}")


def _keywords(found: Collection, draw: Random) -> Iterator[Pair]:
    """Two to four words of a passage that stand in few others; rows of `make_data`, with titles."""
    frequency = Counter(word for text in found.texts for word in {*_WORD.findall(text.casefold())})
    most = max(1.0, 0.05 * len(found.texts))
    for place in range(len(found.texts)):
        said = piece(found, place, draw)
        known = [word for word in dict.fromkeys(_WORD.findall(said.casefold())) if frequency[word] <= most]
        if len(said.split()) >= 4 and known:
            yield " ".join(draw.sample(known, min(len(known), draw.randint(2, 4)))), said


def best_pairs(collections: Sequence[Collection], draw: Random) -> list[Pair]:
    """The best rows there are: questions with passages, conclusions, and expert thoughts twice."""
    pairs: list[Pair] = []
    for found in collections:
        for each in found.taught:
            pairs += [(each.text, answer(found, each.passages, draw)) for _ in range(2)]
            if each.conclusion:
                pairs.append(
                    (each.text, f"{closed(each.conclusion)} {answer(found, each.passages, draw, 30)}")
                )
            pairs += [(each.text, thought) for thought in each.thoughts] * 2
    return pairs
