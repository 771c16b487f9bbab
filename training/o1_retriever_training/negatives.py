"""Hard negatives: documents that a retriever finds for a query though they do not answer it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from o1_retriever.errors import SettingsError
from o1_retriever.progress import progress
from o1_retriever.thought import Vector
from o1_retriever_training.committee import Case, Member, as_member
from o1_retriever_training.corpus import Corpus, read_corpus
from o1_retriever_training.inputs import Input
from o1_retriever_training.ledger import Ledger
from o1_retriever_training.problems import Problems
from o1_retriever_training.reading import count_rows, digest
from o1_retriever_training.rows import Row
from o1_retriever_training.searching import Searcher, as_searcher

CHUNK = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class MiningRules:
    """Which documents become negatives of a row.

    Of the `depth` best that are not its positives, the first `skip` are passed over (unjudged positives
    mostly), and so is whatever scores above the positive by more than the share `margin` of its score. A
    document with at least the share `duplicate` of its words in common with a positive is taken for the
    same. 15 negatives are the paper's group of 16.
    """

    count: int = 15
    skip: int = 3
    depth: int = 100
    margin: float = 0.0
    duplicate: float = 0.8

    def __post_init__(self) -> None:
        if not (self.count >= 1 and self.skip >= 0 and self.count + self.skip <= self.depth):
            raise SettingsError(
                f"count is {self.count}, skip {self.skip}, depth {self.depth}; expected a count from 1, and "
                "count + skip at most depth."
            )
        if not (self.margin >= 0 and 0 < self.duplicate <= 1):
            raise SettingsError(f"margin is {self.margin}, duplicate {self.duplicate}; expected shares.")


def mine_negatives(
    rows: str | Path,
    out: str | Path,
    *,
    corpus: str | Path,
    by: Any = "bm25",
    teacher: Any = None,
    rules: MiningRules | None = None,
    options: Any = None,
) -> dict[str, Any]:
    """Add negatives from `corpus` to every row of `rows`, and write the rows into `out`.

    `by` searches: "bm25", "minilm", a sentence-transformers model, or one of ours. `teacher` (None: nobody)
    is a committee member whose scores of query and document become `pos_scores` and `neg_scores`. `options`
    are those of `synthesize`. Returned are counts. Rows without a positive are written as they are.
    """
    from o1_retriever_training.synthesize import Options

    rules, options = rules or MiningRules(), options or Options()
    judge = None if teacher is None else as_member(teacher)
    recipe = {
        **asdict(rules),
        "by": by if isinstance(by, str) else type(by).__name__,
        "teacher": judge and judge.name,
        "corpus": digest(corpus),
    }
    with Ledger(out, stage="negatives", recipe=recipe) as ledger:
        problems = Problems(str(rows), strict=options.strict)
        counts = {"rows": 0, "negatives": 0, "without_positive": 0, "fewer_than_wanted": 0}
        with progress("Mining", count_rows(rows), show=options.show) as advance:
            source = Input(rows, ledger, problems)
            fresh = source.fresh(lambda: advance(1))
            miner: _Miner | None = None
            while chunk := list(islice(fresh, CHUNK)):
                miner = miner or _Miner(read_corpus(corpus), by, judge, rules)
                for number, row in miner.mine(chunk):
                    ledger.append(row.identity, row.line())
                    ledger.index.place(row.identity, number)
                    advance(1)
        for written in ledger.rows():
            counts["rows"] += 1
            counts["negatives"] += len(written["neg"])
            counts["without_positive"] += not written["pos"]
            counts["fewer_than_wanted"] += bool(written["pos"]) and len(written["neg"]) < rules.count
        figures = counts | {"problems": str(problems) if problems else ""}
        ledger.finish(figures)
    return figures


class _Miner:
    def __init__(self, corpus: Corpus, by: Any, judge: Member | None, rules: MiningRules) -> None:
        self.corpus, self.by, self.judge, self.rules = corpus, by, judge, rules
        self.searcher: Searcher = as_searcher(by, corpus.texts)
        self.by_text: dict[str, list[int]] = {}
        for place, text in enumerate(corpus.texts):
            self.by_text.setdefault(_plain(text), []).append(place)
        if judge is not None:
            judge.open()

    def mine(self, chunk: Sequence[tuple[int, Row]]) -> Iterator[tuple[int, Row]]:
        with_positive = [place for place, (_, row) in enumerate(chunk) if row.pos]
        found = dict(
            zip(
                with_positive,
                self.searcher.scores([chunk[place][1].query for place in with_positive]),
                strict=True,
            )
        )
        for place, (number, row) in enumerate(chunk):
            if place not in found:
                yield number, row.model_copy(update={"key": row.identity})
                continue
            negatives = [self.corpus.texts[one] for one in self._chosen(row, found[place])]
            yield number, self._taught(row.model_copy(update={"key": row.identity, "neg": negatives}))

    def _chosen(self, row: Row, scores: Vector) -> list[int]:
        positives = {place for text in row.pos for place in self.by_text.get(_plain(text), [])}
        ids = getattr(row, "pos_ids", None) or []
        positives |= {self.corpus.places[str(one)] for one in ids if str(one) in self.corpus.places}
        # Where no positive is in the corpus, nothing says how high a score is too high.
        best = max((float(scores[place]) for place in positives), default=np.inf)
        ceiling = best + self.rules.margin * abs(best)
        words = [set(_plain(text).split()) for text in row.pos]
        depth = min(len(scores), self.rules.depth + len(positives))
        top = np.argpartition(-scores, depth - 1)[:depth] if depth else np.empty(0, dtype=np.int64)
        order = [int(place) for place in top[np.lexsort((top, -scores[top]))] if int(place) not in positives]
        chosen: list[int] = []
        seen = set()
        for place in order[self.rules.skip :]:
            text = _plain(self.corpus.texts[place])
            if scores[place] > ceiling or text in seen or self._same(set(text.split()), words):
                continue
            seen.add(text)
            chosen.append(place)
            if len(chosen) == self.rules.count:
                break
        return chosen

    def _same(self, words: set[str], positives: Sequence[set[str]]) -> bool:
        """Whether the words are those of a positive, nearly."""
        return any(
            len(words & other) >= self.rules.duplicate * max(1, len(words | other)) for other in positives
        )

    def _taught(self, row: Row) -> Row:
        if self.judge is None:
            return row
        # The judged "positive" is the query here: what is scored are the documents against it.
        case = Case(query=row.query, candidates=(*row.pos, *row.neg), positive=row.query)
        scores = list(self.judge.score([case])[0].scores)
        count = len(row.pos)
        return row.model_copy(update={"pos_scores": scores[:count], "neg_scores": scores[count:]})


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))
