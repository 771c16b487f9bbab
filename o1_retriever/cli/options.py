"""Options that several commands share, each declared once: a dataclass per group, expanded by `with_options`.

A command takes a parameter annotated with one of the dataclasses; `with_options` shows typer one option per
field instead, and collects their values again.

What was not typed of a group that is `Configured` comes from the environment or from a file: the command line
goes before `$O1_RETRIEVER_NAME`, and that before `NAME = value` in the `o1-retriever.toml` of this folder or
the nearest one above it. A name is that of the long option, with `_` for `-`. What is named nearer also hides
what cannot stand beside it: with `--model` on the command line, a thinker in the file counts no more.
"""

from __future__ import annotations

import functools
import inspect
import os
import shlex
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from o1_retriever.errors import SettingsError

if TYPE_CHECKING:
    from o1_retriever.search.result import SearchOptions
    from o1_retriever.thought import Thinking, ThoughtSettings

DEBUG = "o1_retriever.debug"


Dtype = Literal["auto", "fastest", "float32", "bfloat16", "float16", "int8"]


_model = functools.partial(typer.Option, rich_help_panel="Model")
_thoughts = functools.partial(typer.Option, rich_help_panel="Thoughts")


class Configured:
    """A group of options that nobody has to type twice."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Configured):
    """Which model thinks and embeds."""

    model: Annotated[str | None, _model(help="One model that thinks and embeds, a folder or Hub id.")] = None
    encoder: Annotated[
        str | None,
        _model(help="Who embeds: a sentence-transformers model, a folder or Hub id "
               "(default: all-MiniLM-L6-v2).")
    ] = None  # fmt: skip
    thinker: Annotated[
        str | None,
        _model(help="Who thinks: a language model (a folder, Hub id or .gguf file), the URL of "
               "an OpenAI-compatible endpoint, or a .jsonl file of recorded thoughts "
               "(default: SmolLM2-135M-Instruct).")
    ] = None  # fmt: skip
    thinker_model: Annotated[
        str | None, _model(help="The name by which the endpoint knows its model (default: its first).")
    ] = None
    device: Annotated[
        str | None, _model(help="cpu, cuda, cuda:N or mps (default: a GPU if there is one).")
    ] = None
    dtype: Annotated[
        Dtype, _model(help="Number format of the weights (auto: of a thinker alone the fastest).")
    ] = "auto"
    encoder_dtype: Annotated[
        Dtype,
        _model(help="The same of an encoder beside a thinker (auto: as stored; bfloat16 is faster, and moves "
               "vectors a little).")
    ] = "auto"  # fmt: skip
    four_bit: Annotated[
        bool, _model("--4bit/--no-4bit", help="Load the weights quantised to 4 bits (NF4).")
    ] = False
    no_cache: Annotated[
        bool, _model("--no-cache/--cache", help="Neither read nor write the cache of thoughts.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class SamplingOptions(Configured):
    """How a thought is written; what is not named is the model's own preference."""

    temperature: Annotated[float | None, _thoughts(help="Variety of the thoughts; 0 for the likeliest.")] = (
        None
    )
    top_p: Annotated[float | None, _thoughts(help="Share of the probability to draw tokens from.")] = None
    repetition_penalty: Annotated[
        float | None, _thoughts(help="Above 1: a thought repeats its words less.")
    ] = None
    max_new_tokens: Annotated[int | None, _thoughts(help="How long a thought may get, in tokens.")] = None
    seed: Annotated[int | None, _thoughts(help="Another seed, other thoughts.")] = None

    def settings(self, base: ThoughtSettings) -> ThoughtSettings:
        """`base` with what was named here. Raises `SettingsError` for a value out of range."""
        return base.with_changes(**{field.name: getattr(self, field.name) for field in fields(self)})


@dataclass(frozen=True, kw_only=True)
class ThoughtOptions(SamplingOptions):
    """How many thoughts are written, and how."""

    n_thoughts: Annotated[
        int | None, _thoughts("-n", "--n-thoughts", help="How many thoughts to write about a question.")
    ] = None
    query_weight: Annotated[
        float | None,
        _thoughts(help="How much the question counts beside its thoughts (see o1-retriever calibrate)."),
    ] = None
    guard: Annotated[
        bool | None, _thoughts("--guard/--no-guard", help="Leave out thoughts that cannot help (default).")
    ] = None


@dataclass(frozen=True, kw_only=True)
class ThinkingOptions(Configured):
    """Whether to think about a question at all."""

    thinking: Annotated[
        Literal["always", "auto", "never"] | None,
        _thoughts(help="auto thinks only where the question alone finds nothing clear."),
    ] = None
    fast: Annotated[bool, _thoughts("--fast", help="Do not think: the same as --thinking never.")] = False

    def chosen(self) -> Thinking | None:
        """What was chosen, None if nothing was. Raises `SettingsError` where two options contradict."""
        if not self.fast:
            return self.thinking
        if self.thinking not in (None, "never"):
            raise SettingsError(f"Found --fast and --thinking {self.thinking}; expected one of them.")
        return "never"


_search = functools.partial(typer.Option, rich_help_panel="Search")


@dataclass(frozen=True, kw_only=True)
class RankingOptions(Configured):
    """How passages are ranked."""

    hybrid: Annotated[
        bool, _search("--hybrid/--no-hybrid", help="Fuse with BM25, which reads the thoughts too.")
    ] = False
    pooling: Annotated[
        Literal["mean", "best"],
        _search(help="Search for the mean of the thoughts, or for each: the best counts."),
    ] = "mean"


@dataclass(frozen=True, kw_only=True)
class SearchModes(RankingOptions, ThinkingOptions):
    """How to search, and how much to show."""

    hits: Annotated[int, _search("-k", "--hits", min=1, help="How many passages to show.")] = 5
    rounds: Annotated[
        int, _search(min=1, max=10, help="2: think again after reading the first hits, and search with all.")
    ] = 1
    min_relevance: Annotated[
        float | None,
        _search(help="Leave out passages that are relevant with a smaller probability, from 0 to 1 "
                "(see o1-retriever calibrate)."),
    ] = None  # fmt: skip

    def options(self) -> SearchOptions:
        """The options of a `Retriever`. Raises `SettingsError` where two contradict each other."""
        return {
            "hybrid": self.hybrid,
            "pooling": self.pooling,
            "thinking": self.chosen(),
            "rounds": self.rounds,
            "min_relevance": self.min_relevance,
        }


@dataclass(frozen=True, kw_only=True)
class IndexOptions(Configured):
    """Which index."""

    index: Annotated[Path, typer.Option(help="Folder of the index.", rich_help_panel="Index")] = Path(
        ".o1-index"
    )


def set_debug(context: typer.Context, value: bool) -> bool:
    """Remember `--debug`, wherever on the command line it stands."""
    from o1_retriever.cli.terminal import configure

    if value or DEBUG not in context.meta:
        context.meta[DEBUG] = value
        configure(debug=value)
    return value


Debug = Annotated[
    bool, typer.Option("--debug", help="Show what is going on, and where an error arose.", callback=set_debug)
]


def with_options(function: Callable[..., None]) -> Callable[..., None]:
    """Expand the parameters of a command that are dataclasses of options, and add `--debug`."""
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, Any] = {}
    shown: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(function).parameters.items():
        if not is_dataclass(hints[name]):
            shown.append(_parameter(name, hints[name], parameter.default))
            continue
        groups[name] = hints[name]
        members = get_type_hints(hints[name], include_extras=True)
        shown += [_parameter(field.name, members[field.name], field.default) for field in fields(hints[name])]
    shown.append(_parameter("debug", Debug, False))
    shown.append(inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context))

    @functools.wraps(function)
    def command(*, context: typer.Context, **values: Any) -> None:
        del values["debug"]
        values |= _configured(context, [group for group in groups.values() if issubclass(group, Configured)])
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        function(**values)

    # typer reads both, and `wraps` has left those of the function itself.
    command.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    return command


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    if default is MISSING:  # a field without a default is an option that must be given
        default = inspect.Parameter.empty
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def in_force() -> dict[str, Setting]:
    """What the environment and the file say of the options of all commands, by name."""
    return settings([name for group in _subclasses(Configured) for name in named(group)])


def named(group: type) -> dict[str, str]:
    """The options of a group by the name that the environment and the file know, with their fields."""
    hints = get_type_hints(group, include_extras=True)
    names = {}
    for field in fields(group):
        option = hints[field.name].__metadata__[0]
        # typer takes the first text for a default until it reads the annotation.
        texts = (str(option.default), *(option.param_decls or ()))
        long = next((text for text in texts if text.startswith("--")), f"--{field.name}")
        names[long.partition("/")[0][2:].replace("-", "_")] = field.name
    return names


def again(*groups: Any) -> str:
    """What to type so that another command uses the same: what no variable and no file says already."""
    said = {name: str(setting.value) for name, setting in in_force().items()}
    return "".join(f" {shlex.quote(part)}" for group in groups for part in set_in(group, said))


def set_in(group: Any, said: Mapping[str, str] | None = None) -> list[str]:
    """The options of a group that differ from their defaults and from what is `said`, as one types them."""
    typed: list[str] = []
    for name, field in named(type(group)).items():
        value = getattr(group, field)
        option = f"--{name.replace('_', '-')}"
        default = next(each.default for each in fields(group) if each.name == field)
        if value == default or (said or {}).get(name) == str(value):
            continue
        typed += [option] if value is True else [option, str(value)]
    return typed


def _subclasses(group: type) -> list[type]:
    direct: list[type] = group.__subclasses__()
    return [*direct, *(each for group in direct for each in _subclasses(group))]


def _configured(context: typer.Context, groups: list[type]) -> dict[str, Any]:
    """The values of the fields that nobody typed, from the environment and the file."""
    if not groups:
        return {}
    names = {name: field for group in groups for name, field in named(group).items()}
    typed = {
        name: Setting("", "")
        for name, field in names.items()
        if getattr(context.get_parameter_source(field), "name", "") == "COMMANDLINE"
    }
    found = layered(typed, in_force())
    kinds = {name: kind for group in groups for name, kind in get_type_hints(group).items()}
    return {
        field: converted(name, found[name], kinds[field])
        for name, field in names.items()
        if name in found and name not in typed
    }


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
