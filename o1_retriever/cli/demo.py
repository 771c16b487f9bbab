"""`o1-retriever demo`: everyday questions, what is thought about them, and whether that helps."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from o1_retriever.cli.everyday import Everyday, find_everyday, read_everyday, require_measures
from o1_retriever.cli.options import ModelOptions, ThoughtOptions, with_options
from o1_retriever.cli.terminal import output, working

if TYPE_CHECKING:
    from o1_retriever.embedder import ThinkingEmbedder
    from o1_retriever.index.index import Index
    from o1_retriever.search.retriever import Retriever, SearchResult
    from o1_retriever.thought import ThoughtSettings

EXAMPLES = 5
DEPTH = 10  # nDCG@10 looks no further


@with_options
def demo(*, model: ModelOptions, thoughts: ThoughtOptions) -> None:
    """Index the everyday passages of a clone, ask questions, and see whether thinking helps."""
    from o1_retriever.thought import ThoughtSettings

    thoughts.settings(ThoughtSettings())
    collection = read_everyday(find_everyday())
    require_measures()
    from o1_retriever.cli.demo_view import example, introduction, next_steps, quality
    from o1_retriever.cli.models import load_embedder
    from o1_retriever.search.retriever import Retriever

    embedder = load_embedder(model)
    settings = thoughts.settings(embedder.settings)
    with _indexed(collection, embedder) as index:
        retriever = Retriever(embedder, index)
        runs = Runs(retriever, collection, settings)
        console = output()
        console.print(introduction(collection, settings))
        for question in runs.examples:
            console.print("", example(collection, question, runs), sep="\n")
        runs.ask_the_rest()
        console.print("", quality(collection, runs), sep="\n")
        console.print("", next_steps(index.path), sep="\n")


def _indexed(collection: Everyday, embedder: ThinkingEmbedder) -> Index:
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
    index.add(collection.documents)
    current = {document.id for document in collection.documents}
    index.delete([name for name in index.ids() if name not in current])
    return index


class Runs:
    """What was found with and without thinking, by question; the examples first."""

    def __init__(self, retriever: Retriever, collection: Everyday, settings: ThoughtSettings) -> None:
        self._retriever = retriever
        self._collection = collection
        self._settings = settings
        # The first ones of the split for trying things out: a rule, so that nobody picks what looks good.
        self.examples = list(collection.judgments["dev"])[:EXAMPLES]
        self.rest = [question for question in collection.questions if question not in self.examples]
        with working("Thinking"):
            self.fast = self._ask(self.examples, thinking=False, show=False)
            self.thinking = self._ask(self.examples, thinking=True, show=False)

    def ask_the_rest(self) -> None:
        """Ask the other questions."""
        self.fast |= self._ask(self.rest, thinking=False)
        self.thinking |= self._ask(self.rest, thinking=True)

    def _ask(
        self, questions: list[str], *, thinking: bool, show: bool | None = None
    ) -> dict[str, SearchResult]:
        texts = [self._collection.questions[question] for question in questions]
        settings = self._settings if thinking else self._settings.with_changes(thinking="never")
        return dict(
            zip(
                questions,
                self._retriever.search_many(texts, k=DEPTH, settings=settings, show_progress_bar=show),
                strict=True,
            )
        )

    @property
    def from_cache(self) -> bool:
        """Whether thoughts of the other questions were there from an earlier run."""
        return any(thought.cached for question in self.rest for thought in self.thinking[question].thoughts)
