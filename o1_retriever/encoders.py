"""Who makes the vectors: a sentence-transformers model, or a function of yours."""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from o1_retriever.concurrency.processes import Sent, SentModel, check_device, one_thread_in_children
from o1_retriever.engine.checkpoint import first_line, hash_signs, wheel_hint, wheel_of
from o1_retriever.errors import EncoderError, ModelError, ModelNotFoundError, SettingsError, require
from o1_retriever.reporting import counted
from o1_retriever.thought import Vector
from o1_retriever.vectors import InSpace, Precision, TokenLimit, VectorSpace, check_vectors

__all__ = ["CallableEncoder", "Encoder", "SentenceTransformerEncoder", "as_encoder"]


logger = logging.getLogger(__name__)

What = Literal["query", "document"]

PROBE = "What is a vector?"
# Tokens of a pass on a CPU: more do not fit a core's cache. A token of English is some four characters.
_TOKENS, _CHARACTERS = 1024, 4
SPECIAL_TOKENS = 8  # more than any tokenizer puts around a text
# Names that models have for the prompt of each kind of text.
_PROMPTS: dict[What, tuple[str, ...]] = {"query": ("query",), "document": ("document", "passage", "corpus")}


@runtime_checkable
class Encoder(InSpace, Protocol):
    """Anything that turns texts into vectors, float32 of shape (texts, dimension), normalised or not."""

    def embed_queries(self, texts: Sequence[str], *, batch_size: int = 32) -> Vector:
        """One vector per query."""
        ...

    def embed_documents(self, texts: Sequence[str], *, batch_size: int = 32) -> Vector:
        """One vector per document."""
        ...


class _Checking(ABC):
    """What the encoders here share: texts go out in a list, and every answer is checked as it comes in."""

    _dimension: int | None = None
    """What the vectors must have, where it is known."""

    @property
    @abstractmethod
    def space(self) -> VectorSpace:
        """Identity of the document space."""

    @abstractmethod
    def _answers(self, what: What, texts: list[str], batch_size: int) -> Iterator[tuple[Any, int]]:
        """For one batch of texts after the other, vectors in any usual form, and the number of texts."""

    def embed_queries(self, texts: Sequence[str], *, batch_size: int = 32) -> Vector:
        """One vector per query; raises `EncoderError` with the position of a bad one."""
        return self._embed("query", list(texts), batch_size)

    def embed_documents(self, texts: Sequence[str], *, batch_size: int = 32) -> Vector:
        """One vector per document; errors as for queries."""
        return self._embed("document", list(texts), batch_size)

    def _embed(self, what: What, texts: list[str], batch_size: int) -> Vector:
        if batch_size < 1:
            raise SettingsError(f"batch_size is {batch_size!r}; expected at least 1.")
        if not texts:
            return np.empty((0, self.space.dimension), dtype=np.float32)
        parts: list[Vector] = []
        first, dimension = 0, self._dimension
        for answer, count in self._answers(what, texts, batch_size):
            returned = f"{self!r} returned for {counted(count, 'text')}"
            parts.append(check_vectors(answer, count, returned, first=first, dimension=dimension))
            first, dimension = first + count, parts[-1].shape[1]
        return np.concatenate(parts)


class CallableEncoder(Sent, _Checking):
    """A function of yours: `documents(texts)` returns one vector per text (list, numpy array or tensor).

    `queries` is the one for queries (None: the same). `name` stands for the vector space: give it another
    one when the function makes other vectors, or old indexes will be searched with them.

    Raises `SettingsError` for something that is no function, or no name.
    """

    # What arrives is float32; where it is computed is the function's own affair.
    precision = Precision(dtype="float32", device="unknown")

    def __init__(
        self,
        documents: Callable[[list[str]], Any],
        queries: Callable[[list[str]], Any] | None = None,
        *,
        name: str,
    ) -> None:
        for function in (documents, queries or documents):
            if not callable(function) or isinstance(function, type):
                raise SettingsError(f"Found {function!r:.80}; expected a function from texts to vectors.")
        if not isinstance(name, str) or not name.strip():
            raise SettingsError(f"The encoder's name is {name!r:.60}; expected some text.")
        self._functions = {"document": documents, "query": queries or documents}
        self._name = name

    def __repr__(self) -> str:
        return f"CallableEncoder(name={self._name!r})"

    @property
    def space(self) -> VectorSpace:
        """The name and the dimension; before the first vector, a probe finds the dimension."""
        if self._dimension is None:
            self.embed_documents([PROBE])
        assert self._dimension is not None
        return VectorSpace(
            weights=self._name, layout="callable", pooling="callable", dimension=self._dimension
        )

    def _embed(self, what: What, texts: list[str], batch_size: int) -> Vector:
        vectors = super()._embed(what, texts, batch_size)
        self._dimension = vectors.shape[1]
        return vectors

    def _answers(self, what: What, texts: list[str], batch_size: int) -> Iterator[tuple[Any, int]]:
        for first in range(0, len(texts), batch_size):
            batch = texts[first : first + batch_size]
            try:
                answer = self._functions[what](list(batch))
            except Exception as error:
                raise EncoderError(f"{self!r} failed: {type(error).__name__}: {error}") from error
            yield answer, len(batch)


class _CheckedEncoder(Sent, _Checking):
    """An encoder that somebody else wrote."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def __repr__(self) -> str:
        return type(self.encoder).__name__

    @property
    def space(self) -> VectorSpace:
        """The encoder's own."""
        return self.encoder.space

    @property
    def precision(self) -> Precision:
        """The encoder's own."""
        return self.encoder.precision

    @property
    def token_limit(self) -> TokenLimit | None:
        """The encoder's own, where it says so."""
        return getattr(self.encoder, "token_limit", None)

    def _answers(self, what: What, texts: list[str], batch_size: int) -> Iterator[tuple[Any, int]]:
        embed = self.encoder.embed_queries if what == "query" else self.encoder.embed_documents
        yield embed(texts, batch_size=batch_size), len(texts)


def as_encoder(value: Any) -> Encoder:
    """An encoder from what users have: an encoder, a `SentenceTransformer` or its name, or a function.

    A function goes by its module and name. Raises `SettingsError` for anything else, and for a function
    without a name of its own, which could not be told from the next one.
    """
    if isinstance(value, str | os.PathLike) or is_sentence_transformer(value):
        return SentenceTransformerEncoder(value)
    if not isinstance(value, type):
        if isinstance(value, Encoder):
            return value if isinstance(value, _Checking) else _CheckedEncoder(value)
        if callable(value):
            return CallableEncoder(value, name=_own_name(value))
    raise SettingsError(
        f"The encoder is {value!r:.80}; expected an encoder, a SentenceTransformer, its name, or a function."
    )


def _own_name(function: Any) -> str:
    name = getattr(function, "__qualname__", "<lambda>")
    if "<lambda>" in name:
        raise SettingsError(
            f"The encoder {function!r:.80} has no name that its vectors could go by.",
            hint="Pass CallableEncoder(function, name=...).",
        )
    return f"{function.__module__}.{name}"


class SentenceTransformerEncoder(SentModel, _Checking):
    """A sentence-transformers model: a loaded one, a folder, or a hub id (of safetensors weights).

    Queries and documents get the prompts that the model itself has for them, and the first call of each kind
    with texts that are longer than the model reads says so. `device` (None: the best
    one there is), `dtype` and `trust_remote_code` are for loading; a model that is loaded here gets its
    weights laid out for the processor's kernels, and can then be run but not saved. `name` stands for the
    weights of a model that has no torch weights to hash (another backend).

    `dtype` None leaves the weights as they are stored, mostly in float32. "bfloat16" is three times as fast
    on a processor that multiplies in it, and moves vectors a little (docs/engine.md); "float32", "float16",
    and for a CPU "int8" or "fastest", are as in `ThinkingEmbedder.from_pretrained`.

    Raises `MissingExtraError` without the `local` extra, `ModelNotFoundError` and
    `ModelError` for a model that cannot be loaded.
    """

    def __init__(
        self,
        model: Any,
        *,
        device: str | None = None,
        dtype: str | None = None,
        trust_remote_code: bool = False,
        name: str | None = None,
    ) -> None:
        from o1_retriever.engine.weights import device_named, dtype_named, pack

        loads, in_8_bits = isinstance(model, str | os.PathLike), False
        if loads:
            numbers: Any = None
            if dtype is not None:
                numbers, in_8_bits = dtype_named(dtype, device_named(device))
            model = _load(os.fspath(model), device, numbers, trust_remote_code)
        elif device is not None or dtype is not None:
            given, how = ("device", device) if dtype is None else ("dtype", f"torch.{dtype}")
            raise SettingsError(f"A loaded model was passed with a {given}.", hint=f"Type: model.to({how})")
        elif not is_sentence_transformer(model):
            raise SettingsError(
                f"Found a {type(model).__name__}; expected a SentenceTransformer or its name."
            )
        self.model = model
        self._name, self._process = name, os.getpid()
        one_thread_in_children()
        self._warned: set[str] = set()
        inner = getattr(model[0], "auto_model", None)
        if loads and inner is not None and self.weights_hash:  # the weights' hash is taken first
            pack(inner, int8=in_8_bits)
            if model.device.type == "cpu":
                self._round_widths()

    def __repr__(self) -> str:
        return type(self).__name__

    def _round_widths(self) -> None:
        """Pad batches to a few widths: for each new number of tokens torch keeps kernels, of 0.5 MB in all.

        None is wider than the longest text that the model reads.
        """
        from o1_retriever.engine.passes import WIDTHS

        text = {"pad_to_multiple_of": math.gcd(self._max_tokens or 1, WIDTHS)}
        settings = getattr(self.model[0], "processing_kwargs", None) or {}
        self.model[0].processing_kwargs = {**settings, "text": {**text, **settings.get("text", {})}}

    @functools.cached_property
    def weights_hash(self) -> str:
        """The weights' signs, or the name that stands for them."""
        return self._name or hash_signs(self.model)

    @property
    def space(self) -> VectorSpace:
        """The weights' signs, the prompts, the modules behind the model, the dimension and the length."""
        prompts = {"query": self._prompt("query"), "document": self._prompt("document")}
        dimension = self.model.get_embedding_dimension()
        if not dimension:
            dimension = self.model.encode_document([PROBE], show_progress_bar=False).shape[1]
        return VectorSpace(
            weights=self.weights_hash,
            layout=json.dumps({"sentence-transformers": prompts}, sort_keys=True),
            pooling=" + ".join(_describe(module) for module in self.model),
            dimension=int(dimension),
            max_tokens=self._max_tokens,
        )

    @property
    def precision(self) -> Precision:
        """dtype and device of the model's weights, and how they are quantised."""
        from o1_retriever.engine.weights import precision_of

        weights = next(self.model.parameters(), None)
        inner = getattr(self.model[0], "auto_model", None)
        if weights is not None and inner is not None:
            return replace(precision_of(inner), device=str(self.model.device))
        dtype = "float32" if weights is None else str(weights.dtype).removeprefix("torch.")
        return Precision(dtype=dtype, device=str(self.model.device))

    def _answers(self, what: What, texts: list[str], batch_size: int) -> Iterator[tuple[Any, int]]:
        check_device(self.model.device, self._process, repr(self))
        # Said once for each kind of text: a collection comes in many calls, and counting is not free.
        long = 0 if what in self._warned else self._count_long(texts, self._prompt(what))
        if long:
            self._warned.add(what)
            logger.warning(
                "%d of %s %s longer than %s tokens: the rest of each is not embedded (said once).",
                long,
                counted(len(texts), "text"),
                "is" if long == 1 else "are",
                self._max_tokens,
            )
        encode = self.model.encode_query if what == "query" else self.model.encode_document
        yield self._encoded(texts, encode, batch_size), len(texts)

    def _encoded(self, texts: list[str], encode: Callable[..., Any], batch_size: int) -> Any:
        """On a CPU batches of about as many tokens as fit a core's cache: long texts a few at a time."""
        from o1_retriever.engine.passes import batch_done, by_tokens
        from o1_retriever.engine.threads import side_by_side

        plain = {"show_progress_bar": False, "convert_to_numpy": True}
        if self.model.device.type != "cpu" or len(texts) == 1:
            return encode(texts, batch_size=batch_size, **plain)
        limit = self._max_tokens or sys.maxsize
        lengths = [min(limit, len(text) // _CHARACTERS + 2) for text in texts]
        batches = list(by_tokens(lengths, _TOKENS, batch_size))

        def encoded(batch: list[int]) -> Any:
            rows = encode([texts[place] for place in batch], batch_size=len(batch), **plain)
            batch_done(self.model.device)
            return rows

        if self._remembers or len(batches) < 2:
            parts = [encoded(batch) for batch in batches]
        else:
            self.model.preprocess(texts[:1])  # sets the tokenizer up, which several threads must not
            parts = side_by_side(encoded, batches)
        return np.concatenate(parts)[np.argsort([place for batch in batches for place in batch])]

    @functools.cached_property
    def _remembers(self) -> bool:
        """Whether a pass may leave something in the model, so that two at once could spoil each other.

        Code of others may, and positions whose scale follows the length of the texts do.
        """
        inner = getattr(self.model[0], "auto_model", None)
        config = getattr(inner, "config", None)
        rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
        known = all(type(each).__module__.startswith("sentence_transformers.") for each in self.model)
        return (
            not known
            or not type(inner).__module__.startswith("transformers.")
            or any(scale in str(rope) for scale in ("dynamic", "longrope"))
        )

    def _prompt(self, what: What) -> str:
        """What the model puts before a text: the first prompt of that name, else its default one."""
        prompts: dict[str, str] = self.model.prompts
        named = next((prompts[name] for name in _PROMPTS[what] if name in prompts), None)
        default = prompts.get(self.model.default_prompt_name or "")
        return (default if named is None else named) or ""

    @property
    def _max_tokens(self) -> int | None:
        limit = self.model.max_seq_length
        # Some tokenizers say 10**30 for "unlimited".
        return int(limit) if limit is not None and limit < 2**31 else None

    @property
    def token_limit(self) -> TokenLimit | None:
        """How long a document may be, beside its prompt, before its end is not embedded."""
        tokenizer: Any = getattr(self.model[0], "tokenizer", None)
        if self._max_tokens is None or not hasattr(tokenizer, "backend_tokenizer"):
            return None
        prompt = len(tokenizer(self._prompt("document"), add_special_tokens=False)["input_ids"])
        return TokenLimit.of(tokenizer, self._max_tokens - prompt - tokenizer.num_special_tokens_to_add())

    def _count_long(self, texts: list[str], prompt: str) -> int:
        """How many texts are cut. A token stands for one byte at least, so that short texts need no look."""
        import transformers

        limit = self._max_tokens
        tokenizer = getattr(self.model[0], "tokenizer", None)
        if limit is None or not isinstance(tokenizer, transformers.PreTrainedTokenizerBase):
            return 0
        doubtful = [text for text in texts if len(f"{prompt}{text}".encode()) + SPECIAL_TOKENS > limit]
        if not doubtful:
            return 0
        tokens = tokenizer([prompt + text for text in doubtful], truncation=False, verbose=False)["input_ids"]
        return sum(len(ids) > limit for ids in tokens)


def _load(name: str, device: str | None, dtype: Any, trust_remote_code: bool) -> Any:
    package = require("sentence_transformers", extra="local", purpose="A sentence-transformers encoder")
    path = Path(name).expanduser()
    if not path.is_dir() and (path.is_absolute() or name.startswith((".", "~"))):
        raise ModelNotFoundError(f"There is no folder {name}; expected a sentence-transformers model.")
    try:
        return package.SentenceTransformer(
            str(path if path.is_dir() else wheel_of(name) or name),
            device=device,
            trust_remote_code=trust_remote_code,
            model_kwargs={"use_safetensors": True} | ({} if dtype is None else {"dtype": dtype}),
        )
    except OSError as error:
        raise ModelNotFoundError(
            f"The encoder {name!r} cannot be loaded: {first_line(error)}",
            hint=wheel_hint(name)
            or "Pass a folder or hub id of a sentence-transformers model with safetensors weights.",
        ) from error
    except (ValueError, KeyError, ImportError, RuntimeError) as error:
        raise ModelError(f"The encoder {name!r} cannot be loaded: {first_line(error)}") from error


def _describe(module: Any) -> str:
    mode = getattr(module, "pooling_mode", None)
    mode = "" if mode is None else f"({mode if isinstance(mode, str) else '+'.join(mode)})"
    return f"{type(module).__name__}{mode}"


def is_sentence_transformer(value: Any) -> bool:
    """Whether `value` is a loaded model, found out without importing the package."""
    package = sys.modules.get("sentence_transformers")  # not loaded: nobody can have made one
    return package is not None and isinstance(value, package.SentenceTransformer)
