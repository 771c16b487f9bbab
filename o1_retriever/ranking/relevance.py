"""One scale for the scores of every kind of search: from 0 to 1, where 1 is the best that there can be.

Cut-offs that people carry from one program to the next (`similarity_cutoff=0.1`, `score_threshold=0.5`) mean
the same thing everywhere. A better hit of one search never has the smaller number.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from o1_retriever.ranking.ranking import DIGITS


def of_score(score: float) -> float:
    """A cosine or a fused score, to the digits that order hits; 0 for what points away from the query."""
    return min(max(round(float(score), DIGITS), 0.0), 1.0)


# From a distance of unit vectors to their cosine, by Chroma's names: its `l2` is the squared distance.
_OF_DISTANCE: dict[str, Callable[[float], float]] = {
    "cosine": lambda distance: 1.0 - distance,
    "ip": lambda distance: 1.0 - distance,
    "l2": lambda distance: 1.0 - distance / 2.0,
}


def cosine_of_distance(collection: Any) -> Callable[[float], float] | None:
    """From the distances of a Chroma collection to cosines; None for a space that has none."""
    stored = collection.configuration_json
    configuration = json.loads(stored) if isinstance(stored, str) else stored
    index = configuration.get("hnsw") or configuration.get("spann") or {}
    return _OF_DISTANCE.get(str(index.get("space", "l2")))
