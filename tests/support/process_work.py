"""What other processes do in the tests of processes, and the script that forks after a model has computed."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from o1_retriever import Index, Retriever, ThinkingEmbedder, ThoughtSettings
from o1_retriever.documents import Document
from o1_retriever.engine import load

TEXTS = ["Water vapour condenses on cold glass.", "Yeast makes dough rise."]
QUERY = "Why does glass fog up?"
SHORT = ThoughtSettings(n_thoughts=2, max_new_tokens=6)
HUNG_S = 150  # beyond any work below


def thoughts(queries: list[str], n_thoughts: int) -> list[list[str]]:
    """Thoughts that a function at the top of a module writes."""
    return [[f"{query} {number}" for number in range(n_thoughts)] for query in queries]


def letters(texts: list[str]) -> list[list[float]]:
    """Vectors of two numbers."""
    return [[len(text), text.count("a") + 1] for text in texts]


def query_vector(embedder: ThinkingEmbedder) -> list[float]:
    """The vector of the query, which is thought about."""
    return embedder.embed_query(QUERY, settings=SHORT).vector.tolist()  # type: ignore[no-any-return]


def document_vectors(embedder: ThinkingEmbedder) -> list[list[float]]:
    """The vectors of the texts."""
    return np.asarray(embedder.encode_documents(TEXTS)).tolist()  # type: ignore[no-any-return]


def found(retriever: Retriever) -> list[str]:
    """The ids that a search finds."""
    return [hit.id for hit in retriever.search(QUERY, k=2, settings=SHORT)]


def add(index: Index) -> int:
    """Add a document."""
    return index.add([Document(id="new", text="Rust needs water.")])


def loads_of(embedder: ThinkingEmbedder) -> tuple[int, int, bool]:
    """How often models were loaded here before the embedder is used, and after; was its thought known."""
    before = load.load_model.calls  # type: ignore[attr-defined]
    known = embedder.embed_query(QUERY, settings=SHORT).thoughts[0].cached
    return before, load.load_model.calls, known  # type: ignore[attr-defined]


def count_loads() -> None:
    """Count in this process how often a model is loaded."""
    from o1_retriever.engine import backend

    real = load.load_model

    def counting(*arguments: Any) -> Any:
        counting.calls += 1  # type: ignore[attr-defined]
        return real(*arguments)

    counting.calls = 0  # type: ignore[attr-defined]
    load.load_model = backend.load_model = counting  # type: ignore[assignment]


def in_fork(work: Callable[..., Any], *arguments: Any) -> Any:
    """What `work` returns in a forked child; "hung" when it does not come back."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=_tell, args=(send, work, arguments))
    child.start()
    answer = receive.recv() if receive.poll(HUNG_S) else "hung"
    child.join(HUNG_S)
    if child.is_alive():
        child.kill()
        return "hung at its end"
    return answer


def _tell(send: Any, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        send.send(work(*arguments))
    except BaseException as error:
        send.send(f"{type(error).__name__}: {error}")


def threads_of(embedder: ThinkingEmbedder) -> int:
    """With how many threads torch has computed."""
    import torch

    query_vector(embedder)
    return torch.get_num_threads()


def forks_beside_a_thread(embedder: ThinkingEmbedder) -> list[bool]:
    """Fork again and again while another thread writes thoughts: a child finds no lock that is taken."""
    done = threading.Event()

    def keep_thinking() -> None:
        number = 0
        while not done.is_set():
            number += 1
            embedder.embed_query(f"{QUERY} {number}", settings=SHORT)

    thread = threading.Thread(target=keep_thinking)
    thread.start()
    try:
        return [in_fork(document_vectors, embedder) not in ("hung", "hung at its end") for _ in range(4)]
    finally:
        done.set()
        thread.join()


def make_index(embedder: ThinkingEmbedder, folder: str) -> None:
    """Index the texts."""
    with Index(Path(folder, "index"), embedder) as index:
        index.add([Document(id=str(place), text=text) for place, text in enumerate(TEXTS)])


def main(model: str, folder: str) -> None:
    """Everything that is forked from one process whose torch has computed with two threads."""
    import torch

    torch.set_num_threads(2)
    embedder = ThinkingEmbedder.from_pretrained(model, cache=Path(folder, "cache"))
    in_fork(make_index, embedder, folder)
    retriever = Retriever(embedder, Index(Path(folder, "index"), embedder))
    found_first = in_fork(found, retriever)
    retriever.index.add([Document(id="2", text="Bees dance.")])  # with Chroma, from here on
    here = {
        "query": query_vector(embedder),
        "documents": document_vectors(embedder),
        "found": found(retriever),
    }
    fresh = ThinkingEmbedder(embedder.backend, cache=False)
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
        pooled = list(pool.map(query_vector, [fresh, fresh], timeout=HUNG_S))
    say = {
        "here": here,
        "query": in_fork(query_vector, fresh),
        "documents": in_fork(document_vectors, embedder),
        "found first": found_first,
        "found later": in_fork(found, retriever),
        "written later": in_fork(add, retriever.index),
        "pooled": pooled,
        "beside": forks_beside_a_thread(fresh),
        "threads": in_fork(threads_of, fresh),
        "after": found(retriever),
    }
    sys.stdout.write(json.dumps(say))
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(0)
