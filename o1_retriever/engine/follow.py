"""Follow thoughts while they are written, and let go of those that nobody waits for any more."""

from __future__ import annotations

from collections.abc import Sequence

from o1_retriever.thought import Finish


class Follower:
    """Told of every token as it is written, and asked whether a job is still wanted. Override what you need.

    Both methods run in the thread that writes, between two steps of the model: return quickly. What they
    raise ends the call. `place` is the job's place in it, `index` the number of the thought about its prompt.
    """

    def written(self, place: int, index: int, token_ids: Sequence[int], finish: Finish | None) -> None:
        """The tokens that a thought has got since it was last told of; `finish` comes with the last of them.

        One token a call on a CPU, up to eight on a GPU, and none where only the end is told. A thought's
        pieces are in order; those of different thoughts take turns.
        """

    def wanted(self, place: int) -> bool:
        """Whether anybody still waits for the job; asked before each step.

        The rows of a job that is not wanted leave the batch at once, and nothing is handed over for it.
        """
        return True


class Told:
    """What a follower has been told, so that work which is begun again is not told twice."""

    def __init__(self, follower: Follower) -> None:
        self.follower = follower
        self._counts: dict[tuple[int, int], int] = {}
        self._ended: set[tuple[int, int]] = set()

    def tell(self, place: int, index: int, token_ids: Sequence[int], finish: Finish | None = None) -> None:
        """Hand over what is new of a thought; `token_ids` are all that it has."""
        thought = place, index
        known = self._counts.get(thought, 0)
        if thought in self._ended or (len(token_ids) <= known and finish is None):
            return
        self._counts[thought] = max(known, len(token_ids))
        if finish is not None:
            self._ended.add(thought)
        self.follower.written(place, index, tuple(token_ids[known:]), finish)
