"""`o1-retriever doctor`: what keeps the library from working here, and what to type against it.

Nothing is downloaded, loaded or changed. What is shown holds no secret, so that it can go into a bug report.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from o1_retriever.cli.info import index_record, numbers
from o1_retriever.cli.models import check_pair, encoder_name, model_name, place_of, thinker_name
from o1_retriever.cli.options import IndexOptions, ModelOptions, find_file, in_force, with_options
from o1_retriever.cli.terminal import output, working, write_json
from o1_retriever.errors import IndexNotFoundError, O1RetrieverError
from o1_retriever.reporting import counted

if TYPE_CHECKING:
    from packaging.requirements import Requirement
    from rich.table import Table

_DISTRIBUTION = "o1-retriever"
_EXTRA = re.compile(r'extra == "([^"]+)"')
_ROOM = 200_000_000  # bytes that a cache or an index should have at least
_CUDA_BUILD = "Type: pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu126"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found about one thing; `hint` is what to do about it, None where nothing need be done.

    A "note" is worth knowing, a "problem" keeps a command from working.
    """

    about: str
    state: Literal["ok", "note", "problem"]
    found: str
    hint: str | None = None


@with_options
def doctor(
    *,
    target: IndexOptions,
    model: ModelOptions,
    as_json: Annotated[
        bool, typer.Option("--json", help="As one JSON object, for a bug report; it holds no secrets.")
    ] = False,
) -> None:
    """Check packages, device, memory, models, network, disk and folders, and say what to type.

    Ends with exit code 1 if something keeps the models that are named, or those taken by default, from
    working.
    """
    findings = []
    with working("Looking"):
        findings += [public(each) for each in examined(model, target.index)]
    if as_json:
        write_json(report(findings))
    else:
        console = output()
        console.print(_table(findings))
        wrong = sum(each.state == "problem" for each in findings)
        console.print(f"{counted(wrong, 'problem')} found." if wrong else "Everything that was named works.")
    if any(each.state == "problem" for each in findings):
        raise typer.Exit(1)


def examined(options: ModelOptions, index: Path) -> Iterator[Finding]:
    """All that is looked at, one finding after the other."""
    yield from packages(importlib.metadata.requires(_DISTRIBUTION) or [], needed_extras(options))
    yield device_finding(seen(), options.device)
    sizes: list[int] = []
    for name in named_models(options):
        finding, size = model_finding(name, options)
        yield finding
        sizes.append(size)
    from huggingface_hub.constants import HF_HUB_CACHE

    from o1_retriever.cache import default_cache_path

    places = [
        ("downloads", Path(HF_HUB_CACHE), sum(sizes) + _ROOM, "Type: export HF_HOME=/another/folder"),
        ("cache", default_cache_path(), _ROOM, "Type: export O1_RETRIEVER_CACHE=/another/folder"),
        ("index folder", index, _ROOM, "Name another folder with --index."),
    ]
    for about, folder, room, hint in places:
        yield folder_finding(about, folder, room, hint)
    yield _index_finding(index)


# Packages


def needed_extras(options: ModelOptions) -> dict[str, str]:
    """The extras that the options and an index need, and what for."""
    from o1_retriever.thinkers import is_address

    needed = {"index": "an index"}
    if options.four_bit:
        needed["4bit"] = "weights of 4 bits"
    if options.model:
        return needed
    needed["local"] = "models on this machine"
    if is_address(thinker_name(options)):
        needed["endpoint"] = "a model behind an address"
    return needed


def packages(declared: Sequence[str], needed: Mapping[str, str]) -> Iterator[Finding]:
    """Whether what the library and its extras declare is installed, in a version that fits."""
    from packaging.requirements import Requirement

    every = [Requirement(each) for each in declared]
    if not every:
        yield Finding("packages", "note", "o1-retriever is used from a folder and was not installed")
    wrong = list(lacking(every, ""))
    system = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    hint = f"Type: pip install --upgrade {_DISTRIBUTION}"
    yield (
        Finding("packages", "problem", f"{system}; {', '.join(wrong)}", hint)
        if wrong
        else Finding("packages", "ok", f"{system}; {_versions()}")
    )
    names = sorted({extra for each in every for extra in _EXTRA.findall(str(each.marker))} - {"all"})
    gaps = {extra: list(lacking(every, extra)) for extra in names}
    for extra, purpose in needed.items():
        if gaps.get(extra):
            found = f"{purpose} needs {', '.join(gaps[extra])}"
            yield Finding(f"extra {extra}", "problem", found, f"Type: pip install '{_DISTRIBUTION}[{extra}]'")
    whole = [name for name in names if not gaps[name]]
    yield Finding("extras", "ok", f"installed: {', '.join(whole) or 'none'}")
    rest = [name for name in names if gaps[name] and name not in needed]
    if rest:
        found = f"not installed, and not needed for these models: {', '.join(rest)}"
        yield Finding("extras", "note", found, f"Type: pip install '{_DISTRIBUTION}[NAME]'")


def lacking(every: Sequence[Requirement], extra: str) -> Iterator[str]:
    """What the core (extra "") or an extra declares and is missing, or has another version."""
    from packaging.utils import canonicalize_name

    for each in every:
        asked = each.marker is None or each.marker.evaluate({"extra": extra})
        if not asked or (extra and (each.marker is None or each.marker.evaluate({"extra": ""}))):
            continue
        if canonicalize_name(each.name) == _DISTRIBUTION:
            for other in each.extras:
                yield from lacking(every, other)
            continue
        try:
            installed = importlib.metadata.version(each.name)
        except importlib.metadata.PackageNotFoundError:
            yield f"{each.name} (missing)"
            continue
        if not each.specifier.contains(installed, prereleases=True):
            yield f"{each.name}{each.specifier} (found {installed})"


def _versions() -> str:
    names = ("o1-retriever", "torch", "transformers", "huggingface-hub")
    return ", ".join(f"{name} {version}" for name, version in installed(names).items())


def installed(names: Iterable[str]) -> dict[str, str]:
    """The versions of those packages that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


# The device


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """What torch and the system say of GPUs: names, NVIDIA's driver, the CUDA that torch is built for."""

    torch: str
    devices: tuple[str, ...] = ()
    cuda: str | None = None
    driver: str | None = None
    complaint: str | None = None


def seen() -> Accelerator:
    """What is here. Nothing is left on a GPU but what asking for its name takes."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return Accelerator(torch="none", complaint=str(error))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = [_gpu(torch.cuda.get_device_properties(number)) for number in range(count)]
    names += ["Apple's GPU (mps)"] if torch.backends.mps.is_available() else []
    complaint = " ".join(str(said[0].message).split()) if said else None
    return Accelerator(
        torch=torch.__version__,
        devices=tuple(names),
        cuda=torch.version.cuda,
        driver=_driver(),
        complaint=complaint,
    )


def _gpu(properties: Any) -> str:
    return f"{properties.name}, {properties.total_memory / 1e9:,.0f} GB"


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)  # nosec B603
        said = done.stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(said.split()), None)


def device_finding(here: Accelerator, wanted: str | None) -> Finding:
    """Whether there is a GPU that torch can use, and if there is one that it cannot, why."""
    if here.torch == "none":
        return Finding(
            "device",
            "problem",
            f"torch cannot be imported: {here.complaint}",
            "Type: pip install --force-reinstall torch",
        )
    if here.devices:
        return Finding("device", "ok", "; ".join(here.devices))
    if here.driver and not here.cuda:
        found = f"an NVIDIA GPU (driver {here.driver}), and torch {here.torch}, which is built without CUDA"
        return Finding("device", "problem", found, _CUDA_BUILD)
    if here.driver:
        found = f"torch {here.torch} for CUDA {here.cuda} cannot use the GPU with driver {here.driver}"
        said = f": {here.complaint:.200}" if here.complaint else ""
        return Finding(
            "device", "problem", found + said, f"Update the driver, or an older CUDA will do. {_CUDA_BUILD}"
        )
    if wanted and wanted != "cpu":
        return Finding("device", "problem", f"there is no {wanted} here", "Leave out --device.")
    threads = counted(os.cpu_count() or 1, "core")
    return Finding("device", "note", f"no GPU: models run on the processor ({threads})")


# Models


def named_models(options: ModelOptions) -> list[str]:
    """The models that the options name: one, or the thinker and the encoder."""
    one = model_name(options)
    if one:
        return [one]
    encoder = encoder_name(options)
    known = "/" in encoder or Path(encoder).exists()
    return [thinker_name(options), encoder if known else f"sentence-transformers/{encoder}"]


def model_finding(name: str, options: ModelOptions) -> tuple[Finding, int]:
    """Whether a model can be loaded, and the bytes that would be downloaded for it."""
    from o1_retriever.engine.checkpoint import download_size, wheel_hint
    from o1_retriever.thinkers import is_elsewhere

    about = f"model {name}"
    try:
        if name == options.thinker and is_elsewhere(name):
            return Finding(about, "ok", _elsewhere(name, options)), 0
        folder, file = place_of(name)
        if folder is not None:
            return Finding(about, "ok", _room(name, folder, file, options)), 0
        size = download_size(name)
    except O1RetrieverError as error:
        return Finding(about, "problem", error.message, wheel_hint(name) or error.hint), 0
    how = f"{size / 1e9:.1f} GB" if size else "of unknown size"
    return Finding(about, "note", f"not here yet; the first use downloads it ({how})"), size


def _elsewhere(name: str, options: ModelOptions) -> str:
    """What a server or a record says. Raises `ThinkerError` and others where it says nothing."""
    from o1_retriever.thinkers import as_thinker, is_record

    check_pair(options)
    if is_record(name):
        as_thinker(name)
        return "a file of recorded thoughts"
    from o1_retriever.thinkers.endpoint import first_model

    return f"the server answers; its first model is {first_model(name)}"


def _room(name: str, folder: Path, file: str | None, options: ModelOptions) -> str:
    """What a model here needs of the memory that is free. Raises `ModelError` where that is too much."""
    from o1_retriever.engine.checkpoint import check_room, free_bytes, read_any

    stored = read_any(folder, file)
    device, chosen = numbers(options)
    if options.model is None and name != thinker_name(options):
        chosen = "float32"  # an encoder is loaded so
    check_room(name, stored, chosen, device)
    free = free_bytes(device)
    left = "" if free is None else f" of {free / 1e9:,.1f} GB free on {device}"
    return f"here, in {folder}; needs about {stored.needs(chosen) / 1e9:,.1f} GB{left}"


# Folders


def folder_finding(about: str, folder: Path, room: int, hint: str) -> Finding:
    """Whether a folder can be written, or made, and whether its disk has room. Nothing is left in it."""
    there = next((each for each in (folder, *folder.parents) if each.exists()), folder)
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
        free = shutil.disk_usage(there).free
    except OSError as error:
        return Finding(about, "problem", f"{folder} cannot be written: {error.strerror}", hint)
    return disk_finding(about, folder, free, room, hint)


def disk_finding(about: str, folder: Path, free: int, room: int, hint: str) -> Finding:
    """Whether so many free bytes are enough."""
    if free < room:
        found = f"{folder} has {free / 1e9:,.2f} GB free; expected {room / 1e9:,.2f} GB"
        return Finding(about, "problem", found, f"Make room, or use another disk. {hint}")
    return Finding(about, "ok", f"{folder}, {free / 1e9:,.1f} GB free")


def _index_finding(index: Path) -> Finding:
    try:
        record = index_record(index)
    except IndexNotFoundError as error:
        return Finding("index", "note", error.message, error.hint)
    except O1RetrieverError as error:
        return Finding("index", "problem", error.message, error.hint)
    return Finding("index", "ok", f"{counted(record['documents'], 'passage')} in {index}")


# What is shown


def report(findings: Sequence[Finding]) -> dict[str, Any]:
    """All of it for a bug report: versions, settings without secrets, findings."""
    shown = ("o1-retriever", "torch", "transformers", "huggingface-hub", "sentence-transformers", "chromadb",
             "langchain-core", "llama-index-core", "haystack-ai", "dspy", "mteb", "openai")  # fmt: skip
    file = find_file()
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": installed(shown),
        "config": file and without_secrets(str(file)),
        "settings": {name: without_secrets(str(each.value)) for name, each in in_force().items()},
        "findings": [asdict(each) for each in findings],
    }


def public(finding: Finding) -> Finding:
    """The same without secrets."""
    hint = finding.hint and without_secrets(finding.hint)
    return Finding(without_secrets(finding.about), finding.state, without_secrets(finding.found), hint)


def without_secrets(text: str) -> str:
    """The text without passwords and queries in addresses, keys of the environment, and the user's name."""
    text = re.sub(r"(https?://)[^/\s@]+@", r"\1***@", text)
    text = re.sub(r"(https?://[^\s?#]+)\?[^\s'\",;)]+", r"\1?***", text)
    text = re.sub(r"\b(hf_|sk-)[\w-]{6,}", r"\1***", text)
    for value in _secrets():
        text = text.replace(value, "***")
    home = str(Path.home())
    return text.replace(home, "~") if len(home) > 1 else text


_SECRET = re.compile("KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
_SHORTEST = 6  # characters of a secret: "true" is none


def _secrets() -> list[str]:
    found = [value for name, value in os.environ.items() if _SECRET.search(name) and len(value) >= _SHORTEST]
    return sorted(found, key=len, reverse=True)


_STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}


def _table(findings: Sequence[Finding]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2), pad_edge=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold", ratio=1)
    for each in findings:
        said = Text.assemble((f"{each.about}: ", "bold"), each.found)
        if each.hint:
            said.append(f"\n{each.hint}", style="cyan")
        table.add_row(Text(each.state, style=_STYLES[each.state]), said)
    return table
