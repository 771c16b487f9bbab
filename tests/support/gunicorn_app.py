"""A program for gunicorn with --preload: the model has thought before the workers are forked."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from typing import Any

import torch

from o1_retriever import ThinkingEmbedder
from tests.support.process_work import query_vector

torch.set_num_threads(2)
EMBEDDER = ThinkingEmbedder.from_pretrained(os.environ["MODEL"], cache=False)
EXPECTED = query_vector(EMBEDDER)


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """The vector of a query, that of the parent process, and who answers."""
    say = {"vector": query_vector(EMBEDDER), "expected": EXPECTED, "process": os.getpid()}
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(say).encode()]
