"""Which files of a training's folder make the model, and why the others stay at home."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from o1_retriever.engine.checkpoint import is_adapter
from o1_retriever.errors import ModelNotFoundError
from o1_retriever.thinkers.config import CONFIG_NAME as THINKER
from o1_retriever.thinkers.config import MATRIX

NF4 = "nf4"
CARD = "README.md"
RECIPE_FILE = "training_recipe.yaml"
# What `o1-retriever train` writes beside the model: its recipe, and how the run went.
SUMMARY = "training.json"
_RECIPES = (RECIPE_FILE, "recipe.yaml", "recipe.yml")  # the first that is there is taken
_MODEL = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "o1_embedder.json",
    THINKER,
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)
_WANTED = (*_MODEL, CARD, "LICENSE*", "NOTICE*", *_RECIPES)
_PARTS = ("1_Pooling", "2_Normalize")

_SECRET = "may hold secrets"
_STATE = "state of the training, not of the model"
_CHECKPOINT = "checkpoint of the training"
_CACHE = "cache or log"
_PICKLED = "weights that are not safetensors"
_ADAPTER = "merged into the base model"
_WEIGHTS_OF_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
_TOLD = "its recipe and figures are in the card"
_OTHER = "not part of the model"
_ELSEWHERE = "a link to a file elsewhere"
# The first that fits decides.
_FOLDERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (_SECRET, (".ssh", ".aws", ".gnupg", "secrets*")),
    (_STATE, ("training",)),
    (_CHECKPOINT, ("checkpoint-*", "checkpoint_*", "checkpoints", "global_step*")),
    (_CACHE, (".*", "__pycache__", "wandb", "runs", "logs", "cache", "mlruns")),
)
_FILES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (_SECRET, (".env*", "*.env", "*.pem", "*.key", "*.p12", "*.pfx", "id_rsa*", "id_ed25519*", ".netrc",
               ".npmrc", ".pypirc", ".git-credentials", "*credential*", "*secret*", "token", "token.txt",
               "stored_tokens")),
    (_STATE, ("optimizer*", "*optim_states*", "scheduler*", "scaler*", "rng_state*", "random_states*",
              "training_args.*", "trainer_state.*", "*.distcp")),
    (_TOLD, (SUMMARY,)),
    (_ADAPTER, ("adapter_*",)),
    (_CACHE, (".*", "*.log", "*.tmp", "*.part", "*.lock", "*.swp", "*~", "events.out.tfevents*", "*.pyc")),
    (_PICKLED, ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.h5", "*.msgpack", "*.joblib",
                "*.gguf", "*.onnx")),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class File:
    """A file, or a whole folder (its path ends with `/`), by its path in the repository; `size` in bytes.

    `reason` says why it is not sent, empty for what is.
    """

    path: str
    size: int
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What a folder holds: the model's own files, a recipe and a card if it has them, and what is left out.

    `adapter` says that the folder is an adapter, to be merged into its base unless it is a `thinker`, which
    is sent as it is.
    """

    folder: Path
    model: tuple[str, ...]
    recipe: str | None
    left_out: tuple[File, ...]
    adapter: bool
    thinker: bool


def look_into(folder: str | Path) -> Contents:
    """Sort the files of a trained model's folder.

    Raises `ModelNotFoundError` for a folder that holds no model, or not all of its weights.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise ModelNotFoundError(
            f"There is no folder {folder}; expected what a training has made.",
            hint="Type the folder that your recipe names as its output.",
        )
    thinker = (root / THINKER).is_file()
    files = list(_sorted_files(root, keep=_WEIGHTS_OF_ADAPTER if thinker else ()))
    kept = [path for path, reason in files if not reason]
    found = Contents(
        folder=root,
        model=tuple(path for path in kept if path not in _RECIPES),
        recipe=next((path for path in _RECIPES if path in kept), None),
        left_out=tuple(File(path, _size(root / path), reason) for path, reason in files if reason),
        adapter=is_adapter(root),
        thinker=thinker,
    )
    _check(found)
    return found


def _sorted_files(root: Path, *, keep: Sequence[str] = ()) -> Iterator[tuple[str, str]]:
    """Each file and each folder that is left out, with the reason; an empty one for what is sent."""
    for entry in sorted(root.iterdir()):
        if entry.name in keep and not _leads_elsewhere(entry, root):
            yield entry.name, ""
        elif _leads_elsewhere(entry, root):
            yield entry.name, _ELSEWHERE
        elif not entry.is_dir():
            yield entry.name, _refused(_FILES, entry.name) or ("" if _fits(entry.name, _WANTED) else _OTHER)
        elif entry.name in _PARTS:
            for each in sorted(entry.iterdir()):
                sent = each.is_file() and each.name == "config.json" and not _leads_elsewhere(each, root)
                yield f"{entry.name}/{each.name}", "" if sent else _OTHER
        elif entry.name == NF4:
            yield from ((f"{NF4}/{path}", reason) for path, reason in _sorted_files(entry))
        else:
            yield f"{entry.name}/", _refused(_FOLDERS, entry.name) or _OTHER


def _leads_elsewhere(entry: Path, root: Path) -> bool:
    """Whether it is a link out of the folder, which its maker may have led to any file of this machine.

    The Hub's own cache is made of links, from a snapshot to its blobs, and weights are where there is room.
    """
    if not entry.is_symlink() or entry.name.endswith(".safetensors"):
        return False
    target, home = entry.resolve(), root.resolve()
    return not target.is_relative_to(home) and target.parent != home.parent.parent / "blobs"


def _refused(rules: Sequence[tuple[str, tuple[str, ...]]], name: str) -> str:
    return next((reason for reason, patterns in rules if _fits(name.lower(), patterns)), "")


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    below = (Path(folder) / name for folder, _, names in os.walk(path) for name in names)
    return sum(each.lstat().st_size for each in below)


def _check(found: Contents) -> None:
    weights = {name for name in found.model if name.endswith(".safetensors") and "/" not in name} - {MATRIX}
    if found.adapter:
        if not (found.folder / "adapter_model.safetensors").is_file():
            raise ModelNotFoundError(
                f"{found.folder} has an adapter_config.json and no adapter_model.safetensors.",
                hint="Save the adapter again with model.save_pretrained(folder).",
            )
        return
    if "config.json" not in found.model or not weights:
        lacking = "no config.json" if "config.json" not in found.model else "no safetensors"
        raise ModelNotFoundError(
            f"{found.folder} has {lacking}; expected a merged model (config.json, model.safetensors, a "
            "tokenizer) or an adapter (adapter_config.json, adapter_model.safetensors).",
            hint="Type the folder that your recipe names as its output, not a checkpoint's.",
        )
    index = found.folder / "model.safetensors.index.json"
    listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values() if index.is_file() else ()
    if missing := sorted(set(listed) - weights):
        raise ModelNotFoundError(
            f"{found.folder} lacks {len(missing)} of the files that {index.name} lists, {missing[0]} among "
            "them.",
            hint="Copy the folder again, completely.",
        )
