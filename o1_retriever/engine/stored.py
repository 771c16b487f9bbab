"""Weights as they lie on the disk: how many, of which types, whether whole, and whether memory has room."""

from __future__ import annotations

import functools
import importlib
import json
import math
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from o1_retriever.errors import CheckpointError, ModelError

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
    from o1_retriever.errors import require

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


@contextmanager
def gguf_parsed_once() -> Iterator[None]:
    """Within it, transformers parses a `.gguf` file once, and not for its config, tokenizer and weights each.

    Its table of names is made once too, not for each module of the model: together two thirds of the time
    that a small model takes to load. The bar of its unpacking, which no setting silences, is not shown.
    Threads take turns.
    """
    package: Any = importlib.import_module("gguf")
    unpacking: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    with _parsing:
        usual = {name: getattr(package, name) for name in ("GGUFReader", "get_tensor_name_map")}
        bar = unpacking.tqdm
        for name, made in usual.items():  # looked up by transformers at each call
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
