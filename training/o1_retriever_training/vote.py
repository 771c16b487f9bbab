"""Refinement: a committee of retrievers scores the candidates of every row and elects one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from o1_retriever.errors import SettingsError
from o1_retriever.progress import progress
from o1_retriever_training.agreement import Agreement
from o1_retriever_training.ballots import RULES, Rule, elect, favourite
from o1_retriever_training.cases import Case, Verdict
from o1_retriever_training.committee import Member, as_member
from o1_retriever_training.errors import LedgerError
from o1_retriever_training.inputs import Input
from o1_retriever_training.ledger import Ledger
from o1_retriever_training.problems import Problems
from o1_retriever_training.reading import count_rows, digest, read_rows
from o1_retriever_training.rows import Row
from o1_retriever_training.scores import ScoreFile

Read = Literal["thought", "query+thought"]
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
    members = [as_member(each) for each in committee]
    _check(members, rules)
    identities = [getattr(member, "identity", member.name) for member in members]
    recipe = {**rules.to_dict(), "committee": identities, "input": digest(thoughts)}
    with Ledger(out, stage="vote", recipe=recipe) as ledger:
        if ledger.known.get("finished") and ledger.known.get("rows") == len(ledger):
            return dict(ledger.known["counts"])
        files = [ScoreFile(ledger.path, member.name) for member in members]
        for member, file in zip(members, files, strict=True):
            rows = read_rows(thoughts, Problems(str(thoughts), strict=strict))
            _score_all(rows, member, file, rules=rules, total=count_rows(thoughts, show=show), show=show)
        problems = Problems(str(thoughts), strict=strict)
        report = VoteReport()
        _count_all(Input(thoughts, ledger, problems), ledger, files, rules, report)
        figures = report.to_dict() | {"problems": str(problems) if problems else ""}
        ledger.finish(figures)
        for file in files:
            file.remove()
    return figures


def _check(members: Sequence[Member], rules: VoteRules) -> None:
    names = [member.name for member in members]
    if not names or len(set(names)) < len(names):
        raise SettingsError(f"The committee is {names}; expected members, each of a name of its own.")
    unknown = sorted(set(rules.weights) - set(names))
    if unknown:
        raise SettingsError(f"There is a weight for {unknown}; expected some of {names}.")


def _score_all(
    rows: Iterator[Row],
    member: Member,
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
            verdicts = member.score([case for _, case in cases]) if cases else []
            found = {place: verdict for (place, _), verdict in zip(cases, verdicts, strict=True)}
            for place, verdict in found.items():
                _check_verdict(member, chunk[place], verdict)
            file.append([(row.identity, found.get(place)) for place, row in enumerate(chunk)])
            advance(len(chunk))


def _check_verdict(member: Member, row: Row, verdict: Verdict) -> None:
    """A model that overflows says nan, which would win every comparison or none."""
    if not all(map(math.isfinite, (*verdict.scores, verdict.bare))):
        raise SettingsError(
            f"{member.name} scored the candidates of {row.query!r:.60} {list(verdict.scores)}, the query "
            f"{verdict.bare}; expected finite numbers.",
            hint="Leave that member out, or load it in another number format.",
        )


def _case(row: Row, rules: VoteRules) -> Case | None:
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
    row: Row, verdicts: Mapping[str, Verdict | None], rules: VoteRules, report: VoteReport
) -> Row | None:
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


def _spread(row: Row, scores: Sequence[float]) -> list[float | None]:
    """Scores of the usable candidates at the places of all."""
    spread: list[float | None] = [None] * len(row.all_thought)
    for place, score in zip(row.usable, scores, strict=True):
        spread[place] = score
    return spread
