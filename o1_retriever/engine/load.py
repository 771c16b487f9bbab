"""Find a checkpoint, check that it can think and embed, and load it.

Every causal language model comes in through `load_causal_lm`: the one that answers queries, the expert that
writes training data, and the base that is trained or merged.
"""

from __future__ import annotations

import logging
import os
import struct
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from o1_retriever.concurrency.processes import (
    Renewed,
    check_device,
    held_while_forking,
    not_sendable,
    one_thread_in_children,
)
from o1_retriever.engine.checkpoint import (
    Stored,
    base_of,
    check_room,
    explain_gguf,
    find_checkpoint,
    first_line,
    gguf_parsed_once,
    hash_files,
    hash_signs,
    is_adapter,
    read_stored,
)
from o1_retriever.engine.layers import lay_out
from o1_retriever.engine.template import (
    CONFIG_NAME,
    ChatTemplate,
    Messages,
    PlainText,
    Template,
    TemplateConfig,
    detect_layout,
)
from o1_retriever.engine.weights import (
    device_named,
    dtype_named,
    keep_float32,
    nf4_config,
    precision_of,
    quieten_bitsandbytes,
    with_adapter,
)
from o1_retriever.errors import CheckpointError, SettingsError, require
from o1_retriever.reporting import counted
from o1_retriever.vectors import Precision

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

Made = TypeVar("Made")
_LARGEST_SIZE = 1 << 24  # of a config: more layers, numbers of a state or tokens than any model has


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How a checkpoint is loaded: see `ThinkingEmbedder.from_pretrained`.

    `dtype` "auto" is bfloat16 on a GPU, or float16 where that is all the card has. A model that only `writes`
    is "fastest" in other numbers than one that embeds too.
    """

    device: str | None = None
    dtype: str = "auto"
    load_in_4bit: bool = False
    trust_remote_code: bool = False
    revision: str | None = None
    instruction: str | None = None
    writes: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class LocalModel:
    """A causal language model with its tokenizer and template, ready to think and to embed.

    `lock` lets threads take turns on the model, one pass at a time. `made` has what calls leave for the next.
    """

    name: str
    model: Any
    template: PlainText
    weights: str
    stop_ids: tuple[int, ...]
    lock: threading.Lock = field(default_factory=threading.Lock)
    process: int = field(default_factory=os.getpid, init=False)
    made: dict[Any, Any] = field(default_factory=dict, init=False)

    def once(self, make: Callable[[LocalModel], Made]) -> Made:
        """What `make` makes of this model: made at the first call, and kept as long as the model."""
        if make not in self.made:
            self.made[make] = make(self)
        made: Made = self.made[make]
        return made

    def check_process(self) -> None:
        """Raise `ModelError` in a fork of the process that loaded it onto a GPU."""
        check_device(self.device, self.process, self.name)

    def __reduce__(self) -> tuple[Any, ...]:
        raise not_sendable(f"The model {self.name}", self.model, "its weights stay where they are")

    @cached_property
    def precision(self) -> Precision:
        """dtype, quantisation and device of the weights."""
        return precision_of(self.model)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device  # type: ignore[no-any-return]

    @property
    def vocabulary(self) -> int:
        """Length of the logits."""
        return int(self.model.config.get_text_config().vocab_size)

    @property
    def dimension(self) -> int:
        """Length of an embedding: the model's hidden size."""
        return int(self.model.config.get_text_config().hidden_size)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Loaded:
    """A causal language model and its tokenizer as they were saved, on their device and in their type.

    `int8` says that the weights are to be quantised when they are laid out for the processor. `adapter` is
    the folder of the low-rank adapter that was added to the weights.
    """

    folder: Path
    model: Any
    tokenizer: Any
    quantized: bool
    int8: bool
    gguf: str | None = None
    adapter: Path | None = None

    @property
    def weights(self) -> str:
        """A hash of the files."""
        own = hash_files(self.folder, self.gguf)
        return own if self.adapter is None else f"{own} adapter {hash_files(self.adapter)}"

    def lay_out(self) -> None:
        """Lay the weights out for the processor; from then on they can be run, and not be hashed or saved."""
        if not self.quantized:
            lay_out(self.model, int8=self.int8)


def load_causal_lm(
    name: str | os.PathLike[str],
    options: LoadOptions,
    *,
    tokenizer: Path | None = None,
    attention: str | None = None,
    purpose: str = "Loading in 4 bits",
) -> Loaded:
    """Read a causal language model from a folder or the Hub (safetensors only).

    An adapter is added to the base that it names, and brings its tokenizer or its chat template. `tokenizer`
    is the folder of another tokenizer than the model's own, `attention` transformers' name of a kernel,
    `purpose` what needs the `4bit` extra, for the message where it is missing. Raises `ModelNotFoundError`
    when there is nothing to load and `CheckpointError` when it is no causal language model, or not all of
    one.
    """
    folder, gguf = find_checkpoint(os.fspath(name), revision=options.revision)
    adapter = folder if is_adapter(folder) else None
    if adapter is not None:
        _check_adapter(adapter, options)
        read_stored(adapter)  # one that was cut is said
        tokenizer = tokenizer or (adapter if (adapter / "tokenizer.json").is_file() else None)
        folder, gguf = find_checkpoint(base_of(adapter))
    given: dict[str, Any] = {"attention": attention, "purpose": purpose, "adapter": adapter}
    if gguf is None:
        return _load(os.fspath(name), folder, options, tokenizer=tokenizer, **given)
    require("gguf", extra="local", purpose="Reading a .gguf file")
    with gguf_parsed_once():
        return _load(os.fspath(name), folder, options, tokenizer=tokenizer, gguf=gguf, **given)


def _load(
    name: str,
    folder: Path,
    options: LoadOptions,
    *,
    gguf: str | None = None,
    adapter: Path | None,
    tokenizer: Path | None,
    attention: str | None,
    purpose: str,
) -> Loaded:
    """The model of a folder, or of a `.gguf` file in it, with its adapter."""
    stored = read_stored(folder) if gguf is None else None
    trust: dict[str, Any] = {"trust_remote_code": options.trust_remote_code}
    if gguf is not None:
        trust["gguf_file"] = gguf
    config, words = read_config(folder, tokenizer=tokenizer, **trust)
    _check_causal(folder, config)
    _check_sizes(folder, config)
    _check_known(folder, config)
    quieten_bitsandbytes()
    import torch

    device = device_named(options.device, in_4bit=options.load_in_4bit)
    dtype, int8 = dtype_named(options.dtype, device, writes=options.writes)
    if options.load_in_4bit and options.dtype in ("int8", "fastest"):
        raise SettingsError(f"Found load_in_4bit=True and dtype={options.dtype!r}; expected one of the two.")
    # Rounded before the sum, a low-rank change would be lost.
    read_as = torch.float32 if adapter else dtype
    weighed = stored or Stored(kinds={"F32": _parameters(config)}, bytes=0)
    # Those of 8 bits have others beside them, or come from float32.
    chosen = "nf4" if options.load_in_4bit else "float32" if int8 else str(read_as).removeprefix("torch.")
    check_room(name, weighed, chosen, device)
    arguments: dict[str, Any] = {"dtype": read_as, "config": config, **trust}
    if attention is not None:
        arguments["attn_implementation"] = attention
    if options.load_in_4bit:
        arguments["quantization_config"] = nf4_config(purpose=purpose)
        arguments["device_map"] = {"": device}
    model = _read_weights(folder, arguments)
    if gguf is not None and hasattr(model.config, "quantization_config"):
        del model.config.quantization_config  # unpacked, so that nothing of it is quantised any more
    quantized = getattr(model.config, "quantization_config", None) is not None
    if quantized:
        keep_float32(model)
    else:
        model = model.to(device)
    if adapter is not None:
        if len(words) > len(model.get_input_embeddings().weight):
            model.resize_token_embeddings(len(words), mean_resizing=False)
        model = with_adapter(model, adapter).to(dtype)
        _take_chat_template(words, adapter)
    known: dict[str, Any] = {"folder": folder, "gguf": gguf, "adapter": adapter}
    return Loaded(model=model, tokenizer=words, quantized=quantized, int8=int8, **known)


def _check_adapter(folder: Path, options: LoadOptions) -> None:
    if options.load_in_4bit:
        raise SettingsError(
            f"{folder} is an adapter, which is added to weights that are whole, and load_in_4bit is on.",
            hint="Merge it first: o1-retriever publish FOLDER --help",
        )


def _take_chat_template(tokenizer: Any, adapter: Path) -> None:
    path = adapter / "chat_template.jinja"
    if path.is_file():
        tokenizer.chat_template = path.read_text(encoding="utf-8")


def read_config(folder: str | Path, *, tokenizer: Path | None = None, **trust: Any) -> tuple[Any, Any]:
    """The config and the tokenizer of a checkpoint, without its weights. Raises `CheckpointError`."""
    from transformers import AutoConfig, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(folder, **trust)
        return config, AutoTokenizer.from_pretrained(tokenizer or folder, **trust)
    except (OSError, ValueError, RecursionError, KeyError, TypeError, IndexError, struct.error) as error:
        if "gguf_file" in trust:
            raise explain_gguf(folder / trust["gguf_file"], first_line(error)) from error
        raise CheckpointError(
            f"{folder} has a config or tokenizer that cannot be loaded: {first_line(error)}.",
            hint="Pass trust_remote_code=True if it needs its own code and you have read that code."
            if "trust_remote_code" in str(error)
            else None,
        ) from error


def read_template(folder: Path, tokenizer: Any) -> TemplateConfig:
    """How a checkpoint wants its prompts, else in the layout that its special tokens tell."""
    path = folder / CONFIG_NAME
    if path.is_file():
        return TemplateConfig.from_file(path)
    layout = detect_layout(tokenizer)
    logger.info("%s has no %s; its special tokens are those of the %s layout", folder, CONFIG_NAME, layout)
    return TemplateConfig(layout=layout)


def _read_weights(folder: Path, arguments: dict[str, Any]) -> Any:
    import torch
    import transformers
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    if "gguf_file" in arguments:
        # Newer versions of transformers keep the weights in their blocks where they are not told to unpack.
        unpacked = getattr(transformers, "GgufConfig", None)
        if unpacked is not None:
            arguments["quantization_config"] = unpacked(dequantize=True)
    else:
        arguments["use_safetensors"] = True
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **arguments)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise CheckpointError(f"{folder} could not be loaded: {first_line(error)}.") from error
    model, report = loaded
    missing = sorted(report.get("missing_keys") or ())
    if missing:
        raise CheckpointError(
            f"{folder} lacks {counted(len(missing), 'weight')} of a {type(model).__name__}, "
            f"for example {missing[0]}; expected a complete causal language model.",
            hint="Save the whole model, language-model head included, with model.save_pretrained(folder).",
        )
    return model


def load_model(name: str | Path, options: LoadOptions) -> LocalModel:
    """Load a thinking embedder from a folder or the Hub, with its weights laid out for the processor.

    Raises what `load_causal_lm` raises, and `CheckpointError` when the tokenizer lacks our special tokens.
    """
    loaded = load_causal_lm(name, options)
    local = assemble(
        str(name),
        loaded.model,
        loaded.tokenizer,
        template_config=read_template(loaded.adapter or loaded.folder, loaded.tokenizer),
        instruction=options.instruction,
        weights=loaded.weights,
    )
    loaded.lay_out()
    return local


def assemble(
    name: str,
    model: Any,
    tokenizer: Any,
    *,
    template_config: TemplateConfig | None = None,
    instruction: str | None = None,
    weights: str | None = None,
) -> LocalModel:
    """A thinking embedder of a loaded model and its tokenizer, whose layout its special tokens tell."""
    config = template_config or TemplateConfig(layout=detect_layout(tokenizer))
    template = Template(tokenizer, config, positions=positions_of(model), instruction=instruction)
    return _joined(name, model, template, weights)


def assemble_writer(
    name: str,
    model: Any,
    tokenizer: Any,
    *,
    shared: Messages = (),
    reasons: bool = False,
    weights: str | None = None,
) -> LocalModel:
    """A loaded model and its tokenizer that write and do not embed, prompted through its chat template.

    `shared` are the messages that all prompts begin with; `reasons` lets it reason before it answers.
    """
    chat = ChatTemplate(tokenizer, shared=shared, reasons=reasons, positions=positions_of(model))
    return _joined(name, model, chat, weights)


def _joined(name: str, model: Any, template: PlainText, weights: str | None) -> LocalModel:
    """Check that a model and its tokenizer fit each other, and join them."""
    tokenizer = template.tokenizer
    _check_causal(name, model.config)
    # Wrappers of adapters have the weight of an embedding, but not its other attributes.
    rows = len(model.get_input_embeddings().weight)
    if len(tokenizer) > rows:
        raise CheckpointError(
            f"{name} has {rows} token embeddings and a tokenizer of {len(tokenizer)} tokens; expected at "
            "least as many embeddings as tokens.",
            hint="Call model.resize_token_embeddings(len(tokenizer)) before saving the checkpoint.",
        )
    model.eval()
    one_thread_in_children()
    lock = _locks.of(model)
    return LocalModel(
        name=name,
        model=model,
        template=template,
        weights=weights or hash_signs(model),
        stop_ids=stop_ids(model, template),
        lock=lock,
    )


def positions_of(model: Any) -> int | None:
    """How many positions a model has, None where it does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


class _Locks(Renewed):
    """One lock for a model, not for each embedder made of it: a pass changes the model while it runs."""

    def __init__(self) -> None:
        self._locks: weakref.WeakKeyDictionary[Any, threading.Lock] = weakref.WeakKeyDictionary()
        super().__init__()

    def renew(self) -> None:
        """The locks of models stay: they are held while a process forks, and free in the child."""
        self._guard = threading.Lock()

    def of(self, model: Any) -> threading.Lock:
        """The lock of a model."""
        with self._guard:
            return self._locks.setdefault(model, held_while_forking(threading.Lock()))


_locks = _Locks()

_ENCODERS = {"bert", "roberta", "xlm-roberta", "electra", "camembert", "roformer", "rembert"}


def _check_known(name: str | Path, config: Any) -> None:
    """That transformers, or code that came with the checkpoint, has such a model that writes."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    if config.model_type not in KNOWN and not getattr(config, "auto_map", None):
        raise CheckpointError(
            f"{name} is a {config.model_type} model; expected a causal language model, such as a Llama, "
            "Qwen, Gemma, Mistral or Phi.",
            hint="An encoder is the second part: ThinkingEmbedder.from_parts(thinker, encoder).",
        )


def _parameters(config: Any) -> int:
    """How many weights a model of that shape has."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        empty: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    return sum(weights.numel() for weights in empty.parameters())


def _check_causal(name: str | Path, config: Any) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise CheckpointError(
            f"{name} is a {config.model_type} model with an encoder and a decoder; expected a causal "
            "language model, which is a decoder alone."
        )
    if config.model_type in _ENCODERS and not getattr(config.get_text_config(), "is_decoder", True):
        raise CheckpointError(
            f"{name} is a bidirectional {config.model_type} encoder; expected a causal language model.",
            hint="Use it as an encoder: ThinkingEmbedder.from_parts(thinker, encoder).",
        )


def _check_sizes(name: str | Path, config: Any) -> None:
    """Raise `CheckpointError` for sizes that no model has, which transformers takes as they come."""
    text = config.get_text_config()
    for size in ("num_hidden_layers", "hidden_size", "vocab_size"):
        found = getattr(text, size, 1)
        if not isinstance(found, int) or not 1 <= found <= _LARGEST_SIZE:
            raise CheckpointError(
                f"{name} has a config with {size} {found!r:.60}; expected a whole number from 1 to "
                f"{_LARGEST_SIZE:,}."
            )


def stop_ids(model: Any, template: PlainText) -> tuple[int, ...]:
    """Ids that end a thought: the template's own and those that the model itself names."""
    # A chat model's generation config may list several ends; each closes a thought.
    listed = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = listed if isinstance(listed, list) else [] if listed is None else [listed]
    rows = int(model.config.get_text_config().vocab_size)  # some configs name an end that is not there
    return tuple(sorted({template.eos, *template.stops, *(int(i) for i in ids if int(i) < rows)}))
