"""What the demo shows, from the rankings that it found."""

from __future__ import annotations

import shlex
from pathlib import Path
from statistics import fmean

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from o1_retriever.cli.demo import DEPTH, EXAMPLES, Runs
from o1_retriever.cli.everyday import Everyday, Quality, measure, rank_of_answer
from o1_retriever.explain.render import hits_view, milliseconds, thoughts_view
from o1_retriever.thought import ThoughtSettings

_SHOWN = 3
_CLEAR = 0.01  # a smaller change of nDCG@10 is not worth a word of praise


def introduction(collection: Everyday, settings: ThoughtSettings) -> Text:
    """What is about to be shown."""
    passages, questions = len(collection.documents), len(collection.questions)
    thoughts = f"{settings.n_thoughts} thought{'' if settings.n_thoughts == 1 else 's'}"
    return Text(
        f"{passages} passages of everyday science and technology, {questions} questions, {thoughts} about "
        f"each. Here are the first {EXAMPLES} questions of the dev split."
    )


def example(collection: Everyday, question: str, runs: Runs) -> Group:
    """A question with its thoughts, its first hits, and where the right passage came."""
    result = runs.thinking[question]
    answers = collection.answers(question)
    ranks = [rank_of_answer(answers, run[question]) for run in (runs.thinking, runs.fast)]
    verdict = Text("Right passage: ", style="bold")
    for rank, how in zip(ranks, ("with thinking, ", "without"), strict=True):
        where = f"rank {rank}" if rank else f"not among the first {DEPTH}"
        verdict.append(f"{where} ", style="green" if rank == 1 else "yellow").append(how, style="not bold")
    return Group(
        Text(result.query, style="bold"),
        Text("Thoughts", style="bold"),
        thoughts_view(result.thoughts),
        Text("Hits", style="bold"),
        hits_view(result.hits[:_SHOWN], lines=1),
        verdict,
    )


def quality(collection: Everyday, runs: Runs) -> Group:
    """How well all questions were answered with and without thinking, and what it cost."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in ("Split", "Questions", "", "Right first", "nDCG@10"):
        table.add_column(name, justify="left" if name in ("Split", "") else "right", no_wrap=True)
    pairs: list[tuple[Quality, Quality]] = []
    for split, judgments in collection.judgments.items():
        pair = (measure(judgments, runs.fast), measure(judgments, runs.thinking))
        pairs.append(pair)
        for how, measured in zip(("without thinking", "with thinking"), pair, strict=True):
            first = measured is pair[0]
            table.add_row(
                split if first else "",
                str(len(judgments)) if first else "",
                how,
                f"{fmean(measured.first.values()):.0%}",
                f"{fmean(measured.gain.values()):.3f}",
            )
    cached = " The thoughts came from the cache of an earlier run." if runs.from_cache else ""
    fast, thinking = (fmean(run[name].total_ms for name in runs.rest) for run in (runs.fast, runs.thinking))
    note = (
        f"A question took {milliseconds(fast)} without thinking and {milliseconds(thinking)} with it, "
        f"{len(runs.rest)} asked together.{cached}"
    )
    return Group(table, Text(), Text(_conclusion(pairs)), Text(note, style="dim"))


def _conclusion(pairs: list[tuple[Quality, Quality]]) -> str:
    """What thinking did to nDCG@10, in words that do not promise more than was seen."""
    gains = [
        thinking.gain[question] - fast.gain[question] for fast, thinking in pairs for question in fast.gain
    ]
    better, worse = sum(gain > 1e-9 for gain in gains), sum(gain < -1e-9 for gain in gains)
    change = fmean(gains)
    said = "made no clear difference"
    if abs(change) >= _CLEAR and (change > 0) == (better > worse):
        said = "helped" if change > 0 else "hurt"
    return (
        f"Over all {len(gains)} questions thinking {said}: nDCG@10 {change:+.3f}; better on {better}, "
        f"worse on {worse}, the same on {len(gains) - better - worse}. So few questions prove little."
    )


def next_steps(index: Path) -> Group:
    """What to type next."""

    def command(text: str) -> Text:
        return Text(f"  {text}", style="cyan", no_wrap=True, overflow="ignore")

    return Group(
        Text("Ask these passages yourself", style="bold"),
        command(f'o1-retriever search "your question" --index {shlex.quote(str(index))}'),
        Text("Index a folder of your own (txt, md, html, pdf, py, jsonl), and ask it", style="bold"),
        command("o1-retriever index FOLDER"),
        command('o1-retriever search "your question"'),
    )
