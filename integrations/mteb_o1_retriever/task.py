"""A collection of one's own as a task of MTEB."""

from __future__ import annotations

from typing import Any

from datasets import Dataset  # type: ignore[import-untyped]
from mteb import TaskMetadata
from mteb.abstasks.retrieval import AbsTaskRetrieval

from o1_retriever.evaluation.collection import Collection


def as_task(
    collection: Collection, *, name: str | None = None, language: str = "eng-Latn"
) -> AbsTaskRetrieval:
    """A collection as a retrieval task that `mteb.evaluate` takes, scored by nDCG@10.

    `name` is what the results go by (None: the collection's, without what MTEB does not allow in names).
    Documents are the texts that this library embeds, title and text in one, so that figures can be compared.
    """
    ids = list(collection.corpus.ids)
    texts = collection.corpus.texts(0, len(ids))
    rows: Any = {
        "corpus": Dataset.from_dict({"id": ids, "title": [""] * len(ids), "text": texts}),
        "queries": Dataset.from_dict(
            {"id": list(collection.queries), "text": list(collection.queries.values())}
        ),
        "relevant_docs": {query: dict(judged) for query, judged in collection.qrels.items()},
        "top_ranked": None,
    }

    class Task(AbsTaskRetrieval):
        """The collection as a task."""

        metadata = TaskMetadata(
            name=name or _allowed(collection.name),
            description=f"{collection.name}, split {collection.split}.",
            dataset={"path": f"local/{_allowed(collection.name)}", "revision": collection.corpus.digest},
            type="Retrieval",
            category="t2t",
            modalities=["text"],
            eval_splits=[collection.split],
            eval_langs=[language],
            main_score="ndcg_at_10",
        )

        def load_data(self, num_proc: int | None = None, **_: Any) -> None:
            """Take the data that is here."""
            self.dataset = {"default": {collection.split: rows}}
            self.data_loaded = True

    return Task()


def _allowed(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name).strip("-") or "collection"
