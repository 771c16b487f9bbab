"""Find a checkpoint, check that it can think and embed, and load it."""

from __future__ import annotations

import logging
import threading
import weakref
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from o1_retriever.engine.checkpoint import find_folder, first_line
from o1_retriever.engine.precision import (
    device_named,
    dtype_named,
    keep_float32,
    nf4_config,
    precision_of,
)
from o1_retriever.engine.template import CONFIG_NAME, Template, TemplateConfig, detect_layout
from o1_retriever.engine.weights import hash_files, hash_signs
from o1_retriever.errors import CheckpointError, SettingsError
from o1_retriever.vectors import Precision

if TYPE_CHECKING:
    import torch

    from o1_retriever.engine.prefill import Prefix
    from o1_retriever.engine.steps import Shared

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How a checkpoint is loaded.

    `device` None takes CUDA when there is one, else the CPU. `dtype` "auto" is float32 on a CPU and bfloat16
    (or float16, where that is all the card has) on a GPU; "int8" quantises the linear layers for a processor,
    and "fastest" takes bfloat16 or int8 where this processor is faster with it. `load_in_4bit` quantises to
    NF4 with double quantisation (extra `4bit`). `trust_remote_code` runs Python that comes with a checkpoint:
    leave it False for what you have not read. `instruction` follows `<query>` in every query; None takes the
    checkpoint's own, "" none.
    """

    device: str | None = None
    dtype: str = "auto"
    load_in_4bit: bool = False
    trust_remote_code: bool = False
    revision: str | None = None
    instruction: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class LocalModel:
    """A causal language model with its tokenizer and template, ready to think and to embed.

    `lock` lets threads take turns on the model, one pass at a time.
    """

    name: str
    model: Any
    template: Template
    weights: str
    precision: Precision
    stop_ids: tuple[int, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device  # type: ignore[no-any-return]

    @cached_property
    def shared(self) -> Shared:
        """What calls on a GPU leave for the next."""
        from o1_retriever.engine.steps import Shared

        return Shared()

    @property
    def vocabulary(self) -> int:
        """Length of the logits."""
        return int(self.model.config.get_text_config().vocab_size)

    @cached_property
    def prefix(self) -> Prefix:
        """What every prompt begins with, run through the model once."""
        from o1_retriever.engine.prefill import common_prefix
        from o1_retriever.engine.slots import layer_windows

        sliding = any(layer_windows(self.model.config))
        return common_prefix(self, sliding=sliding)

    @property
    def dimension(self) -> int:
        """Length of an embedding: the model's hidden size."""
        return int(self.model.config.get_text_config().hidden_size)


def load_model(name: str | Path, options: LoadOptions) -> LocalModel:
    """Load a checkpoint from a folder or the Hub (safetensors only).

    Raises `ModelNotFoundError` when there is nothing to load and `CheckpointError` when what is there does
    not make a thinking embedder.
    """
    from transformers import AutoConfig, AutoTokenizer

    folder = find_folder(str(name), revision=options.revision)
    trust = {"trust_remote_code": options.trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(folder, **trust)
        tokenizer = AutoTokenizer.from_pretrained(folder, **trust)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder} has a config or tokenizer that cannot be loaded: {first_line(error)}.",
            hint="Pass trust_remote_code=True if it needs its own code and you have read that code."
            if "trust_remote_code" in str(error)
            else None,
        ) from error
    template_config = _template_config(folder, tokenizer)
    model = _load_weights(folder, config, options)
    return assemble(
        str(name),
        model,
        tokenizer,
        template_config=template_config,
        instruction=options.instruction,
        weights=hash_files(folder),
    )


def assemble(
    name: str,
    model: Any,
    tokenizer: Any,
    *,
    template_config: TemplateConfig | None = None,
    instruction: str | None = None,
    weights: str | None = None,
) -> LocalModel:
    """Check that a loaded model and its tokenizer fit each other, and join them."""
    text_config = model.config.get_text_config()
    if (
        hasattr(text_config, "is_decoder")
        and model.config.model_type in _ENCODERS
        and not text_config.is_decoder
    ):
        raise CheckpointError(
            f"{name} is a bidirectional {model.config.model_type} encoder; expected a causal language model.",
            hint="Use it as an encoder: ThinkingEmbedder.from_parts(thinker, encoder).",
        )
    # Wrappers of adapters have the weight of an embedding, but not its other attributes.
    rows = len(model.get_input_embeddings().weight)
    if len(tokenizer) > rows:
        raise CheckpointError(
            f"{name} has {rows} token embeddings and a tokenizer of {len(tokenizer)} tokens; expected at "
            "least as many embeddings as tokens.",
            hint="Call model.resize_token_embeddings(len(tokenizer)) before saving the checkpoint.",
        )
    config = template_config or TemplateConfig(layout=detect_layout(tokenizer))
    positions = getattr(text_config, "max_position_embeddings", None)
    template = Template(tokenizer, config, positions=positions, instruction=instruction)
    model.eval()
    return LocalModel(
        name=name,
        model=model,
        template=template,
        weights=weights or hash_signs(model),
        precision=precision_of(model),
        stop_ids=stop_ids(model, template),
        settings=config.settings,
        lock=_lock_of(model),
    )


_locks: weakref.WeakKeyDictionary[Any, threading.Lock] = weakref.WeakKeyDictionary()
_locks_guard = threading.Lock()


def _lock_of(model: Any) -> threading.Lock:
    # One for a model, not for each embedder made of it: a pass changes the model's hooks while it runs.
    with _locks_guard:
        return _locks.setdefault(model, threading.Lock())


_ENCODERS = {"bert", "roberta", "xlm-roberta", "electra", "camembert", "roformer", "rembert"}


def _template_config(folder: Path, tokenizer: Any) -> TemplateConfig:
    path = folder / CONFIG_NAME
    if path.is_file():
        return TemplateConfig.from_file(path)
    layout = detect_layout(tokenizer)
    logger.info("%s has no %s; its special tokens are those of the %s layout", folder, CONFIG_NAME, layout)
    return TemplateConfig(layout=layout)


def _load_weights(folder: Path, config: Any, options: LoadOptions) -> Any:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    from o1_retriever.engine.packing import pack

    device = device_named(options.device)
    dtype, int8 = dtype_named(options.dtype, device)
    if options.load_in_4bit and options.dtype in ("int8", "fastest"):
        raise SettingsError(f"Found load_in_4bit=True and dtype={options.dtype!r}; expected one of the two.")
    arguments: dict[str, Any] = {"dtype": dtype, "config": config}
    if options.load_in_4bit:
        arguments["quantization_config"] = nf4_config(dtype)
        arguments["device_map"] = {"": device}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            use_safetensors=True,
            trust_remote_code=options.trust_remote_code,
            output_loading_info=True,
            **arguments,
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise CheckpointError(f"{folder} could not be loaded: {first_line(error)}.") from error
    model, report = loaded
    if report.get("missing_keys"):
        missing = sorted(report["missing_keys"])
        raise CheckpointError(
            f"{folder} lacks {len(missing)} weights of a {type(model).__name__}, {missing[0]} among them; "
            "expected a complete causal language model.",
            hint="Save the whole model, language-model head included, with model.save_pretrained(folder).",
        )
    quantized = getattr(config, "quantization_config", None) is not None or options.load_in_4bit
    if quantized:
        keep_float32(model)
        return model
    model = model.to(device)
    pack(model, int8=int8)
    return model


def stop_ids(model: Any, template: Template) -> tuple[int, ...]:
    """Ids that end a thought: the template's eos and those that the model itself names."""
    # A chat model's generation config may list several ends; each closes a thought.
    listed = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = listed if isinstance(listed, list) else [] if listed is None else [listed]
    return tuple(sorted({template.eos, *(int(i) for i in ids)}))
