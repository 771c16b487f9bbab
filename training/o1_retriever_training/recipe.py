"""What is asked of whom: all that decides what the synthesised thoughts say; and recipes as YAML files."""

from __future__ import annotations

import copy
import difflib
import json
import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Self, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from o1_retriever.errors import SettingsError
from o1_retriever.thought import ThoughtSettings
from o1_retriever_training.rows import key_of

# YAML 1.1, which PyYAML reads, takes 1e-4 for a text; YAML 1.2 and everybody else for a number.
_FLOAT = re.compile(r"[-+]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+\Z")

_RULES = (
    " Write it as one plain paragraph: the facts, names and terms that a document with the answer contains."
    " If you are unsure, write your best guess. Do not repeat the query or mention these instructions."
)
# By the rows' `type`; "default" is for a row without one, or of a type that nobody has worded.
INSTRUCTIONS = {
    "default": "Think about a plausible response that addresses the query." + _RULES,
    "question": "Think about a plausible answer to the question, with the steps that lead to it." + _RULES,
    "claim": "Think about what evidence would support or refute the claim." + _RULES,
    "keywords": "Think about what somebody who types these words wants to read." + _RULES,
    "duplicate": "Think about other ways of asking the same, and about what it is about." + _RULES,
    "code": "Think about a plausible solution: the functions, commands and concepts that it would use."
    + _RULES,
}


class Section(BaseModel):
    """A recipe or a part of one: frozen, without unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def of(cls, value: Any, *, where: str = "The recipe") -> Self:
        """A recipe from its fields. Raises `SettingsError` naming the first one that is wrong."""
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise _refusal(error, cls, where) from None


class Contributor(Section):
    """One voice of an ensemble: `n` candidates by `expert` (a name; None: the first one).

    `instruction` None takes the row's own `prompt`, else the one of its task type.
    """

    expert: str | None = None
    n: int = Field(default=3, ge=1, le=1024)
    instruction: str | None = None


class Recipe(Section):
    """How thoughts are asked for.

    Three candidates of at most 512 tokens are the paper's; the temperature is ours, chosen so that they
    differ. `examples` other queries, each with its passage cut at `example_characters`, are shown before
    every query; they are drawn with `seed` from the first `example_pool` rows of the input. `labels` stand
    before a query and its response there. `instructions` (by task type) add to `INSTRUCTIONS`.
    """

    contributors: tuple[Contributor, ...] = Field(default=(Contributor(),), min_length=1)
    seed: int = Field(default=0, ge=0, lt=2**63)
    temperature: float = Field(default=0.7, ge=0, le=100)
    top_p: float = Field(default=0.95, gt=0, le=1)
    repetition_penalty: float = Field(default=1.0, ge=0.01, le=100)
    max_tokens: int = Field(default=512, ge=1, le=1_000_000)
    examples: int = Field(default=3, ge=0, le=64)
    example_characters: int = Field(default=800, ge=20)
    example_pool: int = Field(default=1000, ge=0)
    labels: tuple[str, str] = ("Query", "Response")
    instructions: dict[str, str] = Field(default_factory=dict)

    @field_validator("instructions")
    @classmethod
    def _named(cls, value: dict[str, str]) -> dict[str, str]:
        if any(not text.strip() for text in value.values()):
            raise ValueError("an instruction is empty")
        return value

    @property
    def candidates(self) -> int:
        """Thoughts per query, of all contributors together."""
        return sum(each.n for each in self.contributors)

    @property
    def sampling(self) -> ThoughtSettings:
        """How every candidate is sampled; its index makes its draw another one."""
        return ThoughtSettings(
            n_thoughts=self.candidates,
            temperature=self.temperature,
            top_p=self.top_p,
            repetition_penalty=self.repetition_penalty,
            max_new_tokens=self.max_tokens,
            seed=self.seed,
        )

    def to_dict(self) -> dict[str, Any]:
        """The recipe as JSON values, with the wording of every instruction that it may use."""
        return self.model_dump(mode="json") | {"instructions": INSTRUCTIONS | self.instructions}

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that stand for the recipe."""
        return key_of(json.dumps(self.to_dict(), sort_keys=True))


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if key.tag != "tag:yaml.org,2002:merge" and isinstance(name, Hashable):
                if name in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {name!r} stands there twice", key.start_mark
                    )
                seen.add(name)
        found: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
        return found


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def read_yaml(path: str | Path) -> Any:
    """The value of a YAML or JSON file, {} for an empty one. Raises `SettingsError` for what cannot be read.

    A key that stands twice is refused, and 1e-4 is a number.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SettingsError(
            f"There is no file {path}; expected a recipe.",
            hint="Three lines are one (docs/training.md); those of training/recipes come with a clone of the "
            "repository, not with the package.",
        ) from None
    except (OSError, ValueError) as error:
        raise SettingsError(f"The recipe {path} cannot be read: {error}.") from error
    try:
        value = yaml_value(text)
    except (yaml.YAMLError, RecursionError) as error:
        problem = " ".join(str(error).split())
        raise SettingsError(f"The recipe {path} cannot be read: {problem}.") from None
    return {} if value is None else value


def yaml_value(text: str) -> Any:
    """The value of a YAML text, read as `read_yaml` does. Raises `yaml.YAMLError`."""
    return yaml.load(text, Loader=_Loader)  # a SafeLoader  # nosec B506


_EXPECTED = "expected SECTION.FIELD=VALUE, such as optimisation.seed=1"


def changed(value: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """The same fields with each `a.b=value` set; a value is read as YAML. Raises `SettingsError`.

    Of `optimisation.steps` and `optimisation.epochs`, which exclude each other, the changed one stays.
    """
    value = copy.deepcopy(value)
    for change in changes:
        name, found, text = change.partition("=")
        path = name.strip().split(".")
        if not found or not all(path):
            raise SettingsError(f"A change of the recipe is {change!r}; {_EXPECTED}.")
        try:
            new = yaml_value(text)
        except yaml.YAMLError:
            raise SettingsError(f"The value of {change!r} is no YAML.", hint="Quote it.") from None
        _set(value, path, new, change)
    named = {change.partition("=")[0].strip() for change in changes}
    for length, other in (("steps", "epochs"), ("epochs", "steps")):
        alone = f"optimisation.{length}" in named and f"optimisation.{other}" not in named
        if alone and value["optimisation"].get(length) is not None:
            value["optimisation"].pop(other, None)
    return value


def _set(holder: Any, path: Sequence[str], new: Any, change: str) -> None:
    name, *rest = path
    key: Any = name
    if isinstance(holder, list):
        if not name.isdigit() or int(name) >= len(holder):
            raise SettingsError(
                f"The change {change!r} names {name!r} of a list of {len(holder)}; expected a number "
                "below it, counted from 0."
            )
        key = int(name)
    elif not isinstance(holder, dict):
        raise SettingsError(f"The change {change!r} names a field of {holder!r:.40}; {_EXPECTED}.")
    if not rest:
        holder[key] = new
        return
    if isinstance(holder, dict) and holder.get(key) is None:
        holder[key] = {}
    _set(holder[key], rest, new, change)


def _refusal(error: ValidationError, model: type[BaseModel], where: str) -> SettingsError:
    """What to raise for a value that is no `model`: its first wrong field, and what is known there."""
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    field = ".".join(place) or "the whole"
    section = _section(model, place[:-1])
    known = f"Known fields: {', '.join(section.model_fields)}."
    if first["type"] == "extra_forbidden":
        return SettingsError(f"{where}: {field} is no known field.", hint=f"{_closest(model, place)}{known}")
    if first["type"] == "missing":
        return SettingsError(f"{where}: {field} is missing.", hint=known)
    problem = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error" and isinstance(first["input"], dict):
        # Fields that contradict each other: the message names them.
        return SettingsError(f"{where}: {f'{field}: ' if place else ''}{problem}.")
    return SettingsError(f"{where}: {field} is {first['input']!r:.80}: {problem}.")


def _closest(model: type[BaseModel], place: Sequence[str]) -> str:
    """The question whether another field was meant: first of the same section, then of any."""
    own = {name: ".".join([*place[:-1], name]) for name in _section(model, place[:-1]).model_fields}
    for known in (own, _all_fields(model)):
        near = difflib.get_close_matches(place[-1], known, n=1, cutoff=0.6)
        if near:
            return f"Did you mean {known[near[0]]}? "
    return ""


def _all_fields(model: type[BaseModel], prefix: str = "") -> dict[str, str]:
    """Every field of a model and its sections: its own name to its place."""
    found: dict[str, str] = {}
    for name, field in model.model_fields.items():
        inner = _model_in(field.annotation)
        if inner is not None:
            found = _all_fields(inner, f"{prefix}{name}.") | found
        found.setdefault(name, f"{prefix}{name}")
    return found


def _section(model: type[BaseModel], place: Sequence[str]) -> type[BaseModel]:
    """The model that stands at a place; the deepest known one where there is none."""
    for name in place:
        field = model.model_fields.get(name)
        inner = _model_in(field.annotation) if field is not None else None
        if inner is not None:
            model = inner
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Annotated, Union, UnionType, tuple, list):
        inner = (_model_in(each) for each in get_args(annotation))
        return next((each for each in inner if each is not None), None)
    return None
