"""transformers' Trainer with the joint loss, and its callbacks: progress, the best checkpoint, divergence.

What is not overridden here is the Trainer's own. A checkpoint counts only when it is whole: a mark is written
last, and a kill leaves none.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState, PrinterCallback, ProgressCallback

from o1_retriever.engine.template import TemplateConfig
from o1_retriever.engine.threads import SparingThreads
from o1_retriever.errors import O1RetrieverError
from o1_retriever.reporting import Advance, is_shown, progress
from o1_retriever.storage import written_whole
from o1_retriever.thinkers.config import ThinkerConfig
from o1_retriever_training.joint.batches import Budget, Collator, DrawnRows, SameSourceBatches, unit_vectors
from o1_retriever_training.joint.model import Backbone, Correction, JointModel, uncast_inputs, whole_weights
from o1_retriever_training.joint.recipe import TrainRecipe
from o1_retriever_training.joint.rows import TrainingRows
from o1_retriever_training.joint.steps import How, RandomState, joint_step, total
from o1_retriever_training.ledger import OtherRecipeError

logger = logging.getLogger(__name__)

_WINDOW = 50  # steps of the running mean, and before a loss can be called diverged
WEIGHTS = "trained.safetensors"
Evaluate = Callable[
    [Any, Any, TemplateConfig | ThinkerConfig], dict[str, float]
]  # model, tokenizer, its template


class TrainingError(O1RetrieverError):
    """A training run cannot be begun, gone on with or finished; its last whole checkpoint stays."""


# The step, how many there will be, and what was logged, from the first step of the run on.
Told = Callable[[int, int, Sequence[Mapping[str, float]]], None]


class Progress(TrainerCallback):
    """A bar with the parts of the loss, the gradient's norm, tokens per second and the dev figure.

    Without a terminal every log is one line of the logger. `count` gives the tokens that were fed so far.
    `told` is called with what every log comes to.
    """

    def __init__(
        self, count: Callable[[], int], *, show: bool | None, main: bool, told: Told | None = None
    ) -> None:
        self._count, self._show, self._main, self._told = count, show, main, told
        self._bar: AbstractContextManager[Advance] | None = None
        self._advance: Advance | None = None
        self._note = self._dev = ""
        self._began = time.perf_counter()

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Open the bar over the steps that are left."""
        self._began = time.perf_counter()
        name = f"Training (from step {state.global_step})" if state.global_step else "Training"
        left = state.max_steps - state.global_step
        self._bar = progress(name, left, show=self._main and is_shown(self._show))
        self._advance = self._bar.__enter__()

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Move on by a step."""
        if self._advance is not None:
            self._advance(1, f"{self._note}{self._dev}")

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **_: Any) -> None:
        """Take the newest figures."""
        if not logs:
            return
        dev = [f"{name.removeprefix('eval_')} {value:.3f}" for name, value in logs.items() if "@" in name]
        if dev:
            self._dev = f"  dev {', '.join(dev)}"
        if "loss" in logs:
            rate = self._count() * args.world_size / max(1e-9, time.perf_counter() - self._began)
            logs["tokens_per_second"] = rate
            known = [name for name in ("teacher", "index", "fast") if name in logs]
            fixed = "".join(f"{name} {logs[name]:.3f}, " for name in known)
            self._note = (
                f"loss {logs['loss']:.3f} (contrastive {logs.get('contrastive', 0.0):.3f}, {fixed}thoughts "
                f"{logs.get('generation', 0.0):.3f}), gradient {logs.get('grad_norm', 0.0):.2f}, "
                f"{rate:,.0f} tokens/s"
            )
        if self._main and (dev or "loss" in logs):
            logger.info("Step %d of %d: %s%s", state.global_step, state.max_steps, self._note, self._dev)
            if self._told is not None:
                self._told(state.global_step, state.max_steps, state.log_history)

    def close(self) -> None:
        """Close the bar, however the run ended."""
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None


class KeepBest(TrainerCallback):
    """Has a checkpoint written whenever the dev figure is the best so far."""

    def __init__(self, metric: str) -> None:
        self._metric = f"eval_{metric}"

    def on_evaluate(
        self, args: Any, state: TrainerState, control: Any, metrics: Any = None, **_: Any
    ) -> None:
        """Ask for a checkpoint when there is a new best one."""
        if metrics and (state.best_metric is None or metrics[self._metric] > state.best_metric):
            control.should_save = True


class Divergence(TrainerCallback, ExportableState):
    """Stops a run whose loss is `factor` times its lowest running mean, and above where it began."""

    def __init__(self, factor: float | None) -> None:
        self.factor = factor
        self.first = self.lowest = self.mean = 0.0
        self.seen = 0

    def state(self) -> dict[str, Any]:
        """What a resumed run must know."""
        names = ("first", "lowest", "mean", "seen")
        return {"args": {"factor": self.factor}, "attributes": {name: getattr(self, name) for name in names}}

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **_: Any) -> None:
        """Look at the newest mean of the loss. Raises `TrainingError` when the run has diverged."""
        if self.factor is None or not logs or "loss" not in logs:
            return
        steps = args.logging_steps
        weight = min(1.0, max(steps, 1) / _WINDOW)
        if not self.seen:
            self.first = self.lowest = self.mean = float(logs["loss"])
        self.mean += weight * (float(logs["loss"]) - self.mean)
        self.seen += int(steps)
        self.lowest = min(self.lowest, self.mean)
        if self.seen > _WINDOW and self.mean > self.factor * self.lowest and self.mean > self.first:
            raise TrainingError(
                f"The loss has diverged at step {state.global_step}: its running mean is {self.mean:.3f}, it "
                f"began at {self.first:.3f} and was as low as {self.lowest:.3f}.",
                hint="Lower optimisation.learning_rate or raise optimisation.warmup, and start again with "
                "--from-scratch; stop.divergence sets how much is too much.",
            )


class JointTrainer(Trainer):
    """Trains a backbone as a `JointModel` on rows; `evaluate_dev` gives the figures of a dev collection.

    A step is one contrastive batch: there is no gradient accumulation, because gradient caching makes any
    batch fit. Checkpoints hold what is trained, the optimizer, the schedule and the random numbers.
    """

    def __init__(
        self,
        backbone: Backbone,
        arguments: TrainingArguments,
        *,
        recipe: TrainRecipe,
        rows: TrainingRows,
        show: bool | None,
        evaluate_dev: Evaluate | None,
        told: Told | None = None,
    ) -> None:
        self.recipe = recipe
        self.tokens = 0  # fed by this process since it started
        self.sparing: SparingThreads | None = None  # who looks at the load before a step
        self._parts: dict[str, Tensor] = {}
        self._counted = 0
        self._evaluate_dev = evaluate_dev
        self._backbone = backbone
        self._whole = joint_model(backbone, recipe, rows)
        self._rows = rows
        self._index = None if rows.index is None else unit_vectors(rows.index).to(arguments.device)
        main = arguments.process_index == 0
        self.progress = Progress(lambda: self.tokens, show=show, main=main, told=told)
        callbacks: list[TrainerCallback] = [self.progress, Divergence(recipe.stop.divergence)]
        if recipe.evaluation is not None:
            callbacks.append(KeepBest(recipe.evaluation.figure))
        drawn = DrawnRows(rows, recipe)
        super().__init__(
            model=self._whole,
            args=arguments,
            train_dataset=drawn,
            # What is evaluated is a collection; the Trainer only wants to see that there is something.
            eval_dataset=drawn if evaluate_dev is not None else None,
            data_collator=Collator(rows, backbone.template, recipe),
            callbacks=callbacks,
        )
        for callback in (ProgressCallback, PrinterCallback):
            self.remove_callback(callback)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """This process's batches of the whole run: epochs are the sampler's affair."""
        optimisation = self.recipe.optimisation
        sampler = SameSourceBatches(
            self._rows.source,
            size=optimisation.queries,
            steps=self.args.max_steps,
            seed=optimisation.seed,
            rank=self.args.process_index,
            world=self.args.world_size,
            budget=budget_of(self.recipe, self._rows),
        )
        return DataLoader(
            self.train_dataset,  # type: ignore[arg-type]
            batch_sampler=sampler,
            collate_fn=self.data_collator,
            pin_memory=self.args.device.type == "cuda",
            num_workers=self.args.dataloader_num_workers,
            # The workers' seed would be drawn from the numbers that dropout uses.
            generator=torch.Generator().manual_seed(optimisation.seed),
        )

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW; a head that starts from nothing may learn faster than what the model knows already."""
        faster = self.recipe.optimisation.head_rate
        if self.optimizer is None and faster != 1.0:
            kind, options = self.get_optimizer_cls_and_kwargs(self.args)
            rate = options.pop("lr")
            body = {id(each) for each in self._whole.language_model.base_model.parameters()}
            learned = [each for each in self._whole.parameters() if each.requires_grad]
            groups = [
                {"params": [each for each in learned if id(each) in body], "lr": rate},
                {"params": [each for each in learned if id(each) not in body], "lr": rate * faster},
            ]
            self.optimizer = kind(groups, weight_decay=self.args.weight_decay, **options)
        found: torch.optim.Optimizer = super().create_optimizer(model)
        return found

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """The gradient of the joint loss of one batch; returns the loss."""
        model.train()
        if self.sparing is not None:
            self.sparing.look()
        batch = self._prepare_inputs(inputs)
        self.tokens += int(batch.pop("tokens"))
        how = How(
            tokens=self.recipe.chunk_tokens,
            backward=self.accelerator.backward,
            # Sharded weights give their gradients away at once; only DDP can wait for the last chunk.
            unsynchronised=contextlib.nullcontext
            if self.is_fsdp_enabled
            else lambda: self.accelerator.no_sync(model),
            even=self.is_fsdp_enabled,
        )
        with uncast_inputs(self._backbone.model, autocast=self.args.bf16):
            parts = joint_step(model, batch, self.recipe.losses, how, self._index)
        if total(int(not math.isfinite(float(parts["loss"])))):
            values = ", ".join(f"{name} {float(value):.4g}" for name, value in parts.items())
            raise TrainingError(
                f"The loss is not a number at step {self.state.global_step + 1} ({values}).",
                hint="Lower optimisation.learning_rate or optimisation.max_grad_norm, or compute in float32, "
                "and start again with --from-scratch.",
            )
        self._counted += 1
        for name, value in parts.items():
            self._parts[name] = self._parts.get(name, torch.zeros_like(value)) + value
        return parts["loss"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the parts of the loss, means since the last time over steps and processes."""
        if "loss" in logs and self._counted:
            for name, value in self._parts.items():
                if name != "loss":
                    logs[name] = self.accelerator.gather(value.reshape(1)).mean().item() / self._counted
            self._parts, self._counted = {}, 0
        super().log(logs, start_time)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The dev collection's figures; the random numbers of training go on as if nothing had happened."""
        if self._evaluate_dev is None:
            return {}
        state = RandomState()
        found: dict[str, float] = {}
        with whole_weights(self.model):
            if self.is_world_process_zero():
                own = self._backbone
                figures = self._evaluate_dev(own.language_model, own.tokenizer, self.deployed)
                found = {f"eval_{name}": value for name, value in figures.items()}
            from accelerate.utils import broadcast_object_list  # the extra `train` installs it

            [found] = broadcast_object_list([found])
        state.restore()
        self.log(dict(found))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found

    @property
    def deployed(self) -> TemplateConfig | ThinkerConfig:
        """The config of what is trained, with the small matrix as it is now, or as the base has it."""
        own, matrix = self._backbone.deployed, self._whole.correction
        if not isinstance(own, ThinkerConfig):
            return own
        return replace(own, correction=self._backbone.correction if matrix is None else matrix.exported())

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self.args.output_dir or ".") / f"checkpoint-{self.state.global_step}"
        with enough_space(folder, RuntimeError):
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                step = self.state.global_step
                mark(folder, fingerprint=self.recipe.fingerprint, step=step, data=self._rows.name)
        if self.args.should_save:
            best = self.state.best_global_step if self.state.best_metric is not None else None
            rotate(folder.parent, keep=self.recipe.checkpoints.keep, best=best)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """What is trained, by the names of its parameters; a loss may be fine and its gradient not."""
        if not self.args.should_save:
            return
        named = trained_weights(self._whole) if state_dict is None else state_dict
        if not all(bool(torch.isfinite(value).all()) for value in named.values()):
            raise TrainingError(
                f"The weights are not numbers any more at step {self.state.global_step}.",
                hint="Lower optimisation.learning_rate and start again with --from-scratch.",
            )
        folder = Path(output_dir or self.args.output_dir or ".")
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous().cpu() for name, value in named.items()}, folder / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        load_weights(self._whole, Path(resume_from_checkpoint))


def joint_model(backbone: Backbone, recipe: TrainRecipe, rows: TrainingRows) -> JointModel:
    """What is trained: the language model and, where the recipe has one, the correction beside it.

    A base that was trained with a correction before goes on with it. Raises `TrainingError` where it is for
    another encoder.
    """
    correction, settings = None, recipe.model.correction
    if settings is not None:
        assert rows.index is not None, "the recipe has been checked"
        known = backbone.correction
        rank, dimension = settings.rank if known is None else len(known.down), rows.index.shape[1]
        if known is not None and len(known.up) != dimension:
            raise TrainingError(
                f"The base corrects vectors of {len(known.up)} numbers and the index's have {dimension}.",
                hint="Train it beside the encoder that it was trained for, or take another base.",
            )
        correction = Correction(backbone.width, dimension, rank, seed=recipe.optimisation.seed)
        if known is not None:
            correction.take(known)
    head = recipe.model.head_trains_embeddings
    return JointModel(
        backbone.model, backbone.language_model, head_trains_embeddings=head, correction=correction
    )


def budget_of(recipe: TrainRecipe, rows: TrainingRows) -> Budget | None:
    """How many tokens a batch of a recipe has at most; None where it counts rows."""
    tokens = recipe.optimisation.tokens
    return None if tokens is None else Budget(tokens, rows.lengths)


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that are trained, tied ones once."""
    return {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}


def load_weights(model: nn.Module, checkpoint: Path) -> None:
    """Put a checkpoint's weights into the model that it was made of."""
    stored = load_file(checkpoint / WEIGHTS)
    own = trained_weights(model)
    if stored.keys() != own.keys():
        differing = sorted(stored.keys() ^ own.keys())
        raise TrainingError(
            f"{checkpoint} has {len(stored)} trained weights and the model {len(own)}; {differing[0]} is in "
            "one of them alone.",
            hint="Give another output, or start over with --from-scratch.",
        )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(stored[name])


MARK = "complete.json"
_PREFIX = "checkpoint-"


@contextlib.contextmanager
def enough_space(folder: Path, *others: type[Exception]) -> Iterator[None]:
    """Say what to do when a folder cannot be written, which may also raise `others`.

    Raises `TrainingError`.
    """
    kinds: tuple[type[Exception], ...] = (OSError, SafetensorError, *others)
    try:
        yield
    except kinds as error:
        raise TrainingError(
            f"{folder} could not be written: {error}. The last checkpoint is whole.",
            hint="Free some space, then type the same command: it goes on from there.",
        ) from error


def mark(folder: Path, *, fingerprint: str, step: int, data: str = "") -> None:
    """Say that a checkpoint is whole: what recipe and data it belongs to, and every file with its size."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.name.startswith(MARK):
            continue
        # A mark that outlived a power failure must not speak of data that did not.
        with path.open("rb") as file:
            os.fsync(file.fileno())
        files[str(path.relative_to(folder))] = path.stat().st_size
    content = {"recipe": fingerprint, "data": data, "step": step, "files": files}
    with written_whole(folder / MARK) as text:
        json.dump(content, text, indent=1)


def is_whole(folder: Path) -> bool:
    """Whether a checkpoint was finished and nothing of it is gone or shorter."""
    content = _marked(folder)
    if content is None:
        return False
    return all(
        (folder / name).is_file() and (folder / name).stat().st_size == size
        for name, size in content["files"].items()
    )


def newest(folder: Path, *, fingerprint: str) -> Path | None:
    """The latest whole checkpoint in `folder`; None where there is none.

    Raises `OtherRecipeError` when it belongs to another recipe.
    """
    for checkpoint in sorted(_checkpoints(folder), key=step_of, reverse=True):
        content = _marked(checkpoint)
        if content is None or not is_whole(checkpoint):
            logger.warning("%s was not finished and is skipped", checkpoint)
            continue
        if content["recipe"] != fingerprint:
            raise OtherRecipeError(
                f"{checkpoint} belongs to the recipe {content['recipe']}; this one is {fingerprint}.",
                hint="Give another output, or start over with --from-scratch: what is there is removed.",
            )
        return checkpoint
    return None


def check_data(checkpoint: Path, data: str) -> None:
    """Raise `OtherRecipeError` when a checkpoint was trained on other rows than those of today."""
    content = _marked(checkpoint) or {}
    if content.get("data", data) != data:
        raise OtherRecipeError(
            f"The rows have changed since {checkpoint} was written: their order would be another one.",
            hint="Bring the rows back, give another output, or start over with --from-scratch.",
        )


def rotate(folder: Path, *, keep: int, best: int | None) -> None:
    """Remove all but the last `keep` whole checkpoints and that of step `best`, and what is not whole."""
    whole = sorted((path for path in _checkpoints(folder) if is_whole(path)), key=step_of)
    kept = {*whole[-keep:], *(path for path in whole if step_of(path) == best)}
    for path in _checkpoints(folder):
        if path not in kept:
            # Without its mark first: a removal that is cut short leaves no whole-looking checkpoint.
            (path / MARK).unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint was written after."""
    return int(checkpoint.name.removeprefix(_PREFIX))


def _checkpoints(folder: Path) -> list[Path]:
    found = folder.glob(f"{_PREFIX}*") if folder.is_dir() else []
    return [path for path in found if path.is_dir() and path.name.removeprefix(_PREFIX).isdigit()]


def _marked(folder: Path) -> dict[str, Any] | None:
    try:
        content = json.loads((folder / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and {"recipe", "files"} <= content.keys() else None
