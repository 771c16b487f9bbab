"""How a model was made: its recipe, and what its training measured on a dev split."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from o1_retriever.errors import InputError, SettingsError
from o1_retriever_training.publishing.contents import SUMMARY, Contents
from o1_retriever_training.publishing.figures import Figure

RECIPE_FILE = "training_recipe.yaml"
_PATHS = ("fast", "thinking")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The recipe of a training as it is published, in YAML; `fingerprint` is the run's, where it is known."""

    content: bytes
    values: dict[str, Any]
    fingerprint: str | None = None

    @property
    def sha256(self) -> str:
        """Hash of the file, in hexadecimal digits."""
        return hashlib.sha256(self.content).hexdigest()

    def at(self, section: str, name: str) -> Any:
        """A value of a section, None where it is not there."""
        part = self.values.get(section)
        return part.get(name) if isinstance(part, dict) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What is known of a training: its recipe, its steps, its rows in words, and its dev figures."""

    recipe: Recipe | None = None
    steps: int | None = None
    data: str | None = None
    figures: tuple[Figure, ...] = field(default=())


def provenance(found: Contents, given: Path | None) -> Provenance:
    """Read the recipe that is given, else the run's summary in the folder, else a recipe in the folder.

    Raises `InputError` for a file that cannot be read as what it should be.
    """
    summary = _summary(found.folder / SUMMARY)
    if given is not None:
        recipe: Recipe | None = _read(given)
    elif summary:
        recipe = _of_run(summary)
    else:
        recipe = _read(found.folder / found.recipe) if found.recipe else None
    data = summary.get("data")
    return Provenance(
        recipe=recipe,
        steps=summary["steps"] if isinstance(summary.get("steps"), int) else None,
        data=data if isinstance(data, str) else None,
        figures=tuple(_dev_figures(summary)),
    )


def _summary(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}.") from None
    if not isinstance(value, dict) or not isinstance(value.get("recipe"), dict):
        raise InputError(f"{path} is not what o1-retriever train writes; expected an object with a recipe.")
    return value


def _of_run(summary: dict[str, Any]) -> Recipe:
    import yaml

    said = yaml.safe_dump(summary["recipe"], sort_keys=False, allow_unicode=True, width=110)
    return Recipe(
        content=said.encode(),
        values=summary["recipe"],
        fingerprint=str(summary.get("fingerprint") or "") or None,
    )


def _read(path: Path) -> Recipe:
    from o1_retriever_training.recipe import read_yaml

    values = read_yaml(path)
    if not isinstance(values, dict):
        raise SettingsError(f"The recipe {path} is no mapping; expected sections such as model and data.")
    return Recipe(content=path.read_bytes(), values=values)


def _dev_figures(summary: dict[str, Any]) -> list[Figure]:
    best, evaluation = summary.get("best"), summary.get("recipe", {}).get("evaluation")
    if not isinstance(best, dict) or not isinstance(evaluation, dict):
        return []
    name, metric = Path(str(evaluation.get("collection"))).name, str(evaluation.get("metric"))
    queries = evaluation.get("queries")
    found = []
    for path in _PATHS:
        value = best.get(f"{metric} {path}")
        if isinstance(value, int | float):
            tokens = best.get("tokens per thought") if path == "thinking" else None
            found.append(
                Figure(
                    collection=name,
                    split=str(evaluation.get("split") or "dev"),
                    system=f"this model, {path}",
                    measures={metric: float(value)},
                    queries=queries if isinstance(queries, int) else None,
                    cost={"thought_tokens": tokens},
                )
            )
    return found
