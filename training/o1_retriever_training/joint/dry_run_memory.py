"""Memory of a training step, part by part, at its largest moment."""

from __future__ import annotations

from dataclasses import dataclass

from o1_retriever_training.joint.hardware import Hardware
from o1_retriever_training.joint.lengths import StepSize
from o1_retriever_training.joint.recipe import TrainRecipe
from o1_retriever_training.joint.recipe_parts import ModelSection
from o1_retriever_training.joint.shapes import Shape

_FLOAT = 4
# NF4: half a byte for a weight, and for every 64 of them a scale of 8 bits, of which 256 share a float.
_NF4 = 0.5 + 1 / 64 + _FLOAT / (64 * 256)
# Logits in the forward's precision and in float32, their softmax, and their gradient in both.
_LOGIT_COPIES = 3
# What allocators lose between blocks that come and go, as a share of them; ours.
_FRAGMENTATION = 0.2
_AT_ONCE = 1 << 26  # as many logits as `JointModel` has in memory


def memory_of(
    recipe: TrainRecipe, shape: Shape, step: StepSize, *, hardware: Hardware, devices: int
) -> dict[str, int]:
    """Bytes of one device by part."""
    model = recipe.model
    width = compute_width(model, hardware)
    trained, shares = shape.trained(model), devices if recipe.hardware.sharded else 1
    buckets = 2 if devices > 1 and not recipe.hardware.sharded else 1
    cpu = is_cpu(hardware)
    graph = Graph(*_graph(recipe, step), mask=_FLOAT if cpu else 1)
    activations = activation_bytes(shape, model, graph, width)
    logits = _logits(recipe, shape, step, width)
    return {
        "weights": round(weight_bytes(shape, model, width) / shares),
        "gradients": round(trained * _FLOAT * buckets / shares),
        "optimizer (AdamW)": round(trained * 2 * _FLOAT / shares),
        "activations": round(activations),
        "logits": round(logits),
        "vectors and similarities": round(_vectors(recipe, shape, devices)),
        "fragmentation": round((activations + logits) * _FRAGMENTATION),
        "framework": hardware.overhead,
    }


def compute_width(model: ModelSection, hardware: Hardware) -> int:
    """Bytes of a number in the forward: 2 in bfloat16, 4 in float32."""
    if model.dtype == "auto":
        return _FLOAT if is_cpu(hardware) else 2
    return 2 if model.dtype == "bfloat16" else _FLOAT


def is_cpu(hardware: Hardware) -> bool:
    """Whether it is a processor that training falls back on."""
    return "CPU" in hardware.name


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


@dataclass(frozen=True, slots=True)
class Graph:
    """What is alive between a forward and its backward: tokens, padding included, in rows of `columns`.

    `mask` is what dropout keeps for a number, in bytes: 4 on a CPU and 1 on a GPU.
    """

    tokens: int
    columns: int
    mask: int = 1


def activation_bytes(shape: Shape, model: ModelSection, graph: Graph, width: int) -> float:
    """Bytes that a graph keeps, and what its backward needs besides."""
    one = layer_bytes(shape, model, graph, width)
    if model.gradient_checkpointing:
        # The input of every layer, and all of the one that is computed again, with the gradients in it.
        return graph.tokens * (shape.layers * shape.width * width + 2 * one)
    return graph.tokens * (shape.layers + 1) * one


def layer_bytes(shape: Shape, model: ModelSection, graph: Graph, width: int) -> float:
    """Bytes that one layer keeps for its backward, for each token."""
    queries = shape.query_width
    norms = 2 * shape.width * _FLOAT
    attention = 4 * queries * width  # queries, keys and values (repeated to as many heads), and the outcome
    if shape.attention_dropout or model.attention == "eager":
        # Who looks at whom, which other kernels do not keep; with dropout its mask and what is left, too.
        attention += shape.heads * graph.columns * _FLOAT * (3 if shape.attention_dropout else 1)
    inner = (3 if shape.gated else 1) * shape.inner * width
    if model.tuning == "full":
        # What trained matrices multiply is kept: the layer's two inputs, attention's outcome, the inner one.
        return norms + attention + inner + (2 * shape.width + queries + shape.inner) * width
    adapted = [layer for layer in shape.block if layer.is_any_of(model.lora.targets)]
    # A dropout of its own in front of every low-rank matrix: its mask, and what it let through in float32.
    dropped = (graph.mask if model.lora.dropout else 0) + _FLOAT
    low_rank = sum(layer.inputs * dropped + model.lora.rank * _FLOAT for layer in adapted)
    return norms + attention + inner + low_rank


def _graph(recipe: TrainRecipe, step: StepSize) -> tuple[int, int]:
    """Tokens and columns that are alive at once: of one chunk, or of all where nothing is cached."""
    forwards = (*step.queries, *step.documents)
    columns = max((width for _, width in forwards), default=0)
    if recipe.optimisation.chunk is not None:
        return step.longest, columns
    return round(step.padded), columns


def _logits(recipe: TrainRecipe, shape: Shape, step: StepSize, width: int) -> float:
    queries = recipe.optimisation.queries
    share = min(1.0, (recipe.optimisation.chunk or queries) / queries)
    rows = min(step.labels * share * 1.5, _AT_ONCE / shape.vocabulary)
    return rows * shape.vocabulary * (width + _LOGIT_COPIES * _FLOAT)


def _vectors(recipe: TrainRecipe, shape: Shape, devices: int) -> float:
    everybody = devices if recipe.losses.across_processes else 1
    queries = recipe.optimisation.queries * everybody * (2 if recipe.losses.vectors == "both" else 1)
    documents = recipe.optimisation.queries * everybody * recipe.data.group
    # The vectors and their gradients; similarities, their mask, their softmax and its gradient.
    return (queries + documents) * shape.width * 2 * _FLOAT + queries * documents * 4 * _FLOAT
