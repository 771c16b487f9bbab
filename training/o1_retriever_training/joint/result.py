"""How a run ended, and the summary of it that stays beside the model."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from o1_retriever_training.errors import OtherRecipeError
from o1_retriever_training.joint.recipe import TrainRecipe

SUMMARY = "training.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """How a run ended.

    `output` is the model's folder, `best` the dev figures of the weights in it (None without an evaluation),
    `resumed_from` the step that an earlier run had reached (None for a fresh start), `data` what it was
    trained on.
    """

    output: Path
    steps: int
    seconds: float
    best: dict[str, float] | None
    resumed_from: int | None
    data: str
    finished_before: bool = False


def write_summary(result: TrainResult, recipe: TrainRecipe, log: Sequence[dict[str, Any]]) -> None:
    """Write the recipe, the dev figures and the log; only then a run is finished."""
    summary = {
        "recipe": recipe.to_dict(),
        "fingerprint": recipe.fingerprint,
        "steps": result.steps,
        "best": result.best,
        "data": result.data,
        "log": list(log),
    }
    path = result.output / SUMMARY
    staged = path.with_suffix(".part")
    staged.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    staged.replace(path)


def finished(output: Path, recipe: TrainRecipe) -> TrainResult | None:
    """What an earlier run of this recipe came to; None where none was finished.

    Raises `OtherRecipeError` when the output is another recipe's.
    """
    with contextlib.suppress(OSError, ValueError):
        summary = json.loads((output / SUMMARY).read_text(encoding="utf-8"))
        if summary["fingerprint"] != recipe.fingerprint:
            raise OtherRecipeError(
                f"{output} was trained with the recipe {summary['fingerprint']}; this one is "
                f"{recipe.fingerprint}.",
                hint="Give another output, or start over with --from-scratch.",
            )
        return TrainResult(
            output=output,
            steps=summary["steps"],
            seconds=0.0,
            best=summary["best"],
            resumed_from=summary["steps"],
            data=summary["data"],
            finished_before=True,
        )
    return None
