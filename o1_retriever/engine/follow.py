"""Follow thoughts while they are written, and let go of those that nobody waits for any more."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any

from o1_retriever.thought import Finish, Listener, Thought, ThoughtPiece


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

    def hears(self, place: int) -> bool:
        """Whether anybody is to be told of the job's tokens before their end; reading them costs time."""
        return type(self).written is not Follower.written


@dataclass(frozen=True, slots=True)
class _Audience:
    """Who follows the queries of a call; `places` are where they stand among all that are followed.

    `hears` says which of the queries the listener is told of; None is all.
    """

    listener: Listener | None = None
    wanted: Callable[[int], bool] | None = None
    hears: Callable[[int], bool] | None = None
    places: Sequence[int] | None = None

    def among(self, places: Sequence[int]) -> _Audience:
        """The same for a call with some of the queries."""
        if self.places is not None:
            places = [self.places[place] for place in places]
        return replace(self, places=places)

    def place(self, place: int) -> int:
        """Where a query of the call stands among all that are followed."""
        return place if self.places is None else self.places[place]


class Awaited(Follower):
    """Lets go of the queries for which nobody waits."""

    def __init__(self, audience: _Audience) -> None:
        self._audience = audience

    def wanted(self, place: int) -> bool:
        """Whether somebody waits."""
        wanted = self._audience.wanted
        return wanted is None or wanted(self._audience.place(place))

    def hears(self, place: int) -> bool:
        """Whether the listener, if there is one, is to be told of this query."""
        hears = self._audience.hears
        return super().hears(place) and (hears is None or hears(self._audience.place(place)))


class Heard(Awaited):
    """Hands on texts as they grow."""

    def __init__(self, listener: Listener, audience: _Audience = _Audience()) -> None:
        super().__init__(audience)
        self._listener = listener
        self._texts: dict[tuple[int, int], str] = {}

    def said(self, place: int, index: int, text: str) -> None:
        """Hand on what is new of all that a thought says by now; nothing where it does not go on from there.

        So a thought that is begun again is not told twice.
        """
        known = self._texts.get((place, index), "")
        if len(text) > len(known) and text.startswith(known):
            self._texts[place, index] = text
            self._listener(self._audience.place(place), index, text[len(known) :])


class Spoken(Heard):
    """Hands on what is written in tokens as text, whole characters at a time."""

    def __init__(self, tokenizer: Any, listener: Listener, audience: _Audience = _Audience()) -> None:
        super().__init__(listener, audience)
        self._tokenizer = tokenizer
        self._ids: dict[tuple[int, int], list[int]] = {}

    def written(self, place: int, index: int, token_ids: Sequence[int], finish: Finish | None) -> None:
        """Decode all that the thought has, as a token alone may be a part of a character or of a word."""
        if not self.hears(place):
            return
        ids = self._ids.setdefault((place, index), [])
        ids += token_ids
        text = self._tokenizer.decode(ids, skip_special_tokens=True).lstrip()
        if finish is not None or not text.endswith("\ufffd"):  # else the rest of the character is to come
            self.said(place, index, text)


# Goes along with the call, so that no layer between the listener and the engine has to know of it.
_audience: ContextVar[_Audience | None] = ContextVar("audience", default=None)


@contextmanager
def listening(
    listener: Listener | None = None,
    *,
    wanted: Callable[[int], bool] | None = None,
    hears: Callable[[int], bool] | None = None,
) -> Iterator[None]:
    """Have what is written in this thread told to a listener, and ask `wanted` who is still waited for.

    Of the queries of one call the listener is told of those for which `hears` is true; None is all.
    """
    with _set(_Audience(listener, wanted, hears)):
        yield


@contextmanager
def among(places: Sequence[int]) -> Iterator[None]:
    """Within it, what is called has those queries of all that are followed, in this order."""
    audience = _audience.get()
    with _set(None if audience is None else audience.among(places)):
        yield


@contextmanager
def unheard() -> Iterator[None]:
    """Within it, nobody listens to what is written; who is waited for stays as it is."""
    audience = _audience.get()
    with _set(None if audience is None else replace(audience, listener=None)):
        yield


@contextmanager
def _set(audience: _Audience | None) -> Iterator[None]:
    token = _audience.set(audience)
    try:
        yield
    finally:
        _audience.reset(token)


def follower(tokenizer: Any, places: Sequence[int] | None = None) -> Follower | None:
    """Who follows what is written now; None where nobody does. `places` are those of the jobs' queries."""
    audience = _audience.get()
    if audience is None:
        return None
    audience = audience if places is None else audience.among(places)
    if audience.listener is None:
        return Awaited(audience)
    return Spoken(tokenizer, audience.listener, audience)


def heard() -> Heard | None:
    """Who listens to the texts that are written now, and is not written for in tokens; None: nobody."""
    audience = _audience.get()
    return None if audience is None or audience.listener is None else Heard(audience.listener, audience)


def still_waited_for() -> Callable[[int], bool]:
    """Whether anybody waits for a query, by its place among those of this call."""
    audience = _audience.get()
    return Follower().wanted if audience is None else Awaited(audience).wanted


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


class _LeftError(Exception):
    """Ends the writing where nobody takes the pieces any more."""


def pieces(think: Callable[[], Sequence[Thought]]) -> Iterator[ThoughtPiece]:
    """What the call writes about one query, while it runs in a thread of its own; at the end its thoughts.

    Raises what the call raises.
    """
    found: SimpleQueue[ThoughtPiece | BaseException | None] = SimpleQueue()
    left = Event()
    told: set[int] = set()

    def wanted(_place: int) -> bool:
        if left.is_set():
            raise _LeftError
        return True

    def listen(_place: int, index: int, text: str) -> None:
        told.add(index)
        found.put(ThoughtPiece(index=index, text=text))

    def write() -> None:
        try:
            with listening(listen, wanted=wanted):
                thoughts = think()
            for index, thought in enumerate(thoughts):
                text = "" if index in told else thought.text
                found.put(ThoughtPiece(index=index, text=text, thought=thought))
            found.put(None)
        except BaseException as error:
            found.put(error)

    def taken() -> Iterator[ThoughtPiece]:
        Thread(target=write, name="o1-retriever-aloud", daemon=True).start()
        try:
            while (piece := found.get()) is not None:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            left.set()

    return taken()
