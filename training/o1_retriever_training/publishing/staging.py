"""Make the folder that is sent: the same bytes from the same model, whoever makes it and when.

It is searched for tokens, keys and passwords before it goes anywhere.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from o1_retriever.engine.checkpoint import base_of
from o1_retriever.engine.load import LoadOptions, load_causal_lm, read_config, read_template
from o1_retriever.engine.template import CONFIG_NAME, Template, TemplateConfig
from o1_retriever.errors import InputError, SettingsError
from o1_retriever.thinkers.config import ThinkerConfig
from o1_retriever_training.publishing.card import CardFacts, provenance, write_card
from o1_retriever_training.publishing.contents import CARD, NF4, RECIPE_FILE, Contents, File, look_into
from o1_retriever_training.saving import (
    QUANTISING,
    merge_adapter,
    save_embedder,
    save_sentence_transformers,
    save_thinker,
    save_tokenizer,
    stored_dtype,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageOptions:
    """How a folder is made ready.

    `merged` sends a thinker's adapter added to its base, as a model of its own. `nf4` adds a copy quantised
    to 4 bits. `qlora` says whether an adapter was trained on a base in NF4 (None: what the recipe says),
    `base` is where its base is (None: what its config says) and `dtype` what the merged weights are stored
    as. `recipe` is the file of the training (None: the folder's own).
    """

    merged: bool = False
    nf4: bool = False
    qlora: bool | None = None
    base: str | None = None
    dtype: str = "auto"
    recipe: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """A folder ready to be sent, its files, and what of the training's folder is not in it."""

    folder: Path
    files: tuple[File, ...]
    left_out: tuple[File, ...]
    notes: tuple[str, ...]


def stage(
    source: str | Path,
    target: str | Path,
    *,
    facts: CardFacts,
    options: StageOptions | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Staged:
    """Write everything that is to be published into `target`, an empty or missing folder.

    A merged model's files and a thinker's are taken as they are; another adapter is merged into its base.
    Raises `SecretError` for a file with what looks like a token or a key in it, and the errors of loading a
    model.
    """
    options = options or StageOptions()
    found, folder = look_into(source), _emptied(Path(target))
    known = provenance(found, options.recipe)
    # What is a user's own is looked at before the long work.
    refuse_secrets(found.folder, found.model)
    if found.thinker and options.nf4:
        raise SettingsError("Found --nf4 for a thinker, which is sent as it is.", hint="Leave out --nf4.")
    if found.adapter and (options.merged or not found.thinker):
        say("Merging the adapter into its base")
        qlora = known.at("model", "tuning") == "qlora" if options.qlora is None else options.qlora
        _merge(found, folder, options, qlora=qlora)
    else:
        for name in found.model:
            if not (options.nf4 and name.startswith(f"{NF4}/")):
                _place(found.folder / name, folder / name)
        if not found.thinker:
            _complete(folder)
    if options.nf4:
        say("Quantising to NF4")
        _quantise(folder)
    if known.content is not None:
        (folder / RECIPE_FILE).write_bytes(known.content)
    base = options.base or (base_of(found.folder) if found.adapter else None)
    notes = write_card(folder, facts=facts, base=base, known=known, source=found.folder)
    if options.nf4:
        whole, small = (
            sum(each.stat().st_size for each in at.glob("*.safetensors")) for at in (folder, folder / NF4)
        )
        if small >= whole:
            sizes = f"{small / 1e6:.1f} MB, the model {whole / 1e6:.1f} MB"
            why = "embeddings are not quantised, so leave --nf4 to larger models"
            notes.append(f"The copy in 4 bits has {sizes}: {why}.")
    # The last word is on what will be sent, whoever wrote it.
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = tuple(File(path.relative_to(folder).as_posix(), path.stat().st_size) for path in paths)
    refuse_secrets(folder, [file.path for file in files])
    return Staged(folder=folder, files=files, left_out=found.left_out, notes=tuple(notes))


def _merge(found: Contents, folder: Path, options: StageOptions, *, qlora: bool) -> None:
    """Save an adapter merged into its base, with the texts that stand beside it."""
    merged = merge_adapter(found.folder, base=options.base, quantised=qlora, dtype=options.dtype)
    thinker = ThinkerConfig.beside(found.folder)
    if thinker is None:
        save_embedder(folder, *merged)
    else:
        save_thinker(folder, *merged[:2], thinker, base="")
    for name in found.model:
        if name == CARD or name.startswith(("LICENSE", "NOTICE")):
            _place(found.folder / name, folder / name)


def _emptied(target: Path) -> Path:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise SettingsError(
            f"{target} is there and not empty; expected a new folder for what is to be sent.",
            hint="Type another --staging, or remove it.",
        )
    target.mkdir(parents=True, exist_ok=True)
    return target


def _place(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.name.endswith(".safetensors"):
        # Weights are large and never changed here; a link to them is as good as a copy.
        with contextlib.suppress(OSError):
            os.link(source.resolve(), target)
            return
    shutil.copyfile(source, target)


def _complete(folder: Path) -> None:
    """Add what a folder lacks of our config and of the sentence-transformers layout; weights stay."""
    if (folder / CONFIG_NAME).is_file() and (folder / "modules.json").is_file():
        TemplateConfig.from_file(folder / CONFIG_NAME)
        return
    whole, tokenizer = read_config(folder)
    config, model_config = read_template(folder, tokenizer), whole.get_text_config()
    template = Template(tokenizer, config, positions=getattr(model_config, "max_position_embeddings", None))
    config.save(folder)
    save_tokenizer(folder, tokenizer, template)
    save_sentence_transformers(folder, template, dimension=int(model_config.hidden_size))


def _quantise(folder: Path) -> None:
    if "quantization_config" in json.loads((folder / "config.json").read_text(encoding="utf-8")):
        raise SettingsError(
            "The model is quantised already, so that it cannot be quantised to NF4 again.",
            hint="Leave out --nf4.",
        )
    options = LoadOptions(dtype=stored_dtype(folder), load_in_4bit=True)
    loaded = load_causal_lm(folder, options, purpose=QUANTISING)
    config = TemplateConfig.from_file(folder / CONFIG_NAME)
    save_embedder(folder / NF4, loaded.model, loaded.tokenizer, config)
    del loaded
    gc.collect()


_BEFORE = r"(?<![A-Za-z0-9_-])"
_KINDS = {
    "a Hugging Face token": _BEFORE + r"(?:hf|api_org)_[A-Za-z0-9]{20,}",
    "an API key": _BEFORE + r"sk-(?:[a-z]+-)*[A-Za-z0-9_-]{20,}",
    "a GitHub token": _BEFORE + r"(?:gh[oprsu]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,})",
    "a GitLab token": _BEFORE + r"glpat-[A-Za-z0-9_-]{20,}",
    "a Slack token": _BEFORE + r"xox[abeoprs]-[A-Za-z0-9-]{10,}",
    "an AWS key": _BEFORE + r"(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])",
    "a Google key": _BEFORE + r"AIza[A-Za-z0-9_-]{35}",
    "a private key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----",
    "a password in an address": r"[a-z][a-z0-9+.-]{0,20}://[^/\s:@\"']+:[^/\s:@\"']+@[a-zA-Z0-9]",
    "a secret": r"(?i)(?:api[_-]?key|secret[_-]?key|client[_-]?secret|(?:access|auth|bearer)[_-]?token|"
                r"password|passwd)[\"']?\s*[:=]\s*[\"']?[A-Za-z0-9_/+.-]{16,}",
}  # fmt: skip
_PATTERNS = {kind: re.compile(pattern) for kind, pattern in _KINDS.items()}


class SecretError(InputError):
    """A file that was about to be published holds what looks like a secret. Nothing has been sent."""


def refuse_secrets(folder: Path, paths: Iterable[str]) -> None:
    """Raise `SecretError` naming the file and line of whatever looks like a secret.

    Text is read line by line, of a safetensors file the metadata. The secret itself is never quoted.
    """
    found = []
    for path in paths:
        for number, line in _lines(folder / path):
            kind = next((kind for kind, pattern in _PATTERNS.items() if pattern.search(line)), None)
            if kind is not None:
                found.append(f"{path}, line {number}: {kind}")
    if not found:
        return
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    raise SecretError(
        f"What looks like a secret stands in {'; '.join(found[:5])}{more}. Nothing was sent.",
        hint="Take it out of the file, and revoke it if it was real.",
    )


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    if path.suffix == ".safetensors":
        with contextlib.suppress(SafetensorError), safe_open(path, "numpy") as weights:
            yield 1, json.dumps(weights.metadata() or {})
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        yield from enumerate(file, 1)
