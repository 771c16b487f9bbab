"""MTEB: the model object that `mteb.evaluate` takes, which thinks about queries.

```python
import mteb
from mteb_o1_retriever import O1Model
from o1_retriever import ThinkingEmbedder

model = O1Model(ThinkingEmbedder.from_pretrained("models/o1-embedder-22m"), name="o1/embedder-22m")
print(mteb.evaluate(model, mteb.get_tasks(tasks=["NFCorpus"])))
```

`models/o1-embedder-22m` is a folder of the repository; any other `ThinkingEmbedder` does as well.

`as_task` makes a task of a collection of your own.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING, Any

from o1_retriever.errors import require

require("mteb", extra="eval", purpose="The MTEB model")

import numpy as np
from datasets import Dataset  # type: ignore[import-untyped]
from mteb import TaskMetadata
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.models import ModelMeta
from mteb.models.model_meta import ScoringFunction
from mteb.similarity_functions import cos_sim, pairwise_cos_sim
from mteb.types import PromptType

from o1_retriever.embedder import ThinkingEmbedder, as_embedder
from o1_retriever.errors import SettingsError
from o1_retriever.evaluation.collection import Collection
from o1_retriever.thought import ThoughtSettings

if TYPE_CHECKING:
    from mteb.types import Array, BatchedInput
    from torch.utils.data import DataLoader

__all__ = ["O1Model", "as_task"]


class O1Model:
    """A thinking embedder as a model of MTEB: queries are thought about, everything else is a document.

    `embedder` is a `ThinkingEmbedder`, or the folder or Hub id of a checkpoint. `name` is what the results go
    by, as `organisation/model`; None: `o1-retriever/` and the fingerprint. `revision` None is a hash of the
    document space, the thinker and the settings, so that MTEB's cache of results never takes one for another;
    for a thinker without an identity (a nameless function) pass a revision, or `cache=None` to `evaluate`.
    `settings` None takes the embedder's own.
    """

    def __init__(
        self,
        embedder: ThinkingEmbedder | str | os.PathLike[str],
        *,
        name: str | None = None,
        revision: str | None = None,
        settings: ThoughtSettings | None = None,
        truncate_dim: int | None = None,
    ) -> None:
        self.embedder = as_embedder(embedder)
        self.settings = settings or self.embedder.settings
        self.truncate_dim = truncate_dim
        space = self.embedder.space
        if name is not None and name.count("/") != 1:
            raise SettingsError(f"name is {name!r}; expected organisation/model.")
        self._meta = ModelMeta.create_empty(
            overwrites={
                "name": name or f"o1-retriever/{space.fingerprint}",
                "revision": revision or self._hash(),
                "embed_dim": truncate_dim or space.dimension,
                "max_tokens": space.max_tokens,
                "similarity_fn_name": ScoringFunction.COSINE,
            }
        )

    def __repr__(self) -> str:
        return f"O1Model({self._meta.name!r})"

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """What MTEB writes beside the results."""
        return self._meta

    def encode(
        self,
        inputs: DataLoader[BatchedInput],
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **kwargs: Any,
    ) -> Array:
        """Vectors of all inputs, float32 (inputs, dimension), of length 1.

        `kwargs` are MTEB's `encode_kwargs`: `batch_size` and `show_progress_bar`. Raises `SettingsError` for
        a `precision` other than float32, and `InputError` with its position for a text that is empty.
        """
        if kwargs.get("precision", "float32") != "float32":
            raise SettingsError(f"precision is {kwargs['precision']!r}; expected 'float32'.")
        texts = [text for batch in inputs for text in batch["text"]]
        options: dict[str, Any] = {
            "batch_size": kwargs.get("batch_size", 32),
            "show_progress_bar": kwargs.get("show_progress_bar"),
            "truncate_dim": self.truncate_dim,
        }
        if prompt_type == PromptType.query:
            return np.asarray(self.embedder.encode_queries(texts, settings=self.settings, **options))
        return np.asarray(self.embedder.encode_documents(texts, **options))

    def similarity(self, embeddings1: Array, embeddings2: Array) -> Array:
        """Cosines of all pairs, (first, second)."""
        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Array, embeddings2: Array) -> Array:
        """Cosines of the vectors at the same place."""
        return pairwise_cos_sim(embeddings1, embeddings2)

    def _hash(self) -> str:
        known = {
            "space": self.embedder.space.to_dict(),
            "precision": self.embedder.precision.to_dict(),
            "thinker": self.embedder.backend.thinker_identity,
            "settings": self.settings.to_dict(),
            "truncate_dim": self.truncate_dim,
        }
        return hashlib.blake2b(json.dumps(known, sort_keys=True).encode(), digest_size=8).hexdigest()


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
        "top_ranked": _allowed_documents(collection),
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


def _allowed_documents(collection: Collection) -> dict[str, list[str]] | None:
    """What may be found for each query, where some must not be; MTEB ranks these alone."""
    if not collection.excluded:
        return None
    return {
        query: [each for each in collection.corpus.ids if each not in collection.excluded.get(query, ())]
        for query in collection.queries
    }


def _allowed(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name).strip("-") or "collection"
