"""What happens to a recipe between its file and its use: paths put in place, changes, files looked for."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from o1_retriever.errors import SettingsError
from o1_retriever_training.joint.recipe import EvaluationSection, TrainRecipe
from o1_retriever_training.reading import HINT, HUB
from o1_retriever_training.recipe import yaml_value

_EXPECTED = "expected SECTION.FIELD=VALUE, such as optimisation.seed=1"


def placed(value: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The same fields with ./ and ../ of the paths taken from `folder`, and `data.train` as a list."""
    value = copy.deepcopy(value)
    holders: list[tuple[Any, str]] = [
        (value, "output"),
        (value.get("model"), "base"),
        (value.get("evaluation"), "collection"),
    ]
    data = value.get("data")
    if isinstance(data, dict) and "train" in data:
        sources = data["train"] if isinstance(data["train"], list) else [data["train"]]
        data["train"] = [{"path": each} if isinstance(each, str) else each for each in sources]
        holders += [(source, "path") for source in data["train"]]
    for holder, name in holders:
        path = holder.get(name) if isinstance(holder, dict) else None
        if isinstance(path, str) and path.startswith(("./", "../")):
            holder[name] = os.path.normpath(folder.resolve() / path)
    return value


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
    for one, other in (("steps", "epochs"), ("epochs", "steps")):
        alone = f"optimisation.{one}" in named and f"optimisation.{other}" not in named
        if alone and value["optimisation"].get(one) is not None:
            value["optimisation"].pop(other, None)
    return value


def _set(value: dict[str, Any], path: list[str], new: Any, change: str) -> None:
    here: Any = value
    for number, name in enumerate(path):
        last = number == len(path) - 1
        if isinstance(here, list):
            if not name.isdigit() or int(name) >= len(here):
                raise SettingsError(
                    f"The change {change!r} names {name!r} of a list of {len(here)}; expected a number "
                    "below it, counted from 0."
                )
            if last:
                here[int(name)] = new
            else:
                here = here[int(name)]
        elif isinstance(here, dict):
            if last:
                here[name] = new
            elif here.get(name) is None:
                here[name] = {}
            here = here[name]
        else:
            raise SettingsError(f"The change {change!r} names a field of {here!r:.40}; {_EXPECTED}.")


def check_paths(recipe: TrainRecipe, *, where: str) -> None:
    """Raise `SettingsError` naming the first file or folder of the recipe that is not there."""
    for number, source in enumerate(recipe.data.train):
        if not source.path.startswith(HUB) and not Path(source.path).is_file():
            raise SettingsError(
                f"{where}: data.train.{number}.path is {source.path!r}; there is no such file.",
                hint=f"{HINT} Rows of a folder of documents are made by: o1-retriever make-data FOLDER",
            )
    base = Path(recipe.model.base)
    if looks_local(recipe.model.base) and not (base / "config.json").is_file():
        raise SettingsError(
            f"{where}: model.base is {recipe.model.base!r}; there is no folder with a config.json.",
            hint="Expected the folder of a causal language model, or a Hub id such as Qwen/Qwen2.5-0.5B.",
        )
    if recipe.evaluation is not None:
        _check_collection(recipe.evaluation, where)
    output = Path(recipe.output)
    if output.exists() and not output.is_dir():
        raise SettingsError(f"{where}: output is {recipe.output!r}, a file; expected a folder.")


def looks_local(base: str) -> bool:
    """Whether a model's name can only be a folder: it exists, or no Hub id is written like that."""
    return Path(base).exists() or base.startswith((".", "/", "~")) or base.count("/") > 1


def _check_collection(section: EvaluationSection, where: str) -> None:
    from o1_retriever.evaluation.collection import splits_of

    root = Path(section.collection)
    if not (root / "corpus.jsonl").is_file():
        raise SettingsError(
            f"{where}: evaluation.collection is {section.collection!r}; there is no folder with a "
            "corpus.jsonl.",
            hint="Expected a BEIR folder: corpus.jsonl, queries.jsonl and qrels/<split>.tsv. "
            "Without one, leave the section out.",
        )
    known = splits_of(root)
    if section.split not in known:
        raise SettingsError(
            f"{where}: evaluation.split is {section.split!r}; {section.collection} has "
            f"{', '.join(known) or 'none'}."
        )
