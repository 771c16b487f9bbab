"""`o1-retriever search` and `o1-retriever think`: questions in, thoughts and passages out."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from o1_retriever.cli.options import IndexOptions, ModelOptions, SearchModes, ThoughtOptions, with_options
from o1_retriever.cli.terminal import fail, output, working, write_json
from o1_retriever.cli.where import parse_where
from o1_retriever.errors import IndexNotFoundError, InputError, O1RetrieverError

if TYPE_CHECKING:
    from pathlib import Path

    from o1_retriever.embedder import ThinkingEmbedder
    from o1_retriever.explain.explanation import Explanation
    from o1_retriever.search.result import SearchResult
    from o1_retriever.thought import ThoughtSettings

_BATCH = 32  # questions from standard input that are thought about together

Question = Annotated[
    str | None,
    typer.Argument(
        help='Your question; "-" reads one a line from standard input; without one you are asked.',
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a question on standard output.")]


@dataclass(frozen=True, kw_only=True)
class HitOptions:
    """Which passages, and how much of them."""

    hits: Annotated[int, typer.Option("--hits", min=1, help="How many passages to show.")] = 5
    where: Annotated[
        list[str] | None,
        typer.Option("--where", metavar="KEY=VALUE", help="Only passages like source=a.md (repeatable)."),
    ] = None
    full: Annotated[bool, typer.Option("--full", help="Show passages whole, not their first lines.")] = False
    explain: Annotated[
        bool, typer.Option("--explain", help="Show what each thought finds, and what thinking moved.")
    ] = False


@with_options
def search(
    question: Question = None,
    *,
    shown: HitOptions,
    modes: SearchModes,
    target: IndexOptions,
    model: ModelOptions,
    thoughts: ThoughtOptions,
    as_json: Json = False,
) -> None:
    """Ask a QUESTION: think about it, then show the thoughts and the passages they led to."""
    from o1_retriever.thought import ThoughtSettings

    asked = _Questions(question)
    where = parse_where(shown.where or [])
    thoughts.settings(ThoughtSettings())  # refuses a bad value before anything is loaded
    how, said = modes.options(), modes.said()
    _check_index(target.index)
    from o1_retriever.cli.models import load_embedder
    from o1_retriever.index.index import Index
    from o1_retriever.search.retriever import Retriever

    embedder = load_embedder(model)
    settings = thoughts.settings(embedder.settings, fast=how.get("thinking") == "never")
    with Index(target.index, embedder) as index:
        retriever = Retriever(embedder, index, **how)

        def explain(questions: list[str]) -> None:
            for each in questions:
                with _thinking([each], settings):
                    explanation = retriever.explain(
                        each, k=shown.hits, where=where, settings=settings, history=said
                    )
                _show_explanation(explanation, full=shown.full, as_json=as_json, spaced=asked.many)

        def answer(questions: list[str]) -> None:
            with _thinking(questions, settings) as show:
                results = retriever.search_many(
                    questions,
                    k=shown.hits,
                    where=where,
                    settings=settings,
                    show_progress_bar=show,
                    histories=[said] * len(questions),
                )
            for result in results:
                _show(result, full=shown.full, as_json=as_json, spaced=asked.many)

        asked.each(explain if shown.explain else answer)


@with_options
def think(
    question: Question = None,
    *,
    model: ModelOptions,
    thoughts: ThoughtOptions,
    as_json: Json = False,
) -> None:
    """Show what the model thinks about a QUESTION, without searching."""
    from o1_retriever.thought import ThoughtSettings

    asked = _Questions(question)
    thoughts.settings(ThoughtSettings())
    from o1_retriever.cli.models import load_embedder

    embedder = load_embedder(model)
    settings = thoughts.settings(embedder.settings)
    asked.each(lambda questions: _think(embedder, questions, settings, as_json=as_json, spaced=asked.many))


def _think(
    embedder: ThinkingEmbedder,
    questions: list[str],
    settings: ThoughtSettings,
    *,
    as_json: bool,
    spaced: bool,
) -> None:
    from rich.text import Text

    from o1_retriever.explain.render import costs_view, printable, thoughts_view
    from o1_retriever.search.result import thought_record
    from o1_retriever.thought import Timings

    started = time.perf_counter()
    with working("Thinking"):
        rows = embedder.think(questions, settings=settings)
    think_ms = (time.perf_counter() - started) * 1000 / len(questions)
    for query, row in zip(questions, rows, strict=True):
        if as_json:
            records = [thought_record(thought) for thought in row]
            write_json({"query": query, "thoughts": records, "timings": {"think_ms": round(think_ms, 3)}})
            continue
        views = (thoughts_view(row), Text(), costs_view(row, Timings(think_ms=think_ms)))
        output().print(Text(printable(query), style="bold"), *views, sep="\n", end="\n\n" if spaced else "\n")


def _show(result: SearchResult, *, full: bool, as_json: bool, spaced: bool) -> None:
    from o1_retriever.explain.render import explain

    if as_json:
        write_json(result.to_dict())
    else:
        if result.how.thinking == "auto":
            verb = "Thought about" if result.decision.think else "Not thought about"
            output().print(f"{verb}: {result.decision.reason}.", style="dim", markup=False)
        output().print(explain(result, full=full), end="\n\n" if spaced else "\n")


def _show_explanation(explanation: Explanation, *, full: bool, as_json: bool, spaced: bool) -> None:
    from o1_retriever.explain.render import explanation_view

    if as_json:
        write_json(explanation.to_dict())
    else:
        output().print(explanation_view(explanation, full=full), end="\n\n" if spaced else "\n")


def _check_index(path: Path) -> None:
    """Find out whether there is anything to search before a model is loaded."""
    from o1_retriever.index.index import Index

    with Index(path, create=False) as index:
        if not index.count():
            raise IndexNotFoundError(
                f"The index in {index.path} is empty.", hint="Type: o1-retriever index FOLDER"
            )


@contextlib.contextmanager
def _thinking(questions: list[str], settings: ThoughtSettings) -> Iterator[bool | None]:
    """A sign that one question is being thought about; for several, leave to show a progress bar."""
    if len(questions) > 1:
        yield None
        return
    with working("Thinking" if settings.thinks else "Searching"):
        yield False


class _Questions:
    """The questions of one command: the one on the command line, or many from elsewhere.

    Raises `InputError` for a question that cannot be used.
    """

    def __init__(self, argument: str | None) -> None:
        from o1_retriever.query import check_text

        if argument is None and not sys.stdin.isatty():
            raise typer.BadParameter(
                'found none, and nobody to ask; expected your question in quotes, or "-" to read questions '
                "from standard input",
                param_hint="QUESTION",
            )
        self._argument = argument if argument in (None, "-") else check_text(argument, what="question")

    @property
    def many(self) -> bool:
        """Whether there may be several."""
        return self._argument in (None, "-")

    def each(self, answer: Callable[[list[str]], None]) -> None:
        """Answer all questions, those from standard input in batches."""
        if hasattr(sys.stdin, "reconfigure"):
            # Bytes that are no UTF-8 become an error that names the question.
            sys.stdin.reconfigure(errors="surrogateescape")
        if self._argument is None:
            _converse(answer)
        elif self._argument == "-":
            for questions in _batches():
                answer(questions)
        else:
            answer([self._argument])


def _batches() -> Iterator[list[str]]:
    lines = (line.strip() for line in sys.stdin)
    questions = (line for line in lines if line)
    batch = list(islice(questions, _BATCH))
    if not batch:
        raise InputError("Standard input holds no question; expected one a line.")
    while batch:
        yield batch
        batch = list(islice(questions, _BATCH))


def _converse(answer: Callable[[list[str]], None]) -> None:
    """Ask for questions until an empty one; what goes wrong with one of them does not end it."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives `input` a history and arrow keys
    while True:
        try:
            question = input("Question (empty to leave): ").strip()
        except EOFError:
            return
        if not question:
            return
        try:
            answer([question])
        except O1RetrieverError as error:
            fail(error.message, error.hint)
