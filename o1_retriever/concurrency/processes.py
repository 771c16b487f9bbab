"""What a fork leaves to the child, and what is sent to another process.

A forked child has one thread. Locks that another thread held stay locked, what another thread was computing
is never finished, and the threads of OpenMP, on which torch computes, are gone, while the library waits for
them: the first large product of a child would hang for ever. So a model's lock is held while a process forks,
whatever has locks or threads makes them anew in the child, and there torch computes with one thread.

Pickle, `spawn`, pools of processes and frameworks that copy what they are given send how a thing was made,
and never the thing itself. A thinker, an encoder or an index is sent as the arguments it was made with. What
holds a model is made again where it arrives when it is first used, and once a process, however often it is
sent. Copies share it.
"""

from __future__ import annotations

import functools
import inspect
import os
import pickle
import sys
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from o1_retriever.errors import ModelError, NotSendableError

_held: weakref.WeakSet[Any] = weakref.WeakSet()
_taken: list[threading.Lock] = []
_owners: weakref.WeakSet[Renewed] = weakref.WeakSet()
_computed = False


class Renewed:
    """The base of whatever has locks, threads or connections: `renew` makes them, here and in a child."""

    def __init__(self) -> None:
        self.renew()
        _owners.add(self)

    def renew(self) -> None:
        """Begin anew, with free locks, without threads, and without closing what is the parent's."""
        raise NotImplementedError


def held_while_forking(lock: threading.Lock) -> threading.Lock:
    """The lock, which from now on is taken before each fork: no child begins in the middle of what it guards.

    Whoever holds it must neither fork nor wait for another such lock.
    """
    _held.add(lock)
    return lock


def one_thread_in_children() -> None:
    """Say that torch has computed here, so that it must not count on its threads in a forked child."""
    global _computed
    _computed = True


def check_device(device: Any, process: int, model: str) -> None:
    """Raise `ModelError` where a model was loaded on a GPU by process `process`, of which this is a fork."""
    if device.type != "cpu" and process != os.getpid():
        raise ModelError(
            f"{model} was loaded on {device} before this process was forked; a GPU cannot be used on both "
            "sides of a fork.",
            hint="Load it in the child (gunicorn: without --preload), or start processes with "
            "multiprocessing.get_context('spawn').",
        )


def _before() -> None:
    for lock in list(_held):
        lock.acquire()
        _taken.append(lock)


def _release() -> None:
    while _taken:
        _taken.pop().release()


def _in_child() -> None:
    _release()
    for owner in list(_owners):
        owner.renew()
    if _computed:
        # Tokenizers do the same by themselves, with a warning.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        torch = sys.modules["torch"]
        if torch.get_num_threads() > 1:
            torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_release, after_in_child=_in_child)


# So many models that have arrived stay loaded, though nothing holds them: each task of a pool brings its own
# again, and lets go of it in the end.
_KEPT = 4
# These send functions themselves, and not their names.
_SEND_CODE = {"cloudpickle", "dill"}


class Shared:
    """What is not changed once it has been made: its copies are the object itself."""

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: Any) -> Self:
        return self


class Sent(Shared):
    """Is sent as the arguments it was made with, and made again from them where it arrives.

    Pickling it raises `NotSendableError` for an argument that cannot be sent.
    """

    _arguments: dict[str, Any]

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """Note the arguments."""
        made = super().__new__(cls)
        given = inspect.signature(cls.__init__).bind(made, *args, **options).arguments
        made.__dict__["_arguments"] = dict(list(given.items())[1:])
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        self._check_sendable()
        return made_again, (type(self), self._arguments)

    def _check_sendable(self) -> None:
        for name, value in self._arguments.items():
            check_sendable(value, f"The {name} of {type(self).__name__}")


class SentUnmade(Sent):
    """Sent as its arguments; what arrives is made when it is first used."""

    def __reduce__(self) -> tuple[Any, ...]:
        return arrived, super().__reduce__()[1]

    if not TYPE_CHECKING:  # a checker would take every name for one that exists

        def __getattr__(self, name: str) -> Any:
            """What is missing where the object has arrived and was not used yet: it is made now."""
            if name.startswith("__") or not self.__dict__.get("_unmade"):
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            self._make()
            return getattr(self, name)

    def _make(self) -> None:
        with _making.lock:
            if not self.__dict__.get("_unmade"):
                return  # another thread was faster
            made = type(self)(**self._arguments)
            self._check_made(made)
            # What it was copied from may close things when nobody holds it any more.
            self.__dict__.update({**made.__dict__, "_made": made})
            self.__dict__["_unmade"] = False

    def _check_made(self, made: Self) -> None:
        """Raise what is to be raised where it is not what was sent."""


class SentModel(SentUnmade):
    """What holds a model: sent as its arguments, of which `model` names it, and loaded once a process.

    Raises `NotSendableError` where the model was loaded by the caller, and `ModelError` when it is first used
    where other weights have the name that was sent.
    """

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """Note the arguments, with the whole path of a folder."""
        made = super().__new__(cls, *args, **options)
        model = made._arguments.get("model")
        if isinstance(model, str | os.PathLike):
            place = os.path.expanduser(model)  # noqa: PTH111 - a name that no path could have is a name
            if os.path.exists(place):  # noqa: PTH110
                # Where it arrives, the working folder may be another.
                made._arguments["model"] = str(Path(place).absolute())
        return made

    @property
    def weights_hash(self) -> str:
        """What tells its weights from others."""
        raise NotImplementedError

    def __reduce__(self) -> tuple[Any, ...]:
        model = self._arguments.get("model")
        if not isinstance(model, str | os.PathLike):
            raise not_sendable(f"The model of {type(self).__name__}", model, "only its name travels")
        self._check_sendable()
        expected = self.__dict__.get("_expected") or self.weights_hash
        # As bytes: equal ones are the same model, and they can be looked up.
        key = type(self), pickle.dumps(sorted(self._arguments.items())), expected
        _here.setdefault(key, self)
        return arrived_model, key

    def _check_made(self, made: Self) -> None:
        if made.weights_hash != self.__dict__["_expected"]:
            raise ModelError(
                f"{self._arguments['model']} has other weights here than where it was sent from.",
                hint="Send it again, after loading it anew, or name a revision.",
            )


class _Making(Renewed):
    """The lock under which things that have arrived are made."""

    def renew(self) -> None:
        self.lock = threading.RLock()


_making = _Making()
_here: weakref.WeakValueDictionary[Any, SentModel] = weakref.WeakValueDictionary()


def made_again(kind: type[Any], arguments: Mapping[str, Any]) -> Any:
    """The thing, made now."""
    return kind(**arguments)


def arrived(kind: type[SentUnmade], arguments: Mapping[str, Any]) -> Any:
    """The thing, made when it is first used."""
    thing = object.__new__(kind)
    thing.__dict__.update(_arguments=dict(arguments), _unmade=True)
    return thing


def arrived_model(kind: Any, arguments: bytes, expected: str) -> Any:
    """The one that this process has, or one that is loaded when it is first used."""
    here = _here.get((kind, arguments, expected))
    return _arrived_once(kind, arguments, expected) if here is None else here


@functools.lru_cache(maxsize=_KEPT)
def _arrived_once(kind: Any, arguments: bytes, expected: str) -> Any:
    thing = arrived(kind, dict(pickle.loads(arguments)))  # from our own __reduce__  # nosec B301
    thing.__dict__["_expected"] = expected
    _here[kind, arguments, expected] = thing
    return thing


def check_sendable(value: Any, what: str) -> None:
    """Raise `NotSendableError` for what pickle cannot send; `what` begins the message."""
    if _sends_code():
        return
    try:
        pickle.dumps(value)
    except NotSendableError:
        raise
    except Exception as error:  # each library has its own way of refusing
        raise not_sendable(what, value, str(error)) from error


def not_sendable(what: str, value: Any, why: str) -> NotSendableError:
    """The error for something that cannot be sent."""
    return NotSendableError(
        f"{what} is {value!r:.80}, which cannot be sent to another process ({why:.120}).",
        hint="Pass what another process can make too: the folder or name of a model instead of a loaded one, "
        "an address instead of a client, a function at the top of a module instead of a lambda.",
    )


def _sends_code() -> bool:
    """Whether the pickler that asks is one that sends functions themselves: it refuses by itself."""
    frame = inspect.currentframe()
    while frame is not None:
        if _SEND_CODE & set(str(frame.f_globals.get("__name__")).split(".")):
            return True
        frame = frame.f_back
    return False
