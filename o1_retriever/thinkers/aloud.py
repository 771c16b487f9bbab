"""A call that thinks as an iterator of what it writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from threading import Event, Thread

from o1_retriever.engine.follow import listening
from o1_retriever.thinkers.distinct import AGAIN
from o1_retriever.thought import Thought, ThoughtPiece


class _LeftError(Exception):
    """Ends the writing where nobody takes the pieces any more."""


def pieces(think: Callable[[], Sequence[Thought]]) -> Iterator[ThoughtPiece]:
    """What the call writes about one query, while it runs in a thread of its own; at the end its thoughts.

    Raises what the call raises.
    """
    found: SimpleQueue[ThoughtPiece | BaseException | None] = SimpleQueue()
    left = Event()
    told: set[int] = set()

    def listen(place: int, index: int, text: str) -> None:
        if left.is_set():
            raise _LeftError
        if index >= AGAIN:
            return  # the end brings the better one of two draws
        told.add(index)
        found.put(ThoughtPiece(index=index, text=text))

    def write() -> None:
        try:
            with listening(listen):
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
