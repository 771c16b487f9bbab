"""`o1-retriever train`: train a model by a recipe, or say beforehand what that will cost."""

from __future__ import annotations

import json
import os
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from o1_retriever.cli.models import quiet
from o1_retriever.cli.options import with_options
from o1_retriever.cli.terminal import messages, output, show_log, warn
from o1_retriever.errors import O1RetrieverError, SettingsError, require
from o1_retriever.reporting import counted

if TYPE_CHECKING:
    from o1_retriever_training.joint.recipe import TrainRecipe
    from o1_retriever_training.joint.run import TrainResult

_SET = "SECTION.FIELD=VALUE: change the recipe, such as optimisation.seed=1 (repeatable)."
_HARDWARE = "For --dry-run: a name such as h100-80gb, or this (default: the recipe's, else this)."
# Of several processes that find the same mistake one says so: the others' end must not stop it before.
_AFTER_THE_FIRST = 2.0


@with_options
def train(
    recipe: Annotated[Path, typer.Argument(help="Recipe (YAML): model, data, losses, how long.")],
    *,
    changes: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help=_SET)] = None,
    folder: Annotated[
        str | None, typer.Option("--output", help="Folder of the model, instead of the recipe's.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say how many tokens, how much memory and time, and end.")
    ] = False,
    hardware: Annotated[str | None, typer.Option(metavar="NAME", help=_HARDWARE)] = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Begin again instead of going on from a checkpoint.")
    ] = False,
) -> None:
    """Train a model to think and embed, as a recipe says; the same command goes on where it was stopped."""
    for module in ("pydantic", "yaml"):
        require(module, extra="train", purpose="Training")
    if hardware is not None and not dry_run:
        raise SettingsError("Found --hardware without --dry-run.", hint="Training takes what is there.")
    alone = list(changes or []) + ([] if folder is None else [f"output={json.dumps(folder)}"])
    checked = _read(recipe, alone, check_files=not dry_run)
    if not dry_run:
        _train(checked, from_scratch)
    elif _speaks():
        _estimate(checked, hardware)


def _read(path: Path, changes: list[str], *, check_files: bool) -> TrainRecipe:
    from o1_retriever_training.joint.recipe import read_train_recipe

    try:
        return read_train_recipe(path, changes, check_files=check_files)
    except O1RetrieverError:
        if _speaks():
            raise
        time.sleep(_AFTER_THE_FIRST)
        raise typer.Exit(1) from None


def _estimate(recipe: TrainRecipe, hardware: str | None) -> None:
    quiet()
    from o1_retriever_training.joint.dry_run import estimate, find_hardware, memory_table, work_table

    found = estimate(recipe, find_hardware(hardware or recipe.hardware.device or "this"))
    output().print(work_table(found), memory_table(found), sep="\n")
    for note in found.notes:
        output().print(f"[dim]{note}[/dim]", soft_wrap=True)


def _train(recipe: TrainRecipe, from_scratch: bool) -> None:
    speaks = _speaks()
    if speaks:
        _check_processes(recipe)
        show_log("o1_retriever_training")
    quiet()
    if "LOCAL_RANK" not in os.environ:
        # Without a launcher there is one process: over several GPUs the trainer would cut its batches apart.
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.partition(",")[0]
    from o1_retriever_training.joint.run import train as run

    result = run(recipe, restart=from_scratch)
    if speaks:
        _report(result, recipe)


def _check_processes(recipe: TrainRecipe) -> None:
    planned, found = recipe.hardware.processes, int(os.environ.get("WORLD_SIZE", "1"))
    if planned is None or planned == found:
        return
    each = recipe.optimisation.queries
    meant, running = (counted(count, "process", "processes") for count in (planned, found))
    warn(
        f"The recipe is for {meant} and this is a run of {running}: a batch has "
        f"{counted(each * found, 'query', 'queries')}, not {each * planned}. If that is meant, "
        f"type --set hardware.processes={found}."
    )


def _report(result: TrainResult, recipe: TrainRecipe) -> None:
    from o1_retriever_training.joint.dry_run import duration

    folder = shlex.quote(str(result.output))
    resumed = f", from step {result.resumed_from:,} on" if result.resumed_from else ""
    done = f"{counted(result.steps, 'step')} in {duration(result.seconds)}{resumed}"
    if result.finished_before:
        done = f"trained before, {counted(result.steps, 'step')}; --from-scratch trains again"
    if result.best and recipe.evaluation is not None:
        metric = recipe.evaluation.metric
        figures = [f"{name} {value:.3f}" for name, value in result.best.items() if name.startswith(metric)]
        at = f" at step {result.best['step']:,.0f}" if "step" in result.best else ""
        done += f"; on the dev collection {', '.join(figures)}{at}"
    lines = [
        f"{folder}: {done}",
        f"Data: {result.data}",
        "Next:",
        f"  o1-retriever index FOLDER --model {folder} --index my-index",
        f'  o1-retriever search "question" --model {folder} --index my-index',
        f"  o1-retriever eval --data FOLDER --split dev --model {folder}",
        f"  tensorboard --logdir {shlex.quote(str(result.output / 'training' / 'tensorboard'))}",
    ]
    messages().print(*lines, sep="\n", soft_wrap=True, markup=False)


def _speaks() -> bool:
    """Whether this is the process that speaks for all of a distributed training."""
    return os.environ.get("RANK", "0") == "0"
