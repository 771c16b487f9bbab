"""`o1-retriever search` and `o1-retriever think`: queries in, thoughts and passages out."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from o1_retriever.cli.index import check_index
from o1_retriever.cli.options import IndexOptions, ModelOptions, SearchModes, ThoughtOptions, with_options
from o1_retriever.cli.terminal import fail, messages, output, working, write_json
from o1_retriever.errors import InputError, O1RetrieverError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from o1_retriever.embedder import ThinkingEmbedder
    from o1_retriever.index.filters import Filter
    from o1_retriever.query import Query
    from o1_retriever.thought import Thought, ThoughtSettings

_BATCH = 32  # queries from standard input that are thought about together

QueryText = Annotated[
    str | None,
    typer.Argument(
        metavar="QUERY",
        help='Your question; "-" reads one a line from standard input; without one you are asked.',
        show_default=False,
    ),
]
HistoryFile = Annotated[
    Path | None,
    typer.Option(
        "--history",
        help="The conversation before the query: a .jsonl file of turns with role and content, or a JSON "
        "list of them. The thoughts are written after it.",
    ),
]
GivenThoughts = Annotated[
    list[str] | None,
    typer.Option(
        "--thought",
        metavar="TEXT",
        help="A thought of your own about QUERY: then none is written (repeatable).",
        rich_help_panel="Thoughts",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a query on standard output.")]


@dataclass(frozen=True, kw_only=True)
class HitOptions:
    """Which passages, and how much of them."""

    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Only passages like source=a.md, or a filter as JSON, see docs/filters.md (repeatable).",
        ),
    ] = None
    full: Annotated[bool, typer.Option("--full", help="Show passages whole, not their first lines.")] = False
    explain: Annotated[
        bool, typer.Option("--explain", help="Show what each thought finds, and what thinking moved.")
    ] = False


@with_options
def search(
    query: QueryText = None,
    *,
    shown: HitOptions,
    modes: SearchModes,
    history: HistoryFile = None,
    thought: GivenThoughts = None,
    target: IndexOptions,
    model: ModelOptions,
    thoughts: ThoughtOptions,
    as_json: Json = False,
) -> None:
    """Ask a QUERY: think about it, then show the thoughts and the passages they led to."""
    from o1_retriever.thought import ThoughtSettings

    # Whatever is wrong is said before anything is loaded.
    source = _Queries(query, history, thought or None, as_json=as_json)
    where = parse_where(shown.where or [])
    thoughts.settings(ThoughtSettings())
    options = modes.options()
    doing = "Searching" if modes.chosen() == "never" else "Thinking"
    from o1_retriever.cli.models import load_embedder, load_late
    from o1_retriever.index.index import Index
    from o1_retriever.search.render import result_view
    from o1_retriever.search.retriever import Retriever

    with contextlib.ExitStack() as stack:
        found = stack.enter_context(Index(target.index, create=False))
        check_index(found, target, model)
        found.warm()  # its graph is loaded while the model is
        embedder = load_embedder(model, recalls=True)
        settings = thoughts.settings(embedder.settings)
        thinks = modes.chosen() in (None, "always") and not thought
        index = stack.enter_context(Index(target.index, embedder))
        retriever = Retriever(embedder, index, **options)
        how: dict[str, Any] = {"k": modes.hits, "where": where, "settings": settings}

        def explain(queries: list[Query]) -> None:
            for each in queries:
                with working(doing):
                    explanation = retriever.explain(each, **how)
                source.show(explanation.to_dict(), explanation.view(full=shown.full))

        def answer(queries: list[Query]) -> None:
            # Several queries have a progress bar, which is the embedder's own.
            one = len(queries) == 1
            with working(doing) if one else contextlib.nullcontext():
                results = retriever.search_many(queries, show_progress_bar=False if one else None, **how)
            for result in results:
                source.show(result.to_dict(), result_view(result, full=shown.full))

        def ready(queries: list[Query]) -> None:
            if thinks:
                load_late(embedder, queries, settings)

        source.each(explain if shown.explain else answer, ready)


@with_options
def think(
    query: QueryText = None,
    *,
    history: HistoryFile = None,
    model: ModelOptions,
    thoughts: ThoughtOptions,
    as_json: Json = False,
) -> None:
    """Show what the model thinks about a QUERY, without searching."""
    from o1_retriever.thought import ThoughtSettings, Timings

    source = _Queries(query, history, as_json=as_json)
    thoughts.settings(ThoughtSettings())
    from rich.text import Text

    from o1_retriever.cli.models import load_embedder, load_late
    from o1_retriever.search.render import costs_view, printable, thoughts_view

    embedder = load_embedder(model, recalls=True)
    settings = thoughts.settings(embedder.settings)

    def answer(queries: list[Query]) -> None:
        started = time.perf_counter()
        if len(queries) == 1 and sys.stderr.isatty():
            thoughts_of_each = [_thought_aloud(embedder, queries[0], settings)]
        else:
            thoughts_of_each = embedder.think(queries, settings=settings)
        think_ms = (time.perf_counter() - started) * 1000 / len(queries)
        for each, written in zip(queries, thoughts_of_each, strict=True):
            records = [thought.to_dict() for thought in written]
            source.show(
                {"query": each.text, "thoughts": records, "timings": {"think_ms": round(think_ms, 3)}},
                Text(printable(each.text), style="bold"),
                thoughts_view(written),
                Text(),
                costs_view(written, Timings(think_ms=think_ms)),
            )

    source.each(answer, lambda queries: load_late(embedder, queries, settings))


def _thought_aloud(embedder: ThinkingEmbedder, query: Query, settings: ThoughtSettings) -> list[Thought]:
    """The thoughts about a query, shown on the terminal while they are written."""
    from rich.live import Live

    from o1_retriever.search.render import thoughts_view
    from o1_retriever.thought import Thought

    texts: dict[int, str] = {}
    thoughts: list[Thought] = []
    stream = embedder.stream_thoughts(query, settings=settings)
    with working("Thinking"):
        first = list(islice(stream, 1))
    with Live(console=messages(), transient=True, vertical_overflow="visible") as live:
        for piece in chain(first, stream):
            texts[piece.index] = texts.get(piece.index, "") + piece.text
            live.update(thoughts_view([Thought(text=texts[index]) for index in sorted(texts)]))
            thoughts += [piece.thought] if piece.thought else []
    return thoughts


class _Queries:
    """The queries of one command, the one on the command line or many from elsewhere, and their answers.

    `history` is the file of the conversation before each, `thoughts` are about the one on the command line.
    Raises `InputError` for what cannot be used.
    """

    def __init__(
        self, argument: str | None, history: Path | None, thoughts: list[str] | None = None, *, as_json: bool
    ) -> None:
        from o1_retriever.query import Conversation, as_query, read_history

        if argument is None and not sys.stdin.isatty():
            raise typer.BadParameter(
                'found none, and nobody to ask; expected your question in quotes, or "-" to read questions '
                "from standard input",
                param_hint="QUERY",
            )
        if thoughts is not None and argument in (None, "-"):
            raise typer.BadParameter(
                'found thoughts and no question that they are about; expected it in quotes: "question" '
                '--thought "..."',
                param_hint="--thought",
            )
        self._as_json = as_json
        self._from_terminal = argument is None
        self._history = Conversation() if history is None else read_history(history)
        self._only = None if argument in (None, "-") else as_query(argument, self._history, thoughts)

    def show(self, record: dict[str, Any], *views: RenderableType) -> None:
        """Show one answer: its record as JSON, or the views, and an empty line where more may follow."""
        if self._as_json:
            write_json(record)
        else:
            output().print(*views, sep="\n", end="\n" if self._only else "\n\n")

    def each(self, answer: Callable[[list[Query]], None], ready: Callable[[list[Query]], None]) -> None:
        """Answer all queries, those from standard input in batches.

        `ready` loads what an answer needs, and comes before each; before a person is asked, it gets no query.
        """
        if hasattr(sys.stdin, "reconfigure"):
            # Bytes that are no UTF-8 become an error that names the query.
            sys.stdin.reconfigure(errors="surrogateescape")
        if self._only is not None:
            ready([self._only])
            answer([self._only])
        elif self._from_terminal:
            ready([])
            self._converse(answer)
        else:
            for lines in _batches():
                queries = self._checked(lines)
                ready(queries)
                answer(queries)

    def _checked(self, lines: list[str]) -> list[Query]:
        from o1_retriever.query import as_queries

        return as_queries(lines, [self._history] * len(lines))

    def _converse(self, answer: Callable[[list[Query]], None]) -> None:
        """Ask for queries until an empty one; what goes wrong with one of them does not end it."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - gives `input` a history and arrow keys
        while True:
            try:
                line = input("Question (empty to leave): ").strip()
            except EOFError:
                return
            if not line:
                return
            try:
                answer(self._checked([line]))
            except O1RetrieverError as error:
                fail(error.message, error.hint)


def _batches() -> Iterator[list[str]]:
    lines = (line.strip() for line in sys.stdin)
    queries = (line for line in lines if line)
    batch = list(islice(queries, _BATCH))
    if not batch:
        raise InputError("Standard input holds no question; expected one a line.")
    while batch:
        yield batch
        batch = list(islice(queries, _BATCH))


def parse_where(conditions: Sequence[str]) -> Filter | None:
    """The filter of `--where`, all of which must match: `key=value`, or a filter as JSON; None for none.

    What is typed as a value has no type: `page=3` matches the number and the text. Raises a usage error for
    what is neither, and `FilterError`.
    """
    from o1_retriever.index.filters import as_filter

    every = [_condition(each.strip()) for each in conditions]
    return as_filter({"$and": every} if len(every) > 1 else next(iter(every), None))


def _condition(condition: str) -> dict[str, Any]:
    if condition.startswith("{"):
        try:
            found: dict[str, Any] = json.loads(condition)
        except (ValueError, RecursionError) as error:
            raise typer.BadParameter(
                f"--where is {condition!r:.120}; as JSON it has an error ({error})"
            ) from None
        return found
    key, equals, value = (part.strip() for part in condition.partition("="))
    if not (key and equals) or key.startswith("$"):
        raise typer.BadParameter(
            f"--where is {condition!r:.120}; expected key=value, for example source=notes.md, "
            """or JSON, for example '{"page": {"$gte": 2}}'"""
        )
    return {key: {"$in": _readings(value)}}


def _readings(value: str) -> list[str | int | float | bool]:
    from o1_retriever.index.filters import as_scalar

    if value.lower() in ("true", "false"):
        return [value, value.lower() == "true"]
    for read in (int, float):
        with contextlib.suppress(ValueError):
            return [value, as_scalar(read(value))]
    return [value]
