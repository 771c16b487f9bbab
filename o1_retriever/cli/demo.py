"""`o1-retriever demo`: a small corpus that is in the package, five queries, what thinking does to each."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from o1_retriever.cli.options import ModelOptions, ThinkingOptions, ThoughtOptions, with_options
from o1_retriever.cli.terminal import output, working

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text

    from o1_retriever.documents.document import Document
    from o1_retriever.embedder import ThinkingEmbedder
    from o1_retriever.index.hits import Hit
    from o1_retriever.index.index import Index
    from o1_retriever.search.explanation import Explanation


DEPTH = 10  # ranks of the right passage are known down to here
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class DemoQuery:
    """A query and the ids of the passages that answer it."""

    text: str
    answers: frozenset[str]

    def rank(self, hits: Sequence[Hit]) -> int | None:
        """The rank of the first passage that answers it, None if none is among the hits."""
        return next((hit.rank for hit in hits if hit.id in self.answers), None)


@with_options
def demo(*, model: ModelOptions, thoughts: ThoughtOptions, when: ThinkingOptions) -> None:
    """Index the small corpus of the package, ask it five questions, and see what thinking does."""
    from o1_retriever.thought import ThoughtSettings

    thoughts.settings(ThoughtSettings())
    thinking = when.chosen() or "always"
    documents, queries = read_demo()
    from o1_retriever.cli.models import load_embedder, load_late
    from o1_retriever.search.retriever import Retriever

    embedder = load_embedder(model, recalls=True)
    settings = thoughts.settings(embedder.settings)
    if thinking != "never":
        load_late(embedder, [query.text for query in queries], settings)
    console = output()
    console.print(f"{len(documents)} short passages of everyday knowledge, and {len(queries)} questions.")
    explained: list[tuple[DemoQuery, Explanation]] = []
    with _indexed(documents, embedder) as index:
        retriever = Retriever(embedder, index, thinking=thinking)
        for query in queries:
            with working("Searching" if thinking == "never" else "Thinking"):
                explanation = retriever.explain(query.text, k=DEPTH, settings=settings)
            explained.append((query, explanation))
            console.print("", _example(query, explanation), sep="\n")
        # A command is copied: it is never cut, however long its folder.
        console.print("", conclusion(explained), "", _next_steps(index.path), sep="\n", crop=False)


def read_demo() -> tuple[list[Document], list[DemoQuery]]:
    """The passages and the queries of the demo, from the file beside this one."""
    from o1_retriever.documents.document import Document

    data = json.loads((files(__package__) / "demo.json").read_text(encoding="utf-8"))
    documents = [
        Document(
            id=row["id"],
            text=f"{row['title']} {row['text']}",
            metadata={"title": row["title"], "source": row["id"]},
        )
        for row in data["documents"]
    ]
    queries = [DemoQuery(text=row["text"], answers=frozenset(row["answers"])) for row in data["queries"]]
    return documents, queries


def _indexed(documents: list[Document], embedder: ThinkingEmbedder) -> Index:
    """The demo's index: the one from last time, or a new one where the model has changed."""
    from o1_retriever.cache import default_cache_path, make_private_folder
    from o1_retriever.errors import FingerprintError
    from o1_retriever.index.index import Index

    make_private_folder(default_cache_path())
    folder = default_cache_path() / "demo"
    try:
        index = Index(folder, embedder)
    except FingerprintError:
        # A folder of the demo's own, and a few seconds make it again.
        shutil.rmtree(folder)
        index = Index(folder, embedder)
    index.add(documents)
    current = {document.id for document in documents}
    index.delete([name for name in index.ids() if name not in current])
    return index


def _example(query: DemoQuery, explanation: Explanation) -> Group:
    """A query with its thoughts, its first hits, what thinking moved, and where the right passage came."""
    from rich.console import Group, RenderableType
    from rich.text import Text

    from o1_retriever.search.render import hits_view, thoughts_view

    result = explanation.result
    parts: list[RenderableType] = [Text(query.text, style="bold")]
    if result.thoughts:
        parts += [Text("Thoughts", style="bold"), thoughts_view(result.thoughts)]
    parts += [Text("Hits", style="bold"), hits_view(result.hits[:_SHOWN], lines=1)]
    parts += [Text.assemble(("What thinking moved: ", "bold"), explanation.verdict)]
    right = Text("Right passage: ", style="bold")
    for hits, how in ((result.hits, "with thinking, "), (explanation.without, "without")):
        rank = query.rank(hits)
        where = f"rank {rank}" if rank else f"not among the first {DEPTH}"
        right.append(f"{where} ", style="green" if rank == 1 else "yellow").append(how, style="not bold")
    return Group(*parts, right)


def conclusion(explained: Sequence[tuple[DemoQuery, Explanation]]) -> Text:
    """What thinking did to the right passages, in words that do not promise more than was seen."""
    from rich.text import Text

    from o1_retriever.search.render import milliseconds

    if not any(explanation.result.thoughts for _, explanation in explained):
        return Text("No question was thought about.")
    ranks = [
        (query.rank(each.without) or DEPTH + 1, query.rank(each.result.hits) or DEPTH + 1)
        for query, each in explained
    ]
    up, down = sum(before > after for before, after in ranks), sum(before < after for before, after in ranks)
    thoughts = [thought for _, each in explained for thought in each.result.thoughts]
    think_ms = fmean(each.timings.think_ms for _, each in explained)
    cost = "the thoughts came from the cache" if all(thought.cached for thought in thoughts) else (
        f"thinking took {milliseconds(think_ms)} a question"
    )  # fmt: skip
    return Text(
        f"Thinking moved the right passage up for {up} of {len(ranks)} questions and down for {down}; "
        f"{cost}. They were chosen as questions that a thought may help, and so few prove nothing: "
        "o1-retriever eval measures on a collection of yours."
    )


def _next_steps(index: Path) -> Group:
    """What to type next."""
    from rich.console import Group
    from rich.text import Text

    def command(text: str) -> Text:
        return Text(f"  {text}", style="cyan", no_wrap=True, overflow="ignore")

    return Group(
        Text("Ask these passages yourself", style="bold"),
        command(f'o1-retriever search "your question" --index {shlex.quote(str(index))}'),
        Text(
            "Index a folder of your own (office files, PDF, web pages, rows, code), and ask it", style="bold"
        ),
        command("o1-retriever index FOLDER"),
        command('o1-retriever search "your question"'),
    )
