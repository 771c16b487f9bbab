"""Reading files in processes of their own: one that crashes, hangs or fills memory costs itself alone."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import queue
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from o1_retriever.documents.document import Chunking, Document, documents_of
from o1_retriever.documents.readers import suffix_of
from o1_retriever.documents.source import ReadOptions, Source
from o1_retriever.documents.structure import Value
from o1_retriever.errors import DocumentError, MissingExtraError

logger = logging.getLogger(__name__)

# Documents, and characters of them, that travel and wait together.
_PAGE, _PAGE_CHARACTERS = 500, 1_000_000
_PAGES_WAITING = 2  # of one file
# Files for each process that are begun before they are needed: what is read while others are embedded.
_AHEAD = 32
_SERVE = "from o1_retriever.documents.workers import serve; serve()"
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
_PATIENCE_S = 120.0  # without a sign of life
_MEMORY = 2_000_000_000
# Below this, starting processes takes longer than reading, and no reader of these can hang or crash.
_FEW, _SMALL = 100, 300_000
_PACKED = {".pdf", ".docx", ".docm", ".pptx", ".pptm", ".xlsx", ".xlsm", ".odt", ".odp", ".ods", ".epub"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A file to read: where it is, its path inside the folder, and metadata that its documents get."""

    path: str
    source: str
    root: str
    size: int
    metadata: dict[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """Some documents of a file, in order. The last one of a file is `done`, with what there is to say."""

    job: Job
    documents: list[Document] = field(default_factory=list)
    done: bool = False
    digest: str = ""
    notes: tuple[str, ...] = ()
    error: str = ""
    lasting: bool = True  # whether the error will be the same next time


def read_files(
    jobs: Sequence[Job], *, chunking: Chunking, options: ReadOptions, processes: int | None = None
) -> Iterator[Read]:
    """The documents of all files in the order of the jobs, in pieces that fit into memory.

    `processes` None starts as many as there are cores where there is much to read, or anything packed;
    0 reads here.
    """
    many = len(jobs) > _FEW or any(
        job.size > _SMALL or suffix_of(Path(job.path)) in _PACKED or job.path.endswith(".gz") for job in jobs
    )
    count = (min(4, os.cpu_count() or 1) if many else 0) if processes is None else processes
    if count and jobs:
        yield from _Pool(min(count, len(jobs)), chunking, options).read(jobs)
    else:
        for job in jobs:
            yield from read_file(job, chunking, options)


def read_file(job: Job, chunking: Chunking, options: ReadOptions) -> Iterator[Read]:
    """The documents of one file, page by page; the last piece says how it ended."""
    source = Source(Path(job.path), options)
    error, lasting = "", True
    try:
        documents = documents_of(source, job.source, job.root, chunking, job.metadata)
        while page := list(_page(documents)):
            yield Read(job=job, documents=page)
    except DocumentError as problem:
        error = f"{problem.reason} {problem.hint}" if problem.hint else problem.reason
    except MissingExtraError as problem:
        error, lasting = str(problem), False
    except MemoryError:
        error = f"it needs more than {_MEMORY // 1_000_000_000} GB of memory to be read."
    except Exception as problem:  # a stranger's file has found a fault of a reader: the others are still read
        logger.exception("The reader of %s failed.", job.path)
        error = f"its reader failed ({type(problem).__name__}: {' '.join(str(problem).split()):.100})."
    yield Read(
        job=job, done=True, digest=source.digest, notes=tuple(source.notes), error=error, lasting=lasting
    )


def _page(documents: Iterator[Document]) -> Iterator[Document]:
    size = 0
    for document in islice(documents, _PAGE):
        yield document
        size += len(document.text)
        if size > _PAGE_CHARACTERS:
            return


class _Pool:
    """Processes that read, and a thread for each that waits for it."""

    def __init__(self, count: int, chunking: Chunking, options: ReadOptions) -> None:
        self._count = count
        self._setup = (chunking, options)
        self._idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        self._all: list[_Process] = []
        self._stop = threading.Event()

    def read(self, jobs: Iterable[Job]) -> Iterator[Read]:
        """What the processes read, in the order of the jobs."""
        waiting: deque[queue.Queue[Read]] = deque()
        remaining = iter(jobs)
        executor = ThreadPoolExecutor(self._count)
        try:
            for _ in range(self._count):
                process = _Process(self._setup)
                self._all.append(process)
                self._idle.put(process)
            while True:
                for job in islice(remaining, self._count * _AHEAD - len(waiting)):
                    waiting.append(queue.Queue(_PAGES_WAITING))
                    executor.submit(self._work, job, waiting[-1])
                if not waiting:
                    return
                yield from self._pieces(waiting.popleft())
        finally:
            self._stop.set()
            executor.shutdown(wait=False, cancel_futures=True)
            self._kill()
            executor.shutdown()
            self._kill()  # one that was just being started

    def _kill(self) -> None:
        for process in self._all:
            process.kill()

    @staticmethod
    def _pieces(pieces: queue.Queue[Read]) -> Iterator[Read]:
        while not (piece := pieces.get()).done:
            yield piece
        yield piece

    def _work(self, job: Job, pieces: queue.Queue[Read]) -> None:
        process = self._idle.get()
        try:
            for piece in () if self._stop.is_set() else process.read(job):
                self._put(pieces, piece)
        except Exception as problem:  # whoever waits for the last piece must get one
            logger.exception("Reading %s failed.", job.path)
            self._put(pieces, Read(job=job, done=True, error=f"{type(problem).__name__}: {problem}."))
        finally:
            self._idle.put(process)

    def _put(self, pieces: queue.Queue[Read], piece: Read) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                pieces.put(piece, timeout=0.5)
                return


class _Process:
    """One process that reads a file after the other; it is started anew after a file that ended it."""

    def __init__(self, setup: tuple[Chunking, ReadOptions]) -> None:
        self._setup = setup
        self._running: subprocess.Popen[bytes] | None = None

    def _start(self) -> subprocess.Popen[bytes]:
        # No fork, which the threads of torch do not survive, and no import of the user's main module.
        process = subprocess.Popen(  # nothing of it is given  # nosec B603
            [sys.executable, "-c", _SERVE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **_ONE_THREAD, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        assert process.stdin is not None
        pickle.dump(self._setup, process.stdin)
        return process

    def read(self, job: Job) -> Iterator[Read]:
        """The pieces of a file; the last one says so if the process did not survive it."""
        process = self._running = self._running or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        silent = threading.Event()
        try:
            pickle.dump(job, process.stdin)
            process.stdin.flush()
            while True:
                with _ended_after(_PATIENCE_S, process, silent):
                    piece: Read = pickle.load(process.stdout)  # our own process  # nosec B301
                yield piece
                if piece.done:
                    return
        except (EOFError, OSError, pickle.UnpicklingError):
            self.kill()
            error = f"its reader crashed (exit status {process.returncode})."
            if silent.is_set():
                error = f"its reader said nothing for {_PATIENCE_S:.0f} seconds and was ended."
            yield Read(job=job, done=True, error=error)

    def kill(self) -> None:
        """End the process, whatever it does."""
        process, self._running = self._running, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    assert pipe is not None
                    pipe.close()


@contextlib.contextmanager
def _ended_after(seconds: float, process: subprocess.Popen[bytes], silent: threading.Event) -> Iterator[None]:
    def end() -> None:
        silent.set()
        process.kill()

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def serve() -> None:
    """What a process does: read jobs from standard input, write pieces to standard output."""
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between the pieces
    _bound_memory()
    chunking, options = pickle.load(sys.stdin.buffer)  # our own process  # nosec B301
    with contextlib.suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        while True:
            job = pickle.load(sys.stdin.buffer)  # our own process  # nosec B301
            for piece in read_file(job, chunking, options):
                pickle.dump(piece, output)
                output.flush()


def _bound_memory() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):  # where the system knows no limits
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
