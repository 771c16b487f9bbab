"""Save a trained model as a folder that this library, transformers and sentence-transformers load.

Documents (and, in the paper layout, fast queries) have the same vectors in plain sentence-transformers as in
`ThinkingEmbedder`, without any code of ours: the tokenizer itself puts `<emb>` at the end, after truncation,
and what opens a text is a prompt.

A thinker that does not embed is saved as its adapter where it has one, so that the base is not copied
(`save_thinker`); `merged` makes one plain model of an adapter and its base.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from o1_retriever.engine.checkpoint import base_of, find_folder
from o1_retriever.engine.load import LoadOptions, load_causal_lm, positions_of, read_template, stop_ids
from o1_retriever.engine.template import CONFIG_NAME, Layout, Template, TemplateConfig
from o1_retriever.engine.weights import quieten_bitsandbytes, with_adapter
from o1_retriever.errors import CheckpointError, SettingsError
from o1_retriever.reporting import counted
from o1_retriever.thinkers.config import ThinkerConfig
from o1_retriever.thought import ThoughtSettings

logger = logging.getLogger(__name__)

_PROBES = ("why is the sky blue", "Why?", "3.5 % of it", "d'été, 水は", "_x", "\tcode")
_MODULES = (
    ("", "sentence_transformers.models.Transformer"),
    ("1_Pooling", "sentence_transformers.models.Pooling"),
    ("2_Normalize", "sentence_transformers.models.Normalize"),
)
# The last user message is the query; what the model writes next is a thought.
_CHAT = """\
{%- set last = namespace(text='') -%}
{%- for message in messages if message['role'] == 'user' -%}
{%- if message['content'] is string -%}
{%- set last.text = message['content'] -%}
{%- else -%}
{%- set parts = message['content'] | selectattr('type', 'equalto', 'text') -%}
{%- set last.text = parts | map(attribute='text') | join(' ') -%}
{%- endif -%}
{%- endfor -%}
{{- '<query>' + last.text + 'CLOSING<thought>' -}}
"""
_CLOSING: dict[Layout, str] = {"paper": "<emb>", "released": "</query>"}


def save_embedder(folder: str | Path, model: Any, tokenizer: Any, template_config: TemplateConfig) -> Path:
    """Write a thinking embedder: weights, tokenizer, our config and the sentence-transformers layout.

    `model` is a causal language model with its adapters merged; neither it nor `tokenizer` is changed. Files
    of the same names are overwritten, others stay. Raises `CheckpointError` for a model and a tokenizer that
    do not make an embedder. Returns the folder.
    """
    folder = Path(folder)
    template = _checked(folder, model, tokenizer, template_config)
    folder.mkdir(parents=True, exist_ok=True)
    _save_weights(folder, model, template)
    save_tokenizer(folder, tokenizer, template)
    template_config.save(folder)
    dimension = int(model.config.get_text_config().hidden_size)
    save_sentence_transformers(folder, template, dimension=dimension)
    return folder


def _checked(folder: Path, model: Any, tokenizer: Any, config: TemplateConfig) -> Template:
    if any(hasattr(part, "base_layer") for part in model.modules()):
        raise CheckpointError(
            "The model has an adapter that is not merged; expected a plain causal language model.",
            hint="Call model.merge_and_unload() first, or let `o1-retriever publish` merge the folder.",
        )
    if not getattr(tokenizer, "is_fast", False):
        raise CheckpointError(
            f"{type(tokenizer).__name__} is no fast tokenizer; expected one with a tokenizer.json.",
            hint="Load it with AutoTokenizer.from_pretrained(name, use_fast=True).",
        )
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise CheckpointError(
            f"The model for {folder} has {rows} token embeddings and its tokenizer {len(tokenizer)} tokens.",
            hint="Call model.resize_token_embeddings(len(tokenizer)) before training.",
        )
    return Template(tokenizer, config, positions=positions_of(model))


def _save_weights(folder: Path, model: Any, template: Template) -> None:
    before = getattr(model, "generation_config", None)
    model.generation_config = _generation(model, template)
    try:
        model.save_pretrained(folder)
    finally:
        model.generation_config = before
    path = folder / "config.json"
    config = _read(path)
    config.pop("_name_or_path", None)
    if "use_cache" in config:  # gradient checkpointing turned it off
        config["use_cache"] = True
    _write(path, config)
    for weights in folder.glob("*.safetensors"):
        weights.chmod(0o644)


def _generation(model: Any, template: Template) -> Any:
    # What `generate` and a server do by themselves: sample a thought, and never a marker.
    from transformers import GenerationConfig

    known = ThoughtSettings.__dataclass_fields__
    try:
        wanted = ThoughtSettings(**{k: v for k, v in template.config.settings.items() if k in known})
    except (SettingsError, TypeError) as error:
        raise CheckpointError(f"The settings of the checkpoint cannot be used: {error}") from None
    sampling = {"temperature": wanted.temperature, "top_p": wanted.top_p, "top_k": 0}
    vocabulary = int(model.config.get_text_config().vocab_size)
    ends = stop_ids(model, template)
    never = [i for i in template.suppressed(vocabulary) if i not in ends]
    pad = template.tokenizer.pad_token_id
    return GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=wanted.temperature > 0,
        max_new_tokens=wanted.max_new_tokens,
        eos_token_id=list(ends) if len(ends) > 1 else ends[0],
        pad_token_id=template.eos if pad is None else pad,
        suppress_tokens=never,
        **(sampling if wanted.temperature > 0 else {}),
    )


def save_tokenizer(folder: Path, tokenizer: Any, template: Template) -> None:
    """The tokenizer, which ends every text with `<emb>` unless it is called with add_special_tokens=False."""
    from tokenizers.processors import TemplateProcessing

    saved = copy.copy(tokenizer)
    # A Jinja template that turns the last user message into a prompt whose completion is a thought.
    saved.chat_template = _CHAT.replace("CLOSING", _CLOSING[template.config.layout])
    saved.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    # These describe where it was loaded from, or would have another class put the old special tokens back.
    elsewhere = (
        "is_local",
        "local_files_only",
        "name_or_path",
        "add_bos_token",
        "add_eos_token",
        "processor_class",
    )
    config = {name: value for name, value in _read(path).items() if name not in elsewhere}
    config |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": template.max_length,
        "padding_side": "right",
        "truncation_side": "right",
    }
    if config.get("pad_token") is None:
        config["pad_token"] = tokenizer.convert_ids_to_tokens(template.eos)
    _write(path, dict(sorted(config.items())))
    path = folder / "tokenizer.json"
    ending = TemplateProcessing(
        single="$A <emb>", pair="$A $B <emb>", special_tokens=[("<emb>", template.emb)]
    )
    state = json.loads(ending.__getstate__())
    whole = _read(path) | {"post_processor": state, "truncation": None, "padding": None}
    path.write_text(json.dumps(whole, ensure_ascii=False), encoding="utf-8")


def save_sentence_transformers(folder: Path, template: Template, *, dimension: int) -> None:
    """The files with which plain sentence-transformers gives the vectors of documents and fast queries.

    Read after the tokenizer was saved: its prompts are tried, and the one taken that gives our tokens.
    """
    listing = [
        {"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(_MODULES)
    ]
    _write(folder / "modules.json", listing)
    pooling = {"word_embedding_dimension": dimension, "pooling_mode_lasttoken": True, "include_prompt": True}
    _write(folder / "1_Pooling" / "config.json", pooling)
    _write(folder / "2_Normalize" / "config.json", {})
    length = {"max_seq_length": template.max_length, "do_lower_case": False}
    _write(folder / "sentence_bert_config.json", length)
    listed = {"default_prompt_name": None, "similarity_fn_name": "cosine"}
    _write(folder / "config_sentence_transformers.json", {"prompts": _prompts(folder, template), **listed})


def _prompts(folder: Path, template: Template) -> dict[str, str]:
    from transformers import AutoTokenizer

    saved = AutoTokenizer.from_pretrained(folder)
    texts = template.text_ids(_PROBES)
    if Template(saved, template.config).text_ids(_PROBES) != texts:
        raise CheckpointError(
            f"The tokenizer saved in {folder} reads texts in another way than the one given; expected a "
            "tokenizer.json that says everything about it.",
            hint="Load the tokenizer with AutoTokenizer from a folder saved by tokenizer.save_pretrained.",
        )
    if template.config.layout == "released":
        # A fast query of this layout ends in more than `<emb>`; a prompt can only open a text.
        return {"document": ""}
    wanted = {
        "query": [template.fast_query(ids) for ids in texts],
        "document": [template.document(ids) for ids in texts],
    }
    instruction = template.instruction.strip()
    # Whether a space belongs between a marker and a text differs from tokenizer to tokenizer.
    openings = {
        "query": ("<query> ", "<query>")
        if not instruction
        else (f"<query> {instruction} ", f"<query>{instruction} ", f"<query>{instruction}"),
        "document": ("<doc> ", "<doc>"),
    }
    return {name: _prompt(saved, openings[name], rows) for name, rows in wanted.items()}


def _prompt(tokenizer: Any, tried: tuple[str, ...], wanted: list[list[int]]) -> str:
    def agreeing(prompt: str) -> int:
        rows = tokenizer([prompt + text for text in _PROBES])["input_ids"]
        return sum(row == ids for row, ids in zip(rows, wanted, strict=True))

    best = max(tried, key=agreeing)
    if (right := agreeing(best)) < len(wanted):
        logger.warning(
            "Plain sentence-transformers reads %d of %s after %s as other tokens than we do",
            len(wanted) - right,
            counted(len(wanted), "text"),
            best,
        )
    return best


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save_thinker(folder: Path, model: Any, tokenizer: Any, config: ThinkerConfig, *, base: str) -> Path:
    """Write what `LocalThinker(folder)` loads, and return the folder.

    Of a `PeftModel` these are its low-rank matrices in bfloat16, and `base`, the name of what they lie upon;
    of another model its weights and its tokenizer. The chat template and our config stand beside both.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if hasattr(model, "peft_config"):
        _save_adapter(folder, model, base)
        (folder / "chat_template.jinja").write_text(tokenizer.chat_template, encoding="utf-8")
    else:
        with _using_its_cache(model.config):
            model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    config.save(folder)
    return folder


def _save_adapter(folder: Path, model: Any, base: str) -> None:
    from peft import get_peft_model_state_dict

    matrices = get_peft_model_state_dict(model)
    half = {name: value.detach().to("cpu", torch.bfloat16).contiguous() for name, value in matrices.items()}
    weights = folder / "adapter_model.safetensors"
    save_file(half, weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # the library lets nobody else read it
    (settings,) = model.peft_config.values()
    before = settings.base_model_name_or_path, settings.inference_mode
    settings.base_model_name_or_path, settings.inference_mode = base, True
    try:
        settings.save_pretrained(str(folder))
    finally:
        settings.base_model_name_or_path, settings.inference_mode = before


@contextlib.contextmanager
def _using_its_cache(config: Any) -> Any:
    """Training turns the cache off, which whoever loads the model wants."""
    config.use_cache = True
    try:
        yield
    finally:
        config.use_cache = False


QUANTISING = "Quantising to NF4"


def merge_adapter(
    folder: Path, *, base: str | None = None, quantised: bool = False, dtype: str = "auto"
) -> tuple[Any, Any, TemplateConfig]:
    """The base with the adapter's changes added to its weights: what `save_embedder` takes.

    These are a plain causal language model, its tokenizer and its template config.

    `quantised` is for QLoRA: the base is quantised to NF4 and back first, because those rounded weights are
    what the adapter was trained on. Sums are made in float32 and then stored as `dtype`; "auto" is the type
    that the base is stored in. Raises `ModelNotFoundError` and `CheckpointError`.
    """
    import torch

    quieten_bitsandbytes()  # which peft imports
    found = find_folder(base or base_of(folder))
    stored = stored_dtype(found) if dtype == "auto" else dtype
    # NF4 is made of the type that it was trained in: another rounding first would choose other codes.
    options = (
        LoadOptions(dtype=stored, load_in_4bit=True)
        if quantised
        else LoadOptions(device="cpu", dtype="float32")
    )
    own_tokenizer = folder if (folder / "tokenizer.json").is_file() else None
    loaded = load_causal_lm(found, options, tokenizer=own_tokenizer, purpose=QUANTISING)
    model, tokenizer = loaded.model, loaded.tokenizer
    chat = folder / "chat_template.jinja"
    if chat.is_file():  # a thinker was trained in a chat of its own, on its base's tokenizer
        tokenizer.chat_template = chat.read_text(encoding="utf-8")
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    plain = with_adapter(model, folder).cpu().to(getattr(torch, stored)).eval()
    plain.config.dtype = getattr(torch, stored)
    config = read_template(folder if (folder / CONFIG_NAME).is_file() else found, tokenizer)
    return plain, tokenizer, config


def stored_dtype(folder: Path) -> str:
    """The type that a checkpoint's weights are stored in, float32 where its config names none of ours."""
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    name = values.get("dtype") or values.get("torch_dtype")
    return name if name in ("float32", "bfloat16", "float16") else "float32"
