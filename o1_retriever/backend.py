"""The road an embedder takes: one model that thinks and embeds, or a thinker joined to an encoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from o1_retriever.errors import CheckpointError, SettingsError, ThinkerError
from o1_retriever.query import Conversation, several, takes_histories
from o1_retriever.thought import Thought, ThoughtSettings, Vector
from o1_retriever.vectors import Precision, VectorSpace, check_vectors

if TYPE_CHECKING:
    from o1_retriever.encoders import Encoder
    from o1_retriever.thinkers import Thinker


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Thinking:
    """New thoughts about the query at `place`, from index `start` on.

    `vectors` has the raw vector of each thought where thinking gave it for free, and `fast` the raw vector
    of the query without thoughts; both None otherwise.
    """

    place: int
    start: int
    thoughts: Sequence[Thought]
    vectors: Sequence[Vector] | None = None
    fast: Vector | None = None


class Backend(Protocol):
    """What an embedder needs: thoughts, vectors, and names for both that a cache can key by."""

    @property
    def space(self) -> VectorSpace:
        """Identity of the document space."""
        ...

    @property
    def precision(self) -> Precision:
        """How vectors are computed."""
        ...

    @property
    def default_settings(self) -> Mapping[str, Any]:
        """Preferred thought settings of the checkpoint."""
        ...

    @property
    def thinker_identity(self) -> str | None:
        """Stable name of who thinks, without sampling and query; None: thoughts must not be persisted."""
        ...

    @property
    def encoder_identity(self) -> str | None:
        """Stable name of who embeds queries; None: vectors must not be persisted."""
        ...

    def think(
        self,
        queries: Sequence[str],
        k: int,
        *,
        settings: ThoughtSettings,
        start: int,
        batch_size: int | None,
        histories: Sequence[Conversation] | None = None,
    ) -> Iterator[Thinking]:
        """Thoughts `start` to `k - 1` of each query, handed over as they are done.

        `histories` are what was said before each query, None when before none; a vector that comes with a
        thought must be of the query and the thought alone. `batch_size` queries at once at most; None: as
        many as suit the backend. The same below.
        """
        ...

    def embed_queries(
        self, pairs: Sequence[tuple[str, Thought | None]], *, batch_size: int | None
    ) -> Iterator[tuple[int, Vector]]:
        """(place, raw vector) of each query with one thought, or without (None), in any order."""
        ...

    def embed_documents(
        self, texts: Sequence[str], *, batch_size: int | None
    ) -> Iterator[tuple[int, Vector]]:
        """(place, raw vector) of each document, in any order."""
        ...


_AT_ONCE = 32  # what sentence-transformers takes when nothing is said


class PairBackend:
    """Any thinker with any encoder: a thought is embedded as `query + " " + thought`."""

    def __init__(self, thinker: Thinker, encoder: Encoder) -> None:
        self.thinker = thinker
        self.encoder = encoder

    @property
    def space(self) -> VectorSpace:
        """The encoder's document space."""
        return self.encoder.space

    @property
    def precision(self) -> Precision:
        """The encoder's precision."""
        return self.encoder.precision

    @property
    def default_settings(self) -> Mapping[str, Any]:
        """None of its own: the library's defaults."""
        return {}

    @property
    def thinker_identity(self) -> str | None:
        """The thinker's own name."""
        return self.thinker.identity

    @property
    def encoder_identity(self) -> str | None:
        """The encoder's space and precision."""
        return f"pair:{self.space.to_dict()}:{self.precision.to_dict()}"

    def think(
        self,
        queries: Sequence[str],
        k: int,
        *,
        settings: ThoughtSettings,
        start: int,
        batch_size: int | None,
        histories: Sequence[Conversation] | None = None,
    ) -> Iterator[Thinking]:
        """Ask the thinker, batch by batch."""
        size = batch_size or _AT_ONCE
        for first in range(0, len(queries), size):
            chunk = list(queries[first : first + size])
            said = self._said_before(histories[first : first + size] if histories else ())
            rows = self.thinker.think(chunk, k, settings=settings, start=start, **said)
            if len(rows) != len(chunk) or any(len(row) != k - start for row in rows):
                raise ThinkerError(
                    f"{type(self.thinker).__name__}.think returned {[len(row) for row in rows]} thoughts; "
                    f"expected {k - start} for each of {len(chunk)} queries."
                )
            for place, row in enumerate(rows, first):
                yield Thinking(place=place, start=start, thoughts=row)

    def _said_before(self, histories: Sequence[Conversation]) -> dict[str, Any]:
        """The histories for a thinker; nothing where there are none, as many thinkers know of none."""
        said = several(histories)
        if said and not takes_histories(self.thinker.think):
            raise ThinkerError(
                f"{type(self.thinker).__name__} was given a conversation, and it takes no histories.",
                hint="Add a keyword `histories` (one Conversation for each query), or pass no history.",
            )
        return said

    def embed_queries(
        self, pairs: Sequence[tuple[str, Thought | None]], *, batch_size: int | None
    ) -> Iterator[tuple[int, Vector]]:
        """Embed each query with its thought behind it."""
        texts = [query if thought is None else f"{query} {thought.text}" for query, thought in pairs]
        size = batch_size or _AT_ONCE
        for first in range(0, len(texts), size):
            part = texts[first : first + size]
            rows = self.encoder.embed_queries(part, batch_size=size)
            yield from enumerate(check_vectors(rows, len(part), self._said), first)

    def embed_documents(
        self, texts: Sequence[str], *, batch_size: int | None
    ) -> Iterator[tuple[int, Vector]]:
        """Embed the documents, longest first so that a batch holds texts of similar length."""
        size = batch_size or _AT_ONCE
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]), reverse=True)
        for first in range(0, len(order), size):
            places = order[first : first + size]
            rows = self.encoder.embed_documents([texts[i] for i in places], batch_size=size)
            yield from zip(places, check_vectors(rows, len(places), self._said), strict=True)

    @property
    def _said(self) -> str:
        return f"{type(self.encoder).__name__} returned"


def settings_of(backend: Backend) -> ThoughtSettings:
    """The library's thought settings with what the checkpoint prefers."""
    try:
        return ThoughtSettings().with_changes(**backend.default_settings)
    except SettingsError as error:
        raise CheckpointError(f"The checkpoint's own thought settings cannot be used: {error}") from error
