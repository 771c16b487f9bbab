"""What is not typed: variables of the environment, and a file in the folder or the nearest one above it.

The command line goes before `$O1_RETRIEVER_NAME`, and that before `NAME = value` in `o1-retriever.toml`. A
name is that of the long option, with `_` for `-`. What is named nearer also hides what cannot stand beside
it: with `--model` on the command line, a thinker in the file counts no more.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from o1_retriever.errors import SettingsError

FILE = "o1-retriever.toml"
_PREFIX = "O1_RETRIEVER_"
# Values that may be the path of something beside the file.
_PLACES = ("model", "thinker", "encoder")
_HIDES = {
    "model": {"encoder", "thinker", "thinker_model"},
    "encoder": {"model"},
    "thinker": {"model", "thinker_model"},
    "thinker_model": {"model"},
    "fast": {"thinking"},
    "thinking": {"fast"},
}


@dataclass(frozen=True, slots=True)
class Setting:
    """A value as it was written, and where: the name of a variable, or of a file."""

    value: str | int | float | bool
    source: str


def settings(known: Iterable[str]) -> dict[str, Setting]:
    """What the environment and the file say, the nearer one where both do.

    Raises `SettingsError` for a file that cannot be read, and for a name in it that is not `known`.
    """
    names = list(known)
    return layered(_variables(names), _written(names))


def layered(*levels: Mapping[str, Setting]) -> dict[str, Setting]:
    """The nearest of each setting, without those that a nearer one hides; the first level is the nearest."""
    merged: dict[str, Setting] = {}
    for level in levels:
        hidden = set(merged).union(*(_HIDES.get(name, ()) for name in merged))
        merged |= {name: setting for name, setting in level.items() if name not in hidden}
    return merged


def converted(name: str, setting: Setting, kind: Any) -> Any:
    """A value as an option of this kind has it: a type, several of them, or a `Literal`.

    Raises `SettingsError` for what is none.
    """
    value = setting.value
    kinds = [each for each in get_args(kind) if each is not type(None)]
    if get_origin(kind) is Literal:
        made, expected = (value if value in kinds else None), f"one of {', '.join(map(str, kinds))}"
    elif kinds:
        return converted(name, setting, kinds[0])
    elif kind is bool:
        made, expected = _SWITCH.get(str(value).lower()), "true or false"
    else:
        made, expected = _made(kind, value), _KINDS.get(kind, "a text")
    if made is None:
        raise SettingsError(f"{setting.source} has {name} = {value!r}; expected {expected}.")
    return made


_SWITCH = {
    "true": True,
    "1": True,
    "yes": True,
    "on": True,
    "false": False,
    "0": False,
    "no": False,
    "off": False,
}
_KINDS = {int: "a whole number", float: "a number"}


def _made(kind: Callable[[str], Any], value: object) -> Any:
    """The value as that kind, None for what cannot be one."""
    try:
        return None if isinstance(value, bool) else kind(str(value))
    except ValueError:
        return None


def find_file() -> Path | None:
    """The file of this folder, else of the nearest folder above it; None where there is none."""
    here = Path.cwd()
    return next((path for folder in (here, *here.parents) if (path := folder / FILE).is_file()), None)


def _variables(names: Iterable[str]) -> dict[str, Setting]:
    variables = {name: f"{_PREFIX}{name.upper()}" for name in names}
    found = {name: os.environ.get(variable) for name, variable in variables.items()}
    return {name: Setting(value, f"${variables[name]}") for name, value in found.items() if value}


def _written(names: list[str]) -> dict[str, Setting]:
    path = find_file()
    if path is None:
        return {}
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"{path} cannot be read as TOML: {error}.", hint='A line of it is like: thinker = "model.gguf"'
        ) from error
    for name, value in values.items():
        if name not in names:
            near = get_close_matches(name.replace("-", "_"), names, n=1)
            raise SettingsError(
                f"{path} has {name!r}; expected some of {', '.join(sorted(names))}.",
                hint=f"Did you mean {near[0]}?" if near else None,
            )
        if not isinstance(value, str | int | float):
            raise SettingsError(
                f"{path} has {name} = {value!r:.60}; expected a text, a number, true or false."
            )
    return {name: Setting(_placed(name, value, path.parent), str(path)) for name, value in values.items()}


def _placed(name: str, value: str | int | float, folder: Path) -> str | int | float:
    """A path in a file of a folder above is meant from there."""
    if not isinstance(value, str) or folder == Path.cwd():
        return value
    if name == "index" or (name in _PLACES and (folder / value).exists()):
        return str(folder / value)
    return value
