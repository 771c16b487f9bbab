"""From the options of a command to the embedder that they name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from o1_retriever.cli.options import ModelOptions
from o1_retriever.cli.terminal import working
from o1_retriever.errors import SettingsError

if TYPE_CHECKING:
    from o1_retriever.embedder import ThinkingEmbedder
    from o1_retriever.query import Query
    from o1_retriever.thinkers import Thinker
    from o1_retriever.thought import Thought, ThoughtSettings

# The pair where nothing is named: small, open, and on the package index for machines without the Hub.
THINKER = "HuggingFaceTB/SmolLM2-135M-Instruct"
ENCODER = "sentence-transformers/all-MiniLM-L6-v2"


def load_embedder(options: ModelOptions) -> ThinkingEmbedder:
    """The embedder that the options name, loaded; a thinker is loaded when it is first asked.

    Raises `SettingsError` for options that contradict each other, and what loading raises.
    """
    from o1_retriever.embedder import ThinkingEmbedder

    name = model_name(options)
    with working(f"Loading {name or encoder_name(options)}"):
        quiet()
        if name is None:
            from o1_retriever.encoders import SentenceTransformerEncoder

            check_pair(options)
            encoder = SentenceTransformerEncoder(encoder_name(options), device=options.device)
            return ThinkingEmbedder.from_parts(LateThinker(options), encoder, cache=not options.no_cache)
        return ThinkingEmbedder.from_pretrained(
            name,
            device=options.device,
            dtype=options.dtype,
            load_in_4bit=options.four_bit,
            cache=not options.no_cache,
        )


def model_name(options: ModelOptions) -> str | None:
    """The folder or Hub id of one model that thinks and embeds; None where a thinker and an encoder do."""
    parts = any((options.encoder, options.thinker, options.thinker_model))
    if options.model and parts:
        raise SettingsError(
            "Found --model beside --encoder or --thinker; expected one model that does both, or two parts.",
            hint="Leave out --model, or --encoder and --thinker.",
        )
    return options.model


def encoder_name(options: ModelOptions) -> str:
    """The encoder of a pair."""
    return options.encoder or ENCODER


def thinker_name(options: ModelOptions) -> str:
    """The thinker of a pair."""
    return options.thinker or THINKER


def thinker_dtype(options: ModelOptions) -> str:
    """The number format of a pair's thinker. Its thoughts are text: no vector hangs on it."""
    return "fastest" if options.dtype == "auto" else options.dtype


def check_pair(options: ModelOptions) -> None:
    """Raise `SettingsError` for options of a thinker and an encoder that contradict each other."""
    from o1_retriever.thinkers import is_address, is_record

    name = thinker_name(options)
    if options.thinker_model and not is_address(name):
        raise SettingsError(
            f"Found --thinker-model {options.thinker_model!r:.60} without an endpoint that knows it.",
            hint="Type: --thinker http://127.0.0.1:8000/v1 --thinker-model NAME",
        )
    if is_record(name) and not Path(name).is_file():
        load_thinker(options)  # says at once that there is no such file


class LateThinker:
    """The thinker that the options name, loaded when first asked: documents and fast searches need none."""

    def __init__(self, options: ModelOptions) -> None:
        self._options = options

    @cached_property
    def _loaded(self) -> Thinker:
        with working(f"Loading {thinker_name(self._options)}"):
            return load_thinker(self._options)

    @property
    def default_settings(self) -> Mapping[str, Any]:
        """How a model is sampled that was not trained by this method; a trained one of a folder as it wants.

        A record samples nothing.
        """
        from o1_retriever.thinkers import is_record
        from o1_retriever.thinkers.local import settings_of_folder

        name = thinker_name(self._options)
        return {} if is_record(name) else settings_of_folder(Path(name).expanduser())

    @property
    def identity(self) -> str | None:
        """The loaded thinker's own."""
        return self._loaded.identity

    def think(
        self, queries: Sequence[Query], *, settings: ThoughtSettings, start: int = 0
    ) -> list[list[Thought]]:
        """Ask the thinker."""
        return self._loaded.think(queries, settings=settings, start=start)


def load_thinker(options: ModelOptions) -> Thinker:
    """The thinker that the options name, loaded."""
    from o1_retriever.thinkers import OpenAIThinker, as_thinker

    quiet()
    name = thinker_name(options)
    if options.thinker_model:
        return OpenAIThinker(options.thinker_model, base_url=name)
    return as_thinker(
        name,
        device=options.device,
        dtype=thinker_dtype(options),
        load_in_4bit=options.four_bit,
    )


def quiet() -> None:
    """Keep the model library's own reports out of the output; ours say what a user needs to know."""
    from transformers import modeling_gguf_pytorch_utils
    from transformers.utils import logging

    unpacking: Any = modeling_gguf_pytorch_utils
    unpacking.tqdm = lambda tensors, **_: tensors  # the one bar that the next lines do not reach
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
