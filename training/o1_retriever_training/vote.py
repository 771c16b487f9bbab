"""Refinement: a committee of retrievers scores the candidates of every row and elects one."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from o1_retriever.errors import SettingsError
from o1_retriever.reporting import progress
from o1_retriever_training.ledger import Input, Ledger, LedgerError, written_rows
from o1_retriever_training.rows import RowProblems, TrainingRow, count_rows, digest
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
    """One verdict per case, in order. Raises `SettingsError` for a score that is no finite number."""
    # The query is scored among the candidates, and they without it: BM25 counts how rare a word is among
    # all texts, and the query's would count as rarer than any candidate's where it is not one of them.
    alone = [(case.positive, case.candidates) for case in cases]
    beside = [(case.positive, (*case.candidates, case.query)) for case in cases]
    scores = member.scores([*alone, *beside])
    found = []
    for case, own, more in zip(cases, scores[: len(cases)], scores[len(cases) :], strict=True):
        # A model that overflows says nan, which would win every comparison or none.
        if not all(map(math.isfinite, (*own, more[-1]))):
            raise SettingsError(
                f"{member.name} scored the candidates of {case.query!r:.60} {own}, the query {more[-1]}; "
                "expected finite numbers.",
                hint="Leave that member out, or load it in another number format.",
            )
        found.append(Verdict(scores=tuple(own), bare=more[-1]))
    return found


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
    # Each member's ranks, from 1; equal scores share the mean of their ranks.
    better = (table[:, None, :] > table[:, :, None]).sum(axis=2)
    equal = (table[:, None, :] == table[:, :, None]).sum(axis=2)
    mean_rank = share @ (better + (equal + 1) / 2) / share.sum()
    if rule == "majority":
        goodness = np.bincount(table.argmax(axis=1), weights=share, minlength=table.shape[1])
    elif rule == "soft":
        powers = np.exp(table - table.max(axis=1, keepdims=True))
        goodness = share @ (powers / powers.sum(axis=1, keepdims=True))
    elif rule == "mean-rank":
        goodness = -mean_rank
    else:
        raise SettingsError(f"The rule is {rule!r}; expected one of {', '.join(RULES)}.")
    best = np.flatnonzero(goodness >= goodness.max() - 1e-12)
    return int(best[np.argmin(mean_rank[best])])


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
        **asdict(rules),
        "committee": [member.identity for member in members],
        "input": digest(thoughts),
    }
    with Ledger(out, stage="vote", recipe=recipe) as ledger:
        if ledger.known.get("finished") and ledger.known.get("rows") == len(ledger):
            return dict(ledger.known["counts"])
        files = {
            member.name: _score_all(thoughts, member, ledger.path, rules=rules, strict=strict, show=show)
            for member in members
        }
        problems = RowProblems(str(thoughts), strict=strict)
        figures = _count_all(Input(thoughts, ledger, problems), ledger, files, rules)
        figures["problems"] = str(problems) if problems else ""
        ledger.finish(figures)
        for path in files.values():
            for file in path.parent.glob(f"{path.name}*"):
                file.unlink()
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
    source: str | Path, member: Scorer, out: Path, *, rules: VoteRules, strict: bool, show: bool | None
) -> Path:
    """Have a member score the rows that it has not scored yet; the file of its verdicts, beside `out`."""
    name = hashlib.blake2b(member.name.encode(), digest_size=6).hexdigest()
    path, total = out.with_name(f"{out.name}.scores-{name}"), count_rows(source, show=show)
    with ExitStack() as stack:
        ledger = stack.enter_context(Ledger(path, stage="scores", recipe={"member": member.identity}))
        advance = stack.enter_context(progress(f"Scoring by {member.name}", total, show=show))
        rows = Input(source, ledger, RowProblems(str(source), strict=strict)).fresh(lambda: advance(1))
        opened = False
        while chunk := [row for _, row in islice(rows, CHUNK)]:
            cases = {place: case for place, row in enumerate(chunk) if (case := _case(row, rules))}
            if cases and not opened:
                stack.callback(member.close)
                member.open()
                opened = True
            own = verdicts(member, list(cases.values())) if cases else []
            found = {place: asdict(verdict) for place, verdict in zip(cases, own, strict=True)}
            for place, row in enumerate(chunk):
                line = json.dumps({"key": row.identity, "verdict": found.get(place)}) + "\n"
                ledger.append(row.identity, line)
            advance(len(chunk))
    return path


def _case(row: TrainingRow, rules: VoteRules) -> Case | None:
    """What members see of a row; None where there is nothing to choose, or nothing to choose by."""
    if not row.pos or not row.usable:
        return None
    shown = [row.all_thought[place] or "" for place in row.usable]
    if rules.read == "query+thought":
        shown = [f"{row.query} {text}" for text in shown]
    return Case(query=row.query, candidates=tuple(shown), positive=row.pos[0])


def _verdicts(path: Path) -> Iterator[tuple[str, Verdict | None]]:
    """All rows' keys and verdicts in order, None for a row that there was nothing to score of."""
    for value in written_rows(path):
        yield value["key"], value["verdict"] and Verdict(**value["verdict"])


def _count_all(source: Input, ledger: Ledger, files: Mapping[str, Path], rules: VoteRules) -> dict[str, Any]:
    """Read rows and verdicts side by side, and write each row with its winner; the counts."""
    names = ("rows", "voted", "without_candidates", "without_positive", "several_positives", "dropped")
    counts, agreement = dict.fromkeys(names, 0), Agreement()
    scored = zip(*map(_verdicts, files.values()), strict=True)
    for number, row in source.all():
        entries = next(scored, (("", None),))
        if entries[0][0] != row.identity:
            raise LedgerError(
                f"{source.source} has changed while its rows were scored.",
                hint="Type the same command with another --out.",
            )
        given = {name: own for name, (_, own) in zip(files, entries, strict=True) if own is not None}
        kept = _with_vote(row, given, rules, counts, agreement)
        if kept is not None:
            ledger.append(row.identity, kept.line())
            ledger.index.place(row.identity, number)
    return counts | agreement.to_dict(counts["voted"])


def _with_vote(
    row: TrainingRow,
    given: Mapping[str, Verdict],
    rules: VoteRules,
    counts: dict[str, int],
    agreement: Agreement,
) -> TrainingRow | None:
    """The row with its winner and all scores; None when it is dropped."""
    counts["rows"] += 1
    counts["without_candidates"] += not row.usable
    counts["without_positive"] += not row.pos
    counts["several_positives"] += len(row.pos) > 1
    if not given:
        return row.model_copy(update={"key": row.identity, "thought": None})
    scores = {name: verdict.scores for name, verdict in given.items()}
    winner = elect(scores, rule=rules.rule, weights=rules.weights)
    worse = sum(verdict.scores[winner] <= verdict.bare for verdict in given.values())
    if rules.drop_useless and 2 * worse > len(given):
        counts["dropped"] += 1
        return None
    counts["voted"] += 1
    # A member votes for its best candidate, of equals for the first.
    votes = {name: int(np.argmax(own)) for name, own in scores.items()}
    agreement.add(votes, winner, len(row.usable))
    for name, verdict in given.items():
        agreement.gain(name, verdict.scores[winner], verdict.bare)
    places = range(len(row.all_thought))
    by_place = {name: dict(zip(row.usable, own, strict=True)) for name, own in scores.items()}
    return row.model_copy(
        update={
            "key": row.identity,
            "thought": row.all_thought[row.usable[winner]],
            "model2scores": {name: [own.get(p) for p in places] for name, own in by_place.items()},
            "bare_scores": {name: verdict.bare for name, verdict in given.items()},
            "votes": {name: row.usable[place] for name, place in votes.items()},
        }
    )
