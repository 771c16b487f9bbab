"""Searching a dev collection while a model is trained, to know its best checkpoint."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from o1_retriever.embedder import ThinkingEmbedder
from o1_retriever.engine.template import TemplateConfig
from o1_retriever.evaluation.collection import Collection, load_collection
from o1_retriever.evaluation.corpus import EncodedCorpus
from o1_retriever.evaluation.metrics import means, per_query
from o1_retriever.evaluation.systems import NEVER, Dense
from o1_retriever.thought import ThoughtSettings
from o1_retriever_training.joint.recipe_parts import EvaluationSection

_DEPTH = 100


class DevEvaluation:
    """The fast and the thinking path of a model on a collection, as often as it is called.

    Raises `CollectionError` for a collection that cannot be used, before anything is trained.
    """

    def __init__(self, section: EvaluationSection) -> None:
        self._section = section
        collection = load_collection(section.collection, split=section.split)
        self._collection = _fewer(collection, section.queries)
        self._texts = collection.corpus.texts(0, len(collection.corpus.ids))

    @property
    def name(self) -> str:
        """The figure that decides which checkpoint is best."""
        return judged_by(self._section)

    def __call__(self, language_model: Any, tokenizer: Any, config: TemplateConfig) -> dict[str, float]:
        """The measure of both paths, the tokens of a thought, and the seconds it took.

        The model is left in evaluation mode.
        """
        from o1_retriever.engine.backend import LocalBackend
        from o1_retriever.engine.load import assemble

        started = time.perf_counter()
        # The name of the weights would be computed from them, and nothing here is kept under it.
        local = assemble("trained", language_model, tokenizer, template_config=config, weights="in training")
        embedder = ThinkingEmbedder(LocalBackend(local), cache=False)
        matrix = np.asarray(embedder.encode_documents(self._texts, show_progress_bar=False), dtype=np.float32)
        encoded = EncodedCorpus(matrix=matrix, seconds=0.0)
        metric, section = self._section.metric, self._section
        found = {f"{metric} fast": self._measured(embedder, encoded, NEVER)[0]}
        if section.thoughts:
            settings = ThoughtSettings(
                n_thoughts=section.thoughts,
                temperature=section.temperature,
                top_p=section.top_p,
                max_new_tokens=section.max_new_tokens,
                seed=0,
            )
            value, tokens = self._measured(embedder, encoded, settings)
            found |= {f"{metric} thinking": value, "tokens per thought": tokens}
        return found | {"seconds": time.perf_counter() - started}

    def _measured(
        self, embedder: ThinkingEmbedder, encoded: EncodedCorpus, settings: ThoughtSettings
    ) -> tuple[float, float]:
        """(the measure, tokens per thought)."""
        collection, metric = self._collection, self._section.metric
        system = Dense(
            name="dev", embedder=embedder, corpus=collection.corpus, encoded=encoded, settings=settings
        )
        queries = list(collection.queries)
        answer = system.search([collection.queries[query] for query in queries], _DEPTH)
        ids = collection.corpus.ids
        run = {query: ranking.by_id(ids) for query, ranking in zip(queries, answer.rankings, strict=True)}
        thoughts = [thought for row in answer.thoughts for thought in row]
        tokens = float(np.mean([thought.completion_tokens for thought in thoughts])) if thoughts else 0.0
        return means(per_query(collection.qrels, run, measures=[metric]))[metric], tokens


def judged_by(section: EvaluationSection) -> str:
    """The name of the figure that decides."""
    return f"{section.metric} {'thinking' if section.thoughts else 'fast'}"


def _fewer(collection: Collection, most: int | None) -> Collection:
    """At most so many queries: every n-th in the order of their ids, always the same ones."""
    queries = sorted(set(collection.queries) & set(collection.qrels))
    if most is not None and len(queries) > most:
        queries = [queries[place] for place in np.linspace(0, len(queries) - 1, most).astype(int)]
    return collection.with_queries({query: collection.queries[query] for query in queries})
