"""Refinement: a committee of retrievers scores the candidates of every row and elects one."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from o1_retriever.errors import SettingsError
from o1_retriever.progress import progress
from o1_retriever_training.errors import LedgerError
from o1_retriever_training.ledger import Input, Ledger
from o1_retriever_training.reading import RowProblems, count_rows, digest, read_rows
from o1_retriever_training.rows import TrainingRow
from o1_retriever_training.scorers import Scorer, as_scorer

Read = Literal["thought", "query+thought"]
Rule = Literal["majority", "soft", "mean-rank"]
RULES: tuple[str, ...] = get_args(Rule)
CHUNK = 2000  # rows scored at a time: enough to sort their texts by length, few enough to hold


@dataclass(frozen=True, slots=True, kw_only=True)
class VoteRules:
    """How votes are cast and counted.

    `read` is what members see: the thought alone, as in the paper, or the query with it. `drop_useless`
    leaves out a row whose elected thought scores no better than the bare query for a majority of the members.
    """

    rule: Rule = "majority"
    weights: Mapping[str, float] = field(default_factory=dict)
    read: Read = "thought"
    drop_useless: bool = False

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise SettingsError(f"The rule is {self.rule!r}; expected one of {', '.join(RULES)}.")
        if self.read not in ("thought", "query+thought"):
            raise SettingsError(f"read is {self.read!r}; expected 'thought' or 'query+thought'.")
        if any(not (math.isfinite(each) and each > 0) for each in self.weights.values()):
            raise SettingsError(f"The weights are {dict(self.weights)!r:.80}; expected positive numbers.")

    def to_dict(self) -> dict[str, Any]:
        """The rules as JSON values."""
        return {"rule": self.rule, "weights": dict(self.weights), "read": self.read,
                "drop_useless": self.drop_useless}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What a member sees of a row: its bare query, what stands for each usable candidate, the positive."""

    query: str
    candidates: tuple[str, ...]
    positive: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A member's scores of a case's candidates, and of the bare query in their place."""

    scores: tuple[float, ...]
    bare: float


def verdicts(member: Scorer, cases: Sequence[Case]) -> list[Verdict]:
    """One verdict per case, in order."""
    # The query is scored among the candidates, and they without it: BM25 counts how rare a word is among
    # all texts, and the query's would count as rarer than any candidate's where it is not one of them.
    alone = [(case.positive, case.candidates) for case in cases]
    beside = [(case.positive, (*case.candidates, case.query)) for case in cases]
    scores = member.scores([*alone, *beside])
    return [
        Verdict(scores=tuple(own), bare=more[-1])
        for own, more in zip(scores[: len(cases)], scores[len(cases) :], strict=True)
    ]


def favourite(scores: Sequence[float]) -> int:
    """The candidate that a member votes for: its best, of equals the first."""
    return int(np.argmax(np.asarray(scores)))


def elect(
    scores: Mapping[str, Sequence[float]],
    *,
    rule: Rule = "majority",
    weights: Mapping[str, float] | None = None,
) -> int:
    """The place of the elected candidate; `scores` has each member's, all for the same candidates.

    "majority" counts the members' favourites (each as much as its weight), "soft" adds up their softmaxed
    scores with weights, "mean-rank" takes the best weighted mean rank. Ties go to the better mean rank,
    then to the first. Raises `SettingsError` without a candidate, or for an unknown rule.
    """
    names = list(scores)
    table = np.array([scores[name] for name in names], dtype=np.float64)
    if table.ndim != 2 or not table.size:
        raise SettingsError(f"Found scores of shape {table.shape}; expected some candidates and members.")
    share = np.array([(weights or {}).get(name, 1.0) for name in names])
    ranks = _ranks(table)
    mean_rank = share @ ranks / share.sum()
    if rule == "majority":
        votes = np.zeros(table.shape[1])
        for row, weight in zip(table, share, strict=True):
            votes[favourite(row.tolist())] += weight
        goodness = votes
    elif rule == "soft":
        powers = np.exp(table - table.max(axis=1, keepdims=True))
        goodness = share @ (powers / powers.sum(axis=1, keepdims=True))
    elif rule == "mean-rank":
        goodness = -mean_rank
    else:
        raise SettingsError(f"The rule is {rule!r}; expected one of {', '.join(RULES)}.")
    best = np.flatnonzero(goodness >= goodness.max() - 1e-12)
    return int(best[np.argmin(mean_rank[best])])


def _ranks(table: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Each member's ranks of the candidates, from 1; equal scores share the mean of their ranks."""
    better = (table[:, None, :] > table[:, :, None]).sum(axis=2)
    equal = (table[:, None, :] == table[:, :, None]).sum(axis=2)
    return np.asarray(better + (equal + 1) / 2, dtype=np.float64)


@dataclass(slots=True, kw_only=True)
class Agreement:
    """Votes of many rows: who agreed with whom, and who was with the winner.

    Fleiss' kappa is about rows with the same number of candidates, as its categories are their places; of
    several such numbers the most frequent is reported. A row with one candidate is no choice and does not
    count.
    """

    rows: int = 0
    unanimous: int = 0
    wins: Counter[str] = field(default_factory=Counter)
    gains: dict[str, float] = field(default_factory=dict)
    better: Counter[str] = field(default_factory=Counter)
    _pairs: dict[int, list[float]] = field(default_factory=dict)
    _places: dict[int, Counter[int]] = field(default_factory=dict)

    def add(self, votes: Mapping[str, int], winner: int, candidates: int) -> None:
        """Count a row: each member's favourite among `candidates`, and the elected one."""
        if candidates < 2 or not votes:
            return
        self.rows += 1
        counts = Counter(votes.values())
        self.unanimous += len(counts) == 1
        self.wins.update(name for name, vote in votes.items() if vote == winner)
        members = len(votes)
        if members > 1:
            agreeing = sum(count * (count - 1) for count in counts.values()) / (members * (members - 1))
            known = self._pairs.setdefault(candidates, [0.0, 0.0])
            known[0] += agreeing
            known[1] += 1
            self._places.setdefault(candidates, Counter()).update(votes.values())

    def gain(self, name: str, thought: float, bare: float) -> None:
        """Count by how much a member prefers the elected thought to the bare query."""
        self.gains[name] = self.gains.get(name, 0.0) + thought - bare
        self.better[name] += thought > bare

    @property
    def kappa(self) -> float | None:
        """Fleiss' kappa; None with one member or without rows. 1.0 when all votes ever cast are the same."""
        if not self._pairs:
            return None
        candidates = max(self._pairs, key=lambda number: self._pairs[number][1])
        agreeing, rows = self._pairs[candidates]
        observed = agreeing / rows
        places = self._places[candidates]
        total = sum(places.values())
        expected = sum((count / total) ** 2 for count in places.values())
        return 1.0 if expected == 1.0 else (observed - expected) / (1 - expected)

    def to_dict(self, voted: int) -> dict[str, Any]:
        """The figures as JSON values; `voted` rows have a gain."""
        share = max(1, self.rows)
        return {
            "rows with a choice": self.rows,
            "unanimous": self.unanimous / share,
            "fleiss_kappa": self.kappa,
            "win_rate": {name: count / share for name, count in sorted(self.wins.items())},
            "mean_gain": {name: total / max(1, voted) for name, total in sorted(self.gains.items())},
            "better_than_query": {name: n / max(1, voted) for name, n in sorted(self.better.items())},
        }


@dataclass(slots=True, kw_only=True)
class VoteReport:
    """What a vote has found: counts of rows, and how far the members agree."""

    rows: int = 0
    voted: int = 0
    without_candidates: int = 0
    without_positive: int = 0
    several_positives: int = 0
    dropped: int = 0
    agreement: Agreement = field(default_factory=Agreement)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        names = ("rows", "voted", "without_candidates", "without_positive", "several_positives", "dropped")
        return {name: getattr(self, name) for name in names} | self.agreement.to_dict(self.voted)


def vote(
    thoughts: str | Path,
    out: str | Path,
    *,
    committee: Sequence[Any],
    rules: VoteRules | None = None,
    strict: bool = False,
    show: bool | None = None,
) -> dict[str, Any]:
    """Elect a thought for every row of `thoughts` and write the rows, in the same order, into `out`.

    Members come one after the other: each is loaded, scores all rows into a file beside `out`, and is let
    go, so that memory is one member's. A row is judged by its first positive; one without a positive, or
    without a usable candidate, is kept without a thought and counted. A call that was stopped goes on.
    Counts, agreement and the problems of the input are returned.

    Raises `DataError`, `LedgerError`, `SettingsError` and what members raise.
    """
    rules = rules or VoteRules()
    members = [as_scorer(each) for each in committee]
    _check(members, rules)
    recipe = {
        **rules.to_dict(),
        "committee": [member.identity for member in members],
        "input": digest(thoughts),
    }
    with Ledger(out, stage="vote", recipe=recipe) as ledger:
        if ledger.known.get("finished") and ledger.known.get("rows") == len(ledger):
            return dict(ledger.known["counts"])
        files = [ScoreFile(ledger.path, member.name) for member in members]
        for member, file in zip(members, files, strict=True):
            rows = read_rows(thoughts, RowProblems(str(thoughts), strict=strict))
            _score_all(rows, member, file, rules=rules, total=count_rows(thoughts, show=show), show=show)
        problems = RowProblems(str(thoughts), strict=strict)
        report = VoteReport()
        _count_all(Input(thoughts, ledger, problems), ledger, files, rules, report)
        figures = report.to_dict() | {"problems": str(problems) if problems else ""}
        ledger.finish(figures)
        for file in files:
            file.remove()
    return figures


def _check(members: Sequence[Scorer], rules: VoteRules) -> None:
    names = [member.name for member in members]
    if not names or len(set(names)) < len(names):
        raise SettingsError(f"The committee is {names}; expected members, each of a name of its own.")
    if "<lambda>" in names:
        raise SettingsError(
            "A member is a function without a name, by which rows and reports would call it.",
            hint="Pass FunctionScorer(function, name=...).",
        )
    unknown = sorted(set(rules.weights) - set(names))
    if unknown:
        raise SettingsError(f"There is a weight for {unknown}; expected some of {names}.")


def _score_all(
    rows: Iterator[TrainingRow],
    member: Scorer,
    file: ScoreFile,
    *,
    rules: VoteRules,
    total: int | None,
    show: bool | None,
) -> None:
    """Have a member score the rows that it has not scored yet."""
    # Repetitions are left out when the votes are counted: both passes must see the same rows.
    with ExitStack() as stack:
        done = stack.enter_context(file)
        rows = islice(rows, done, None)
        advance = stack.enter_context(progress(f"Scoring by {member.name}", total, show=show))
        advance(done)
        opened = False
        while chunk := list(islice(rows, CHUNK)):
            cases = [(place, case) for place, row in enumerate(chunk) if (case := _case(row, rules))]
            if cases and not opened:
                stack.callback(member.close)
                member.open()
                opened = True
            own = verdicts(member, [case for _, case in cases]) if cases else []
            found = {place: verdict for (place, _), verdict in zip(cases, own, strict=True)}
            for place, verdict in found.items():
                _check_verdict(member, chunk[place], verdict)
            file.append([(row.identity, found.get(place)) for place, row in enumerate(chunk)])
            advance(len(chunk))


def _check_verdict(member: Scorer, row: TrainingRow, verdict: Verdict) -> None:
    """A model that overflows says nan, which would win every comparison or none."""
    if not all(map(math.isfinite, (*verdict.scores, verdict.bare))):
        raise SettingsError(
            f"{member.name} scored the candidates of {row.query!r:.60} {list(verdict.scores)}, the query "
            f"{verdict.bare}; expected finite numbers.",
            hint="Leave that member out, or load it in another number format.",
        )


def _case(row: TrainingRow, rules: VoteRules) -> Case | None:
    """What members see of a row; None where there is nothing to choose, or nothing to choose by."""
    if not row.pos or not row.usable:
        return None
    shown = [row.all_thought[place] or "" for place in row.usable]
    if rules.read == "query+thought":
        shown = [f"{row.query} {text}" for text in shown]
    return Case(query=row.query, candidates=tuple(shown), positive=row.pos[0])


def _count_all(
    source: Input, ledger: Ledger, files: Sequence[ScoreFile], rules: VoteRules, report: VoteReport
) -> None:
    """Read rows and scores side by side, and write each row with its winner."""
    scored = zip(*(file.read() for file in files), strict=True)
    verdicts = {}
    for number, row in source.all():
        for entries in scored:
            if entries[0][0] == row.identity:
                verdicts = {file.name: verdict for file, (_, verdict) in zip(files, entries, strict=True)}
                break
        else:
            raise LedgerError(
                f"{source.source} has changed while its rows were scored.",
                hint="Type the same command with another --out.",
            )
        kept = _with_vote(row, verdicts, rules, report)
        if kept is not None:
            ledger.append(row.identity, kept.line())
            ledger.index.place(row.identity, number)


def _with_vote(
    row: TrainingRow, verdicts: Mapping[str, Verdict | None], rules: VoteRules, report: VoteReport
) -> TrainingRow | None:
    """The row with its winner and all scores; None when it is dropped."""
    report.rows += 1
    report.without_candidates += not row.usable
    report.without_positive += not row.pos
    report.several_positives += len(row.pos) > 1
    given = {name: verdict for name, verdict in verdicts.items() if verdict is not None}
    if not given:
        return row.model_copy(update={"key": row.identity, "thought": None})
    scores = {name: verdict.scores for name, verdict in given.items()}
    winner = elect(scores, rule=rules.rule, weights=rules.weights)
    worse = sum(verdict.scores[winner] <= verdict.bare for verdict in given.values())
    if rules.drop_useless and 2 * worse > len(given):
        report.dropped += 1
        return None
    report.voted += 1
    votes = {name: favourite(own) for name, own in scores.items()}
    report.agreement.add(votes, winner, len(row.usable))
    for name, verdict in given.items():
        report.agreement.gain(name, verdict.scores[winner], verdict.bare)
    return row.model_copy(
        update={
            "key": row.identity,
            "thought": row.all_thought[row.usable[winner]],
            "model2scores": {name: _spread(row, own) for name, own in scores.items()},
            "bare_scores": {name: verdict.bare for name, verdict in given.items()},
            "votes": {name: row.usable[place] for name, place in votes.items()},
        }
    )


def _spread(row: TrainingRow, scores: Sequence[float]) -> list[float | None]:
    """Scores of the usable candidates at the places of all."""
    spread: list[float | None] = [None] * len(row.all_thought)
    for place, score in zip(row.usable, scores, strict=True):
        spread[place] = score
    return spread


Entry = tuple[str, Verdict | None]


class ScoreFile:
    """Lines of (row key, scores, score of the bare query) beside an output; `with file as done: ...`.

    Entering it cuts off a last line that was not finished, and gives the number of rows that are done.
    """

    def __init__(self, out: Path, name: str) -> None:
        self.name = name
        digest = hashlib.blake2b(name.encode(), digest_size=6).hexdigest()
        self.path = out.with_name(f"{out.name}.scores-{digest}")
        self._file: IO[bytes] | None = None

    def __enter__(self) -> int:
        done = end = 0
        self._file = self.path.open("a+b", buffering=0)
        with self.path.open("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                done, end = done + 1, end + len(line)
        os.truncate(self.path, end)
        return done

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def append(self, entries: Sequence[Entry]) -> None:
        """Write some rows' verdicts, None for a row that there was nothing to score of."""
        assert self._file is not None, "the file is not open"
        lines = [
            json.dumps([key, verdict and verdict.scores, verdict and verdict.bare]) + "\n"
            for key, verdict in entries
        ]
        try:
            data = "".join(lines).encode()
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            raise LedgerError(
                f"{self.path} cannot be written ({error.strerror or error}).",
                hint="Free some space, then type the same command: it goes on where it was.",
            ) from error

    def read(self) -> Iterator[Entry]:
        """All rows' verdicts in order."""
        with self.path.open("rb") as lines:
            for line in lines:
                key, scores, bare = json.loads(line)
                yield key, None if scores is None else Verdict(scores=tuple(scores), bare=bare)

    def remove(self) -> None:
        """Delete the file: the rows hold its scores now."""
        self.path.unlink(missing_ok=True)
