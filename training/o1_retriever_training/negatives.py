"""Hard negatives: documents that a retriever finds for a query though they do not answer it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from o1_retriever.errors import SettingsError
from o1_retriever.ranking.ranking import best
from o1_retriever.reporting import progress
from o1_retriever.thought import Vector
from o1_retriever_training.ledger import Input, Ledger
from o1_retriever_training.rows import (
    Corpus,
    RowProblems,
    TrainingRow,
    count_rows,
    digest,
    plain_text,
    read_corpus,
)
from o1_retriever_training.scorers import Scorer, as_scorer
from o1_retriever_training.synthesize import Options

CHUNK = 256
_SENTENCE = 4  # different words; a shorter positive stands in many documents that are not about it


@dataclass(frozen=True, slots=True, kw_only=True)
class MiningRules:
    """Which documents become negatives of a row.

    Of the `depth` best that are not its positives, the first `skip` are passed over (unjudged positives
    mostly), and so is whatever scores above the positive by more than the share `margin` of its score. A
    document that contains a positive, or has at least the share `duplicate` of its words in common with one,
    is taken for the same. 15 negatives are the paper's group of 16.
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
    options: Options | None = None,
) -> dict[str, Any]:
    """Put negatives from `corpus` into every row of `rows`, in the place of any it had, and write the rows.

    `by` searches: "bm25", "minilm", a sentence-transformers model, or one of ours. `teacher` (None: nobody)
    is what `as_scorer` takes; its scores become `pos_scores` and `neg_scores`. Positives are known by their
    text, and by the ids that a row may have in a field `pos_ids`. `options` are those of `synthesize`.
    Returned are counts. Rows without a positive are written as they are.
    """
    rules, options = rules or MiningRules(), options or Options()
    judge = None if teacher is None else as_scorer(teacher, role="teacher", target="query")
    recipe = {
        **asdict(rules),
        "by": by if isinstance(by, str) else type(by).__name__,
        "teacher": judge and judge.identity,
        "corpus": digest(corpus),
        "input": digest(rows),
    }
    with Ledger(out, stage="negatives", recipe=recipe) as ledger:
        problems = RowProblems(str(rows), strict=options.strict)
        counts = {"rows": 0, "negatives": 0, "without_positive": 0, "fewer_than_wanted": 0}
        with progress("Mining", count_rows(rows, show=options.show), show=options.show) as advance:
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
    def __init__(self, corpus: Corpus, by: Any, judge: Scorer | None, rules: MiningRules) -> None:
        self.corpus, self.judge, self.rules = corpus, judge, rules
        self.search = as_scorer(by, role="searcher").search(corpus.texts)
        self.by_text: dict[str, list[int]] = {}
        for place, text in enumerate(corpus.texts):
            self.by_text.setdefault(plain_text(text), []).append(place)

    def mine(self, chunk: Sequence[tuple[int, TrainingRow]]) -> Iterator[tuple[int, TrainingRow]]:
        """The rows with their negatives, and with the teacher's scores where there is one."""
        asked = [row for _, row in chunk if row.pos]
        found = self.search([row.query for row in asked])
        chosen = [
            [self.corpus.texts[place] for place in self._chosen(row, scores)]
            for row, scores in zip(asked, found, strict=True)
        ]
        taught = iter(self._taught(asked, chosen))
        for number, row in chunk:
            yield number, row.model_copy(update={"key": row.identity, **(next(taught) if row.pos else {})})

    def _taught(self, rows: Sequence[TrainingRow], chosen: Sequence[list[str]]) -> Iterator[dict[str, Any]]:
        """What changes in each row; scores of negatives that it had before go with them."""
        if self.judge is None:
            yield from ({"neg": negatives, "neg_scores": None} for negatives in chosen)
            return
        documents = [[*row.pos, *negatives] for row, negatives in zip(rows, chosen, strict=True)]
        asked = [(row.query, texts) for row, texts in zip(rows, documents, strict=True)]
        for row, negatives, scores in zip(rows, chosen, self.judge.scores(asked), strict=True):
            count = len(row.pos)
            yield {"neg": negatives, "pos_scores": scores[:count], "neg_scores": scores[count:]}

    def _chosen(self, row: TrainingRow, scores: Vector) -> list[int]:
        positives = {place for text in row.pos for place in self.by_text.get(plain_text(text), [])}
        ids = getattr(row, "pos_ids", None) or []
        positives |= {self.corpus.places[str(name)] for name in ids if str(name) in self.corpus.places}
        # Where no positive is in the corpus, nothing says how high a score is too high.
        highest = max((float(scores[place]) for place in positives), default=np.inf)
        ceiling = highest + self.rules.margin * abs(highest)
        positive_texts = [plain_text(text) for text in row.pos]
        ranking = best(np.arange(len(scores)), scores, self.rules.depth + len(positives)).keys.tolist()
        order = [place for place in ranking if place not in positives]
        chosen: list[int] = []
        seen = set()
        for place in order[self.rules.skip :]:
            text = plain_text(self.corpus.texts[place])
            if scores[place] > ceiling or text in seen or self._same(text, positive_texts):
                continue
            seen.add(text)
            chosen.append(place)
            if len(chosen) == self.rules.count:
                break
        return chosen

    def _same(self, text: str, positives: Sequence[str]) -> bool:
        """Whether a text holds a positive, or says nearly the same."""
        words = set(text.split())
        for positive in positives:
            other = set(positive.split())
            if len(other) >= _SENTENCE and f" {positive} " in f" {text} ":
                return True
            if len(words & other) >= self.rules.duplicate * max(1, len(words | other)):
                return True
        return False
