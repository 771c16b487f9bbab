"""Rows that teach a small model what stands in an index, and in which words.

A passage needs no label: some of its rarer words are the query, and the passage, or a piece of it, is the
thought. Where there are questions with their passages, these are thoughts as well, and so are thoughts that
an expert wrote.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from o1_retriever.errors import SettingsError
from o1_retriever.reporting import counted
from o1_retriever_training.ledger import writing_whole
from o1_retriever_training.rows import DataError, TrainingRow

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
