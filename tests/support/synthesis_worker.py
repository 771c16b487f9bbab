"""A process that synthesises, to be killed: `python -m tests.support.synthesis_worker PAIRS OUT [SECONDS]`.

Its expert takes some time for every call and says the same about a query whenever it is asked.
"""

from __future__ import annotations

import hashlib
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "training"))

from o1_retriever.thinkers import CallableThinker
from o1_retriever_training.experts import ThinkerExpert
from o1_retriever_training.recipe import Recipe
from o1_retriever_training.synthesize import Options, synthesize


def say(query: str, index: int) -> str | None:
    """A thought of some length, or None for a few."""
    digest = hashlib.blake2b(f"{query} {index}".encode()).hexdigest()
    return None if digest.startswith("0") else f"thought {index} about {query}: " + digest * 20


def main() -> None:
    """Synthesise; the third argument is the pause before each answer, in seconds."""
    pause = float(sys.argv[3]) if len(sys.argv) > 3 else 0.0

    def think(queries: list[str], k: int) -> list[list[str | None]]:
        time.sleep(pause)
        return [[say(query, index) for index in range(k)] for query in queries]

    expert = ThinkerExpert(CallableThinker(think, name="worker"), batch=3)
    synthesize(sys.argv[1], sys.argv[2], experts=expert, recipe=Recipe(), options=Options(show=False))


if __name__ == "__main__":
    main()
