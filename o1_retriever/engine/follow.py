"""Follow thoughts while they are written, and let go of those that nobody waits for any more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from o1_retriever.thought import Finish, Listener


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


class Spoken(Follower):
    """Hands on what is written as text, whole characters at a time; `start` is the first thought's number."""

    def __init__(self, tokenizer: Any, listener: Listener) -> None:
        self._tokenizer, self._listener = tokenizer, listener
        self._ids: dict[tuple[int, int], list[int]] = {}
        self._texts: dict[tuple[int, int], str] = {}

    def written(self, place: int, index: int, token_ids: Sequence[int], finish: Finish | None) -> None:
        """Decode all that the thought has, as a token alone may be a part of a character or of a word."""
        ids = self._ids.setdefault((place, index), [])
        ids += token_ids
        known = self._texts.get((place, index), "")
        text = self._tokenizer.decode(ids, skip_special_tokens=True).lstrip()
        if finish is None and text.endswith("\ufffd"):
            return  # the rest of the character is to come
        if len(text) > len(known) and text.startswith(known):
            self._texts[place, index] = text
            self._listener(place, index, text[len(known) :])


# Goes along with the call, so that no layer between the listener and the engine has to know of it.
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Have what is written in this thread told to a listener."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def follower(tokenizer: Any) -> Follower | None:
    """Who follows what is written now; None where nobody listens."""
    listener = _listener.get()
    return None if listener is None else Spoken(tokenizer, listener)


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
