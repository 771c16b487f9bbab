"""What happens beside the steps of a run: progress, TensorBoard's extra figures, and when to give up."""

from __future__ import annotations

import logging
import time
from contextlib import AbstractContextManager
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from o1_retriever.progress import Advance, is_shown, progress
from o1_retriever_training.errors import TrainingError

logger = logging.getLogger(__name__)

_WINDOW = 50  # steps of the running mean, and before a loss can be called diverged


class Progress(TrainerCallback):
    """A bar with the parts of the loss, the gradient's norm, tokens per second and the dev figure.

    Without a terminal every log is one line of the logger. `count` gives the tokens that were fed so far.
    """

    def __init__(self, count: Any, *, show: bool | None, main: bool) -> None:
        self._count, self._show, self._main = count, show, main
        self._bar: AbstractContextManager[Advance] | None = None
        self._advance: Advance | None = None
        self._note = self._dev = ""
        self._began = time.perf_counter()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Open the bar over the steps that are left."""
        self._began = time.perf_counter()
        name = f"Training (from step {state.global_step})" if state.global_step else "Training"
        left = state.max_steps - state.global_step
        self._bar = progress(name, left, show=self._main and is_shown(self._show))
        self._advance = self._bar.__enter__()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Move on by a step."""
        if self._advance is not None:
            self._advance(1, f"{self._note}{self._dev}")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Take the newest figures."""
        if not logs:
            return
        dev = [f"{name.removeprefix('eval_')} {value:.3f}" for name, value in logs.items() if "@" in name]
        if dev:
            self._dev = f"  dev {', '.join(dev)}"
        if "loss" in logs:
            rate = self._count() * args.world_size / max(1e-9, time.perf_counter() - self._began)
            logs["tokens_per_second"] = rate
            self._note = (
                f"loss {logs['loss']:.3f} (contrastive {logs.get('contrastive', 0.0):.3f}, thoughts "
                f"{logs.get('generation', 0.0):.3f}), gradient {logs.get('grad_norm', 0.0):.2f}, "
                f"{rate:,.0f} tokens/s"
            )
        if self._main and (dev or "loss" in logs):
            logger.info("Step %d of %d: %s%s", state.global_step, state.max_steps, self._note, self._dev)

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
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: Any,
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

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
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
