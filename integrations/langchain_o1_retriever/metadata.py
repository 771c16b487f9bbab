"""What a search adds to a document's metadata."""

from __future__ import annotations

from typing import Any

from o1_retriever.index.hits import Hit

ADDED = ("relevance_score", "cosine", "fused_score", "thoughts")


class FoundMetadata(dict[str, Any]):
    """The metadata of a document that was found, with scores that are no part of the document.

    Retrievers that ask several queries, such as `MultiQueryRetriever`, tell by equality whether two of them
    found one document. So two are equal whatever the search has `ADDED`, and equal to the store's own.
    """

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, dict):
            return NotImplemented
        return _own(self) == _own(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None


def _own(metadata: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metadata.items() if key not in ADDED}


def raw_scores(hit: Hit) -> dict[str, float]:
    """The scores of our own search from which the relevance is made."""
    fused = {} if hit.fused_score is None else {"fused_score": hit.fused_score}
    return {"cosine": hit.score, **fused}
