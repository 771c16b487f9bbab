"""The recipe of a joint training: everything that decides what is trained, on what, and for how long."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from pydantic import ValidationError, model_validator

from o1_retriever.errors import SettingsError
from o1_retriever_training.joint.recipe_parts import (
    CheckpointSection,
    DataSection,
    EvaluationSection,
    HardwareSection,
    LoraSettings,
    LossSection,
    ModelSection,
    OptimisationSection,
    Section,
    Source,
    StopSection,
    Text,
)
from o1_retriever_training.recipe import read_yaml, refusal

__all__ = [
    "CheckpointSection",
    "DataSection",
    "EvaluationSection",
    "HardwareSection",
    "LoraSettings",
    "LossSection",
    "ModelSection",
    "OptimisationSection",
    "Source",
    "StopSection",
    "TrainRecipe",
    "as_train_recipe",
    "read_train_recipe",
]


class TrainRecipe(Section):
    """Everything about a joint training. Whether its files exist is checked by `read_train_recipe`."""

    model: ModelSection
    data: DataSection
    losses: LossSection = LossSection()
    optimisation: OptimisationSection = OptimisationSection()
    evaluation: EvaluationSection | None = None
    checkpoints: CheckpointSection = CheckpointSection()
    stop: StopSection = StopSection()
    hardware: HardwareSection = HardwareSection()
    output: Text

    @model_validator(mode="after")
    def _agrees(self) -> TrainRecipe:
        if self.losses.vectors == "both" and self.model.layout == "released":
            raise ValueError(
                "losses.vectors is both, and in model.layout released a query with a thought has no fast "
                "vector; expected losses.vectors sampled or model.layout paper"
            )
        alone = self.data.group == 1 and not self.losses.in_batch_negatives
        if alone and self.losses.contrastive_weight:
            raise ValueError(
                "data.group is 1 and losses.in_batch_negatives is off, so that no query has a negative; "
                "expected data.group 2 or more, or losses.in_batch_negatives on"
            )
        return self

    def to_dict(self) -> dict[str, Any]:
        """The recipe as JSON values, defaults included; `TrainRecipe.model_validate` reads them again."""
        return self.model_dump(mode="json")

    @property
    def chunk_tokens(self) -> int | None:
        """How many tokens, padding included, a forward has at most under gradient caching; None without."""
        chunk = self.optimisation.chunk
        longest = max(self.data.max_length, self.data.max_document_tokens)
        return None if chunk is None else chunk * longest

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that stand for all that decides the weights.

        A project can be moved: files count by their names, the base model's folder by its last two. What
        files contain, where the output goes, when it is evaluated or kept and what it runs on do not count.
        """
        content = self.model_dump(
            mode="json", exclude={"output", "checkpoints", "evaluation", "stop", "hardware"}
        )
        del content["model"]["gradient_checkpointing"]
        content["model"]["base"] = "/".join(PurePath(self.model.base).parts[-2:])
        for source in content["data"]["train"]:
            if not source["path"].startswith("hub:"):
                source["path"] = PurePath(source["path"]).name
        return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8).hexdigest()


def read_train_recipe(
    path: str | Path, changes: Sequence[str] = (), *, check_files: bool = True
) -> TrainRecipe:
    """The recipe of a YAML file with some `section.field=value` changed.

    Paths that begin with ./ or ../ are taken from the file's folder. Raises `SettingsError` naming the first
    field that is wrong and, with `check_files`, the first file of the user's that is not there.
    """
    from o1_retriever_training.joint.recipe_changes import changed, check_paths, placed

    value = read_yaml(path)
    if not isinstance(value, dict):
        raise SettingsError(
            f"The recipe {path} is a {type(value).__name__}; expected sections such as model: and data:."
        )
    value = changed(placed(value, Path(path).parent), changes)
    recipe = as_train_recipe(value, where=str(path))
    if check_files:
        check_paths(recipe, where=str(path))
    return recipe


def as_train_recipe(value: Any, *, where: str = "The recipe") -> TrainRecipe:
    """A recipe from its fields. Raises `SettingsError` naming the first one that is wrong."""
    try:
        return TrainRecipe.model_validate(value)
    except ValidationError as error:
        raise refusal(error, TrainRecipe, where) from None
