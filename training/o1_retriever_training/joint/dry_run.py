"""What a recipe will cost on a piece of hardware: tokens, operations, memory, time. Nothing is loaded.

An operation count is that of the matrix products; memory is counted part by part and its largest moment is
reported. Both are estimates: the tests hold them against a counter and against a measured step.
"""

from __future__ import annotations

from dataclasses import dataclass

from o1_retriever_training.joint.dry_run_memory import is_cpu, memory_of
from o1_retriever_training.joint.hardware import Hardware
from o1_retriever_training.joint.lengths import Chunk, Sampled, StepSize, sample
from o1_retriever_training.joint.recipe import TrainRecipe
from o1_retriever_training.joint.sampler import steps_per_epoch
from o1_retriever_training.joint.shapes import Shape, shape_of
from o1_retriever_training.reading import HUB


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a training will cost.

    `tokens` (without padding), `padded` (with it), `labels` (predicted tokens) and `flops` are of one step of
    all `devices` together. `steps` is None where nobody can know how many rows there are. `memory` is bytes
    of one device by part. `notes` say what was assumed.
    """

    model: str
    hardware: Hardware
    devices: int
    parameters: int
    trained: int
    steps: int | None
    rows: int | None
    tokens: float
    padded: float
    labels: float
    flops: float
    memory: dict[str, int]
    notes: tuple[str, ...]

    @property
    def peak(self) -> int:
        """Bytes that one device needs at most."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        """Whether a device has that much."""
        return self.peak <= self.hardware.memory

    @property
    def step_seconds(self) -> float:
        """How long a step takes."""
        return self.flops / (self.devices * self.hardware.peak * self.hardware.utilisation)

    @property
    def seconds(self) -> float | None:
        """How long the training takes, without evaluation and checkpoints."""
        return None if self.steps is None else self.steps * self.step_seconds


def estimate(recipe: TrainRecipe, hardware: Hardware) -> Estimate:
    """What a recipe will cost on some hardware.

    Raises `ModelNotFoundError` for a base whose shape cannot be known, `DataError` for rows that cannot be
    read.
    """
    shape = shape_of(recipe.model)
    data = sample(recipe, "cpu" if is_cpu(hardware) else "cuda")
    devices = hardware.devices or recipe.hardware.processes or 1
    steps, rows, notes = _steps(recipe, data, devices)
    step = data.step
    return Estimate(
        model=recipe.model.base,
        hardware=hardware,
        devices=devices,
        parameters=shape.parameters,
        trained=shape.trained(recipe.model),
        steps=steps,
        rows=rows,
        tokens=step.tokens * devices,
        padded=step.padded * devices,
        labels=step.labels * devices,
        flops=step_flops(recipe, shape, step) * devices,
        memory=memory_of(recipe, shape, step, hardware=hardware, devices=devices),
        notes=(data.note, *notes, *_notes(recipe, shape, hardware)),
    )


def step_flops(recipe: TrainRecipe, shape: Shape, step: StepSize) -> float:
    """Floating-point operations of the matrix products of one step of one process.

    A multiplication and an addition are two. Counted are the forwards, gradient caching's first ones without
    a graph, those that gradient checkpointing repeats, and the backwards: of a frozen weight only the half
    that hands the gradient on.
    """
    linear, low_rank = 2.0 * shape.linear_parameters, 0.0
    head = 2.0 * sum(layer.parameters for layer in shape.head)
    full = recipe.model.tuning == "full"
    if not full:
        rank = recipe.model.lora.rank
        low_rank = 2.0 * rank * sum(layer.inputs + layer.outputs for layer in shape.adapted(recipe.model))
    forwards = 1 + (recipe.optimisation.chunk is not None) + recipe.model.gradient_checkpointing
    back = 2 if full else 1
    attention = _attention(shape, (*step.queries, *step.documents)) / step.batches
    # The backward of attention repeats a product that the forward did not keep, except in the eager one.
    attention_back = 2.0 if recipe.model.attention == "eager" else 2.5
    total = step.padded * (linear * (forwards + back) + low_rank * (forwards + 2))
    return total + attention * (forwards + attention_back) + step.labels * head * (1 + back)


def _attention(shape: Shape, forwards: tuple[Chunk, ...]) -> float:
    """Operations of queries against keys and of weights against values, in all layers."""
    pairs = sum(count * width * width for count, width in forwards)
    return 4.0 * pairs * shape.query_width * shape.layers


def _steps(
    recipe: TrainRecipe, data: Sampled, devices: int
) -> tuple[int | None, int | None, tuple[str, ...]]:
    import numpy as np

    known = [count for count in data.rows if count is not None]
    rows = sum(known) if len(known) == len(data.rows) else None
    optimisation = recipe.optimisation
    if optimisation.steps is not None:
        return optimisation.steps, rows, ()
    if rows is None:
        return (
            None,
            None,
            ("How many rows there are is not known; --set optimisation.steps=N says the total.",),
        )
    far = any(source.path.startswith(HUB) for source in recipe.data.train)
    notes = ("The rows of the Hub are taken to be as many as data.train allows.",) if far else ()
    sources = np.repeat(np.arange(len(known)), known)
    whole = steps_per_epoch(sources, size=optimisation.queries, world=devices)
    return max(1, round((optimisation.epochs or 1.0) * whole)), rows, notes


def _notes(recipe: TrainRecipe, shape: Shape, hardware: Hardware) -> tuple[str, ...]:
    notes = [f"Time at {hardware.peak / 1e12:,.3g} TFLOP/s, of which {hardware.utilisation:.0%} are assumed."]
    if shape.known:
        notes.append("The model's shape is from a table; nothing was downloaded.")
    if recipe.evaluation is not None:
        notes.append("The evaluations on the dev collection come on top of the time.")
    return tuple(notes)
