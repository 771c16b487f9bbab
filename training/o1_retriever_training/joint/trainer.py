"""transformers' Trainer with the joint loss: what is not overridden here is its own."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

from o1_retriever_training.errors import TrainingError
from o1_retriever_training.joint.checkpoints import mark, rotate
from o1_retriever_training.joint.collate import Collator, DrawnRows
from o1_retriever_training.joint.gather import total
from o1_retriever_training.joint.model import JointModel
from o1_retriever_training.joint.recipe import TrainRecipe
from o1_retriever_training.joint.sampler import SameSourceBatches
from o1_retriever_training.joint.sharding import whole_weights
from o1_retriever_training.joint.steps import How, RandomState, joint_step

logger = logging.getLogger(__name__)

WEIGHTS = "trained.safetensors"
Evaluate = Callable[[], dict[str, float]]


class JointTrainer(Trainer):
    """Trains a `JointModel` on drawn rows; `evaluate_dev` gives the figures of a dev collection.

    A step is one contrastive batch: there is no gradient accumulation, because gradient caching makes any
    batch fit. Checkpoints hold what is trained, the optimizer, the schedule and the random numbers.
    """

    def __init__(
        self,
        model: JointModel,
        arguments: TrainingArguments,
        *,
        recipe: TrainRecipe,
        rows: DrawnRows,
        collator: Collator,
        callbacks: list[TrainerCallback],
        evaluate_dev: Evaluate | None = None,
    ) -> None:
        self.recipe = recipe
        self.tokens = 0  # fed by this process since it started
        self._parts: dict[str, Tensor] = {}
        self._counted = 0
        self._evaluate_dev = evaluate_dev
        self._whole: nn.Module = model
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=rows,
            # What is evaluated is a collection; the Trainer only wants to see that there is something.
            eval_dataset=rows if evaluate_dev is not None else None,
            data_collator=collator,
            callbacks=callbacks,
        )

    def get_train_dataloader(self) -> DataLoader[Any]:
        """This process's batches of the whole run: epochs are the sampler's affair."""
        rows: DrawnRows = self.train_dataset  # type: ignore[assignment]
        optimisation = self.recipe.optimisation
        sampler = SameSourceBatches(
            rows.rows.source,
            size=optimisation.queries,
            steps=self.args.max_steps,
            seed=optimisation.seed,
            rank=self.args.process_index,
            world=self.args.world_size,
        )
        pinned = self.args.device.type == "cuda"
        return DataLoader(
            rows,
            batch_sampler=sampler,
            collate_fn=self.data_collator,
            pin_memory=pinned,
            num_workers=self.args.dataloader_num_workers,
            # The workers' seed would be drawn from the numbers that dropout uses.
            generator=torch.Generator().manual_seed(optimisation.seed),
        )

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """The gradient of the joint loss of one batch; returns the loss."""
        model.train()
        batch = self._prepare_inputs(inputs)
        self.tokens += int(batch.pop("tokens"))
        how = How(
            chunk=self.recipe.optimisation.chunk,
            tokens=self.recipe.chunk_tokens,
            backward=self.accelerator.backward,
            # Sharded weights give their gradients away at once; only DDP can wait for the last chunk.
            unsynchronised=contextlib.nullcontext
            if self.is_fsdp_enabled
            else lambda: self.accelerator.no_sync(model),
            even=self.is_fsdp_enabled,
        )
        parts = joint_step(model, batch, self.recipe.losses, how)
        self._check(parts)
        self._counted += 1
        for name, value in parts.items():
            self._parts[name] = self._parts.get(name, torch.zeros_like(value)) + value
        return parts["loss"]

    def _check(self, parts: dict[str, Tensor]) -> None:
        if not total(int(not math.isfinite(float(parts["loss"])))):
            return
        said = ", ".join(f"{name} {float(value):.4g}" for name, value in parts.items())
        raise TrainingError(
            f"The loss is not a number at step {self.state.global_step + 1} ({said}).",
            hint="Lower optimisation.learning_rate or optimisation.max_grad_norm, or compute in float32, and "
            "start again with --from-scratch.",
        )

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
        found = {}
        with whole_weights(self.model):
            if self.is_world_process_zero():
                found = {f"eval_{name}": value for name, value in self._evaluate_dev().items()}
            found = _from_main(found)
        state.restore()
        self.log(dict(found))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self.args.output_dir or ".") / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                rows: DrawnRows = self.train_dataset  # type: ignore[assignment]
                step = self.state.global_step
                mark(folder, fingerprint=self.recipe.fingerprint, step=step, data=rows.rows.name)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise TrainingError(
                f"{folder} could not be written: {error}. The checkpoint before it is whole.",
                hint="Free some space, then type the same command: it goes on from there.",
            ) from error
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


def _from_main(found: dict[str, float]) -> dict[str, float]:
    """The main process's figures in all processes."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return found
    box: list[Any] = [found]
    torch.distributed.broadcast_object_list(box, src=0)
    return dict(box[0])
