"""One local model as an embedder's backend: it thinks, and embeds from the keys and values that are left."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from o1_retriever.concurrency.processes import SentModel
from o1_retriever.engine.decode import write_thoughts
from o1_retriever.engine.follow import follower
from o1_retriever.engine.load import LoadOptions, LocalModel, load_model
from o1_retriever.engine.passes import embed_sequences
from o1_retriever.engine.rows import Job
from o1_retriever.engine.template import Template
from o1_retriever.errors import SettingsError
from o1_retriever.query import Query, rendered
from o1_retriever.thinking import NewThoughts
from o1_retriever.thought import Thought, ThoughtSettings, Vector
from o1_retriever.vectors import TokenLimit, VectorSpace

logger = logging.getLogger(__name__)


class LocalBackend(SentModel):
    """Thinker and encoder at once. Calls from several threads take turns on the model.

    `model` is a folder or Hub id, loaded with the `options`, or a model that is loaded already: that one
    cannot be sent to another process.
    """

    def __init__(self, model: LocalModel | str, options: LoadOptions | None = None) -> None:
        local = load_model(model, options or LoadOptions()) if isinstance(model, str) else model
        assert isinstance(local.template, Template)
        self.local, self.template = local, local.template
        self.space = VectorSpace(
            weights=local.weights,
            layout=self.template.config.layout,
            pooling="emb",
            dimension=local.dimension,
            max_tokens=self.template.max_length,
        )
        self.precision = local.precision
        self.default_settings = self.template.config.settings
        # Everything but sampling and query that decides what the model writes.
        decisive = self.space.to_dict(), self.precision.to_dict(), self.template.max_query
        self.thinker_identity = f"local:{(*decisive, self.template.instruction)}"
        self.encoder_identity = self.thinker_identity

    @property
    def token_limit(self) -> TokenLimit | None:
        """How much of a document is read."""
        return TokenLimit.of(self.template.tokenizer, self.template.max_document)

    @property
    def weights_hash(self) -> str:
        """The hash of the files."""
        return self.local.weights

    def think(
        self, queries: Sequence[Query], *, settings: ThoughtSettings, start: int, batch_size: int | None
    ) -> Iterator[NewThoughts]:
        """Write thoughts, each query's handed over as soon as they are done; their vectors come for free.

        Not so after a history: it stands in the prompt, where those vectors would see it.
        """
        template = self.template
        indices = tuple(range(start, settings.n_thoughts))
        prompts, after = self._prompts(queries)
        jobs = [Job(prompt=prompt, indices=indices, room=template.room(prompt)) for prompt in prompts]
        for place, drafts in write_thoughts(
            self.local, jobs, settings, most=batch_size, follower=follower(template.tokenizer)
        ):
            thoughts = [
                Thought(
                    text=template.tokenizer.decode(list(draft.token_ids), skip_special_tokens=True).strip(),
                    token_ids=draft.token_ids,
                    finish=draft.finish,
                    # The thoughts share one prompt; it is counted with the first of them.
                    prompt_tokens=len(prompts[place]) if index == 0 else 0,
                    completion_tokens=len(draft.token_ids),
                )
                for index, draft in zip(indices, drafts.drafts, strict=True)
            ]
            if place in after:
                yield NewThoughts(place=place, start=start, thoughts=thoughts)
            else:
                states = [draft.state for draft in drafts.drafts]
                yield NewThoughts(
                    place=place, start=start, thoughts=thoughts, vectors=states, fast=drafts.fast
                )

    def _prompts(self, queries: Sequence[Query]) -> tuple[list[tuple[int, ...]], set[int]]:
        """What precedes the thoughts about each query, and the places of those with a history in it.

        The query has the room that it has by itself, and the newest turns of the history what is left of it.
        """
        template = self.template
        if any(query.passages for query in queries):
            raise SettingsError(
                "This model thinks about a query alone and reads no passages; expected rounds=1.",
                hint="For more rounds let a chat model think: ThinkingEmbedder.from_parts(thinker, encoder).",
            )
        ids = self._query_ids([query.text for query in queries])
        histories = [
            rendered(query.history, template.text_ids, template.max_query_text - len(row))
            for query, row in zip(queries, ids, strict=True)
        ]
        prompts = [
            tuple(template.prompt([*before, *row])) for before, row in zip(histories, ids, strict=True)
        ]
        return prompts, {place for place, before in enumerate(histories) if before}

    def embed_queries(
        self, pairs: Sequence[tuple[str, Thought | None]], *, batch_size: int | None
    ) -> Iterator[tuple[int, Vector]]:
        """Embed queries with given thoughts (or none) in one pass each."""
        template = self.template
        queries = self._query_ids([query for query, _ in pairs])
        sequences = []
        for ids, (_, thought) in zip(queries, pairs, strict=True):
            if thought is None:
                sequences.append(template.fast_query(ids))
            else:
                written = thought.token_ids or template.text_ids([thought.text])[0]
                sequences.append(template.thinking_query(ids, written))
        yield from embed_sequences(self.local, sequences, most=batch_size)

    def embed_documents(
        self, texts: Sequence[str], *, batch_size: int | None
    ) -> Iterator[tuple[int, Vector]]:
        """Embed documents; over-long ones are truncated with one warning that counts them."""
        template = self.template
        ids = template.text_ids(texts)
        _warn_truncated("documents", [len(row) for row in ids], template.max_document)
        sequences = [template.document(row) for row in ids]
        yield from embed_sequences(self.local, sequences, most=batch_size)

    def _query_ids(self, queries: Sequence[str]) -> list[list[int]]:
        ids = self.template.text_ids(queries)
        _warn_truncated("queries", [len(row) for row in ids], self.template.max_query_text)
        return ids


def _warn_truncated(what: str, lengths: Sequence[int], limit: int) -> None:
    longer = [length for length in lengths if length > limit]
    if longer:
        logger.warning(
            "%d of %d %s truncated at %d tokens (the longest has %d)",
            len(longer),
            len(lengths),
            what,
            limit,
            max(longer),
        )
