"""From the options of a command to the embedder that they name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from o1_retriever.cli.options import Dtype, ModelOptions
from o1_retriever.cli.terminal import working
from o1_retriever.errors import ModelNotFoundError, SettingsError, ThinkerError

if TYPE_CHECKING:
    from o1_retriever.embedder import ThinkingEmbedder
    from o1_retriever.query import Query
    from o1_retriever.thought import Thought, ThoughtSettings

MINI = Path("models", "o1-embedder-22m")
CLONE = Path(__file__).resolve().parents[2]


def load_embedder(options: ModelOptions) -> ThinkingEmbedder:
    """The embedder that the options name, loaded.

    Raises `SettingsError` for options that contradict each other, and what loading raises.
    """
    if is_pair(options):
        check_pair(options)
        with working(f"Loading {options.encoder}"):
            _quiet()
            return _pair(options)
    name = model_name(options)
    with working(f"Loading {name}"):
        from o1_retriever.embedder import ThinkingEmbedder

        _quiet()
        return ThinkingEmbedder.from_pretrained(
            name,
            device=options.device,
            dtype=options.dtype.value,
            load_in_4bit=options.four_bit,
            cache=not options.no_cache,
        )


def is_pair(options: ModelOptions) -> bool:
    """Whether the options name a thinker and an encoder, not one model that does both."""
    return any((options.encoder, options.thinker, options.thinker_model))


def model_name(options: ModelOptions) -> str:
    """The folder or Hub id of the model: what was named, else o1-embedder-22m where it lies in a clone.

    Raises `ModelNotFoundError` when nothing was named and o1-embedder-22m is not here.
    """
    named = options.model or os.environ.get("O1_RETRIEVER_MODEL")
    if named:
        return named
    for folder in (MINI, CLONE / MINI):
        if folder.is_dir():
            return str(folder)
    raise ModelNotFoundError(
        f"No model was named, and there is no folder {MINI} here.",
        hint="Type one of: --model FOLDER_OR_HUB_ID, or --encoder NAME --thinker URL --thinker-model NAME, "
        "or --encoder NAME --thinker THOUGHTS.jsonl",
    )


def pair_problem(options: ModelOptions) -> str | None:
    """What keeps a thinker and an encoder from being joined, None if nothing does."""
    try:
        check_pair(options)
    except SettingsError as error:
        return str(error)
    return None


def check_pair(options: ModelOptions) -> None:
    """Raise `SettingsError` for options of a thinker and an encoder that contradict each other."""
    if options.model:
        raise SettingsError(
            "Found --model beside --encoder or --thinker; expected one model that does both, or two parts.",
            hint="Leave out --model, or --encoder and --thinker.",
        )
    if not options.encoder:
        raise SettingsError(
            "Found a thinker without an encoder; expected both.",
            hint="Type: --encoder all-MiniLM-L6-v2, or another sentence-transformers model",
        )
    if options.four_bit or options.dtype is not Dtype.auto:
        raise SettingsError(
            "Found --4bit or --dtype beside --encoder; expected them with --model only.",
            hint="An encoder is loaded as it was saved: leave them out.",
        )
    url = options.thinker is not None and not options.thinker.endswith((".jsonl", ".jsonl.gz"))
    if url and not options.thinker_model:
        raise SettingsError(
            f"The thinker is {options.thinker!r:.80}; expected an endpoint with the name of its model, or a "
            ".jsonl file of recorded thoughts.",
            hint="Type: --thinker http://127.0.0.1:8000/v1 --thinker-model NAME",
        )
    if options.thinker_model and not url:
        raise SettingsError(
            f"Found --thinker-model {options.thinker_model!r:.60} without an endpoint that knows it.",
            hint="Type: --thinker http://127.0.0.1:8000/v1 --thinker-model NAME",
        )


def _pair(options: ModelOptions) -> ThinkingEmbedder:
    from o1_retriever.embedder import ThinkingEmbedder
    from o1_retriever.encoders import SentenceTransformerEncoder

    thinker = _thinker(options)  # first: a file is read faster than a model is loaded
    encoder = SentenceTransformerEncoder(options.encoder, device=options.device)
    return ThinkingEmbedder.from_parts(thinker, encoder, cache=not options.no_cache)


def _thinker(options: ModelOptions) -> Any:
    if options.thinker is None:
        return _Nobody()
    from o1_retriever.thinkers import OpenAIThinker, RecordedThinker

    if options.thinker_model is None:
        return RecordedThinker(options.thinker)
    return OpenAIThinker(options.thinker_model, base_url=options.thinker)


class _Nobody:
    """Stands where no thinker was named: documents and fast searches need none."""

    identity = None

    def think(
        self, queries: Sequence[Query], *, settings: ThoughtSettings, start: int = 0
    ) -> list[list[Thought]]:
        raise ThinkerError(
            "An encoder was named, and nobody to think for it.",
            hint="Type --fast to search without thinking, or --thinker URL --thinker-model NAME, or "
            "--thinker THOUGHTS.jsonl",
        )


def _quiet() -> None:
    """Keep the model library's own reports out of the output; ours say what a user needs to know."""
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
