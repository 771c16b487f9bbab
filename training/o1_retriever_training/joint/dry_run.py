"""What a recipe will cost on a piece of hardware: tokens, operations, memory, time. Nothing is loaded.

An operation count is that of the matrix products; memory is counted part by part and its largest moment is
reported. Both are estimates: the tests hold them against a counter and against a measured step."""

from __future__ import annotations

import difflib
import time
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
import torch
from rich import box
from rich.filesize import decimal
from rich.table import Table

from o1_retriever.errors import SettingsError, require
from o1_retriever.reporting import counted
from o1_retriever_training.joint.batches import steps_per_epoch
from o1_retriever_training.joint.losses import BLOCK
from o1_retriever_training.joint.model import compute_dtype
from o1_retriever_training.joint.recipe import ModelSection, TrainRecipe
from o1_retriever_training.joint.sizes import Sampled, Shape, StepSize, sample, shape_of
from o1_retriever_training.rows import HUB, count_rows

GIGA = 10**9
THIS = "this"
_FLOAT = 4
# NF4: half a byte for a weight, and for every 64 of them a scale of 8 bits, of which 256 share a float.
_NF4 = 0.5 + 1 / 64 + _FLOAT / (64 * 256)
# Logits in the forward's precision and in float32, their softmax, and their gradient in both.
_LOGIT_COPIES = 3
# What allocators lose between blocks that come and go, as a share of them; ours.
_FRAGMENTATION = 0.2
_AT_ONCE = 1 << 26  # as many logits as `JointModel` has in memory


# Shares of a peak that training reaches: assumed for GPUs, measured for the small model on a CPU.
_GPU_UTILISATION, _CPU_UTILISATION = 0.4, 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """A kind of device: `memory` in bytes, `peak` in floating-point operations a second.

    The peak is that of dense matrix products in bfloat16 on a GPU and in float32 on a CPU; training
    is assumed to reach `utilisation` of it. `overhead` are the bytes that are taken before anything is
    loaded, `devices` is how many there are (None: as many as the recipe says).
    """

    name: str
    memory: int
    peak: float
    utilisation: float = _GPU_UTILISATION
    overhead: int = GIGA
    devices: int | None = None

    @property
    def device(self) -> torch.device:
        """What training calls it."""
        return torch.device("cpu" if "CPU" in self.name else "cuda")


# Dense bfloat16 TFLOP/s and memory as the makers' data sheets have them.
_GPUS = {
    "h200-141gb": (141, 989),
    "h100-80gb": (80, 989),
    "a100-80gb": (80, 312),
    "a100-40gb": (40, 312),
    "l40s-48gb": (48, 362),
    "rtx-5090-32gb": (32, 210),
    "rtx-4090-24gb": (24, 165),
    "rtx-3090-24gb": (24, 71),
    "a10-24gb": (24, 125),
    "l4-24gb": (24, 121),
}


KNOWN = (*_GPUS, "cpu", THIS)


def find_hardware(name: str) -> Hardware:
    """The hardware of a name; `this` is the GPU of this machine, or else its CPU, and `cpu` is the latter.

    Raises `SettingsError` for an unknown name.
    """
    if name in _GPUS:
        gigabytes, teraflops = _GPUS[name]
        return Hardware(name=name, memory=gigabytes * GIGA, peak=teraflops * 1e12)
    if name == THIS and torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        return Hardware(
            name=str(found.name),
            memory=int(found.total_memory),
            peak=_measured("cuda", 8192, torch.bfloat16),
            devices=torch.cuda.device_count(),
        )
    if name in ("cpu", THIS):
        return Hardware(
            name=f"this CPU, {counted(torch.get_num_threads(), 'thread')}",
            memory=require("psutil", extra="train", purpose="A dry run").virtual_memory().total,
            peak=_measured("cpu", 768, torch.float32),
            utilisation=_CPU_UTILISATION,
            overhead=GIGA // 2,
            devices=1,
        )
    near = difflib.get_close_matches(name, KNOWN, n=1, cutoff=0.4)
    meant = f"Did you mean {near[0]}? " if near else ""
    raise SettingsError(
        f"The hardware is {name!r}, which is not known.", hint=f"{meant}Known: {', '.join(KNOWN)}."
    )


def _measured(device: str, size: int, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a product of two matrices: the best of several."""
    left = torch.randn(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(6):
        started = time.perf_counter()
        (left @ left).sum().item()
        best = min(best, time.perf_counter() - started)
    return float(2 * size**3 / best)


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
    data = sample(recipe, hardware.device.type)
    devices = hardware.devices or recipe.hardware.processes or 1
    steps, notes = _steps(recipe, data, devices)
    notes += (
        f"Time at {hardware.peak / 1e12:,.3g} TFLOP/s, of which {hardware.utilisation:.0%} are assumed.",
    )
    if shape.known:
        notes += ("The model's shape is from a table; nothing was downloaded.",)
    if recipe.evaluation is not None:
        notes += ("The evaluations on the dev collection come on top of the time.",)
    step = data.step
    return Estimate(
        model=recipe.model.base,
        hardware=hardware,
        devices=devices,
        parameters=shape.parameters,
        trained=shape.trained(recipe.model),
        steps=steps,
        rows=data.total,
        tokens=step.tokens * devices,
        padded=step.padded * devices,
        labels=step.labels * devices,
        flops=step_flops(recipe, shape, step) * devices,
        memory=memory_of(recipe, shape, step, hardware=hardware, devices=devices),
        notes=(data.note, *notes),
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
    # Queries against keys and weights against values, in all layers.
    pairs = sum(count * width * width for count, width in (*step.queries, *step.documents)) / step.batches
    attention = 4.0 * pairs * shape.query_width * shape.layers
    # The backward of attention repeats a product that the forward did not keep, except in the eager one.
    attention_back = 2.0 if recipe.model.attention == "eager" else 2.5
    total = step.padded * (linear * (forwards + back) + low_rank * (forwards + 2))
    return total + attention * (forwards + attention_back) + step.labels * head * (1 + back)


def _steps(recipe: TrainRecipe, data: Sampled, devices: int) -> tuple[int | None, tuple[str, ...]]:
    """How many steps the training has (None: unknown), and what was assumed of the rows."""
    optimisation = recipe.optimisation
    if optimisation.steps is not None:
        return optimisation.steps, ()
    if data.total is None:
        return None, ("How many rows there are is not known; --set optimisation.steps=N says the total.",)
    far = any(source.path.startswith(HUB) for source in recipe.data.train)
    notes = ("The rows of the Hub are taken to be as many as data.train allows.",) if far else ()
    sources = np.repeat(np.arange(len(data.rows)), [count or 0 for count in data.rows])
    whole = steps_per_epoch(sources, size=data.step.rows, world=devices)
    return max(1, round((optimisation.epochs or 1.0) * whole)), notes


def memory_of(
    recipe: TrainRecipe, shape: Shape, step: StepSize, *, hardware: Hardware, devices: int
) -> dict[str, int]:
    """Bytes of one device by part."""
    model = recipe.model
    width = compute_dtype(model, hardware.device).itemsize
    trained, shares = shape.trained(model), devices if recipe.hardware.sharded else 1
    buckets = 2 if devices > 1 and not recipe.hardware.sharded else 1
    mask = _FLOAT if hardware.device.type == "cpu" else 1
    layer = layer_bytes(shape, model, columns=step.columns, mask=mask, width=width)
    # Of one chunk, or of all where nothing is cached.
    tokens = step.padded if recipe.optimisation.chunk is None else step.longest
    if model.gradient_checkpointing:
        # The input of every layer, and all of the one that is computed again, with the gradients in it.
        activations = tokens * (shape.layers * shape.width * width + 2 * layer)
    else:
        activations = tokens * (shape.layers + 1) * layer
    logits = _logits(recipe, shape, step, width)
    return {
        "weights": round(weight_bytes(shape, model, width) / shares),
        "gradients": round(trained * _FLOAT * buckets / shares),
        "optimizer (AdamW)": round(trained * 2 * _FLOAT / shares),
        "activations": round(activations),
        "logits": round(logits),
        "vectors and similarities": round(_vectors(recipe, shape, step.rows, devices)),
        "fragmentation": round((activations + logits) * _FRAGMENTATION),
        "framework": hardware.overhead,
    }


def weight_bytes(shape: Shape, model: ModelSection, width: int) -> float:
    """Bytes of the weights: float32 for full tuning, with copies in the forward's precision beside them."""
    if model.tuning == "full":
        copies = width if width < _FLOAT else 0
        return shape.parameters * (_FLOAT + copies)
    adapters = shape.trained(model) * _FLOAT
    if model.tuning == "lora":
        return shape.parameters * width + adapters
    frozen = shape.linear_parameters
    dequantised = max(layer.parameters for layer in shape.linear) * width
    return frozen * _NF4 + (shape.parameters - frozen) * width + adapters + dequantised


def layer_bytes(shape: Shape, model: ModelSection, *, columns: int, mask: int, width: int) -> float:
    """Bytes that one layer keeps for its backward, for each token of sequences of so many `columns`.

    `mask` is what dropout keeps for a number, in bytes: 4 on a CPU and 1 on a GPU.
    """
    queries = shape.query_width
    norms = 2 * shape.width * _FLOAT
    attention = 4 * queries * width  # queries, keys and values (repeated to as many heads), and the outcome
    if shape.attention_dropout or model.attention == "eager":
        # Who looks at whom, which other kernels do not keep; with dropout its mask and what is left, too.
        attention += shape.heads * columns * _FLOAT * (3 if shape.attention_dropout else 1)
    inner = (3 if shape.gated else 1) * shape.inner * width
    if model.tuning == "full":
        # What trained matrices multiply is kept: the layer's two inputs, attention's outcome, the inner one.
        return norms + attention + inner + (2 * shape.width + queries + shape.inner) * width
    adapted = [layer for layer in shape.block if layer.is_any_of(model.lora.targets)]
    # A dropout of its own in front of every low-rank matrix: its mask, and what it let through in float32.
    dropped = (mask if model.lora.dropout else 0) + _FLOAT
    low_rank = sum(layer.inputs * dropped + model.lora.rank * _FLOAT for layer in adapted)
    return norms + attention + inner + low_rank


def _logits(recipe: TrainRecipe, shape: Shape, step: StepSize, width: int) -> float:
    share = min(1.0, (recipe.optimisation.chunk or step.rows) / step.rows)
    rows = min(step.labels * share * 1.5, _AT_ONCE / shape.vocabulary)
    return rows * shape.vocabulary * (width + _LOGIT_COPIES * _FLOAT)


def _vectors(recipe: TrainRecipe, shape: Shape, rows: int, devices: int) -> float:
    index = recipe.data.index
    if index is not None:
        count = count_rows(index.corpus, show=True) or 0 if Path(index.corpus).is_file() else 0
        # The index; of what is compared at once scores, their mask, their softmax and its gradient.
        return count * shape.width * _FLOAT + min(rows * count, BLOCK) * 4 * _FLOAT
    everybody = devices if recipe.losses.across_processes else 1
    queries = rows * everybody * (2 if recipe.losses.vectors == "both" else 1)
    documents = rows * everybody * recipe.data.group
    # The vectors and their gradients; similarities, their mask, their softmax and its gradient.
    return (queries + documents) * shape.width * 2 * _FLOAT + queries * documents * 4 * _FLOAT


def work_table(estimate: Estimate) -> Table:
    """What is trained and how long it takes."""
    table = _table("", "a step", "in all")
    steps = estimate.steps
    trained = estimate.trained / estimate.parameters
    table.add_row("model", "", "/".join(PurePath(estimate.model).parts[-2:]))
    table.add_row("parameters", "", large(estimate.parameters))
    table.add_row("  trained", "", f"{large(estimate.trained)} ({trained:.2%})")
    table.add_row("rows", "", "unknown" if estimate.rows is None else f"{estimate.rows:,}")
    table.add_row("steps", "", "unknown" if steps is None else f"{steps:,}")
    sums = {
        "tokens": estimate.tokens,
        "  with padding": estimate.padded,
        "  predicted": estimate.labels,
        "FLOPs": estimate.flops,
    }
    for name, value in sums.items():
        table.add_row(name, large(value), "–" if steps is None else large(value * steps))
    total = "–" if estimate.seconds is None else duration(estimate.seconds)
    table.add_row("time", duration(estimate.step_seconds), f"[bold]{total}[/bold]")
    return table


def memory_table(estimate: Estimate) -> Table:
    """The memory of one device by part."""
    many = f"{estimate.devices} × " if estimate.devices > 1 else ""
    table = _table(f"{many}{estimate.hardware.name}", "memory of one")
    for name, value in estimate.memory.items():
        table.add_row(name, decimal(value, precision=2))
    table.add_section()
    style, verdict = ("green", "fits") if estimate.fits else ("bold red", "does not fit")
    table.add_row(f"[{style}]at most[/]", f"[{style}]{decimal(estimate.peak, precision=2)}[/]")
    table.add_row(f"of {decimal(estimate.hardware.memory)}", f"[{style}]{verdict}[/]")
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title, box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right")
    return table


def large(value: float) -> str:
    """A count in three digits: 7.62 B."""
    units = {1e21: "Z", 1e18: "E", 1e15: "P", 1e12: "T", 1e9: "B", 1e6: "M", 1e3: "k"}
    for size, unit in units.items():
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
