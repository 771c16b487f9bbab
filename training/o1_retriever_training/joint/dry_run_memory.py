"""Memory of a training step, part by part, at its largest moment."""

from __future__ import annotations

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
_AT_ONCE = 1 << 26  # as many logits as `JointModel` has in memory


def memory_of(
    recipe: TrainRecipe, shape: Shape, step: StepSize, *, hardware: Hardware, devices: int
) -> dict[str, int]:
    """Bytes of one device by part."""
    model = recipe.model
    width = compute_width(model, hardware)
    trained, shares = shape.trained(model), devices if recipe.hardware.sharded else 1
    buckets = 2 if devices > 1 and not recipe.hardware.sharded else 1
    tokens = _graph_tokens(recipe, step)
    return {
        "weights": round(weight_bytes(shape, model, width) / shares),
        "gradients": round(trained * _FLOAT * buckets / shares),
        "optimizer (AdamW)": round(trained * 2 * _FLOAT / shares),
        "activations": round(activation_bytes(shape, model, tokens, width)),
        "logits": round(_logits(recipe, shape, step, width)),
        "vectors and similarities": round(_vectors(recipe, shape, devices)),
        "framework": hardware.overhead,
    }


def compute_width(model: ModelSection, hardware: Hardware) -> int:
    """Bytes of a number in the forward: 2 in bfloat16, 4 in float32."""
    if model.dtype == "auto":
        return _FLOAT if "cpu" in hardware.name.lower() else 2
    return 2 if model.dtype == "bfloat16" else _FLOAT


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


def activation_bytes(shape: Shape, model: ModelSection, tokens: float, width: int) -> float:
    """Bytes that the graph of a forward over so many tokens keeps, and what its backward needs besides."""
    one = layer_bytes(shape, model, width)
    if model.gradient_checkpointing:
        # The input of every layer, and all of the one that is computed again, with the gradients in it.
        return tokens * (shape.layers * shape.width * width + 1.5 * one)
    return tokens * (shape.layers + 0.5) * one


def layer_bytes(shape: Shape, model: ModelSection, width: int) -> float:
    """Bytes that one layer keeps for its backward, for each token."""
    queries = shape.query_width
    norms = 2 * shape.width * _FLOAT
    attention = 4 * queries * width  # queries, keys and values (repeated to as many heads), and the outcome
    inner = (3 if shape.gated else 1) * shape.inner * width
    if model.tuning == "full":
        # What trained matrices multiply is kept: the layer's two inputs, attention's outcome, the inner one.
        return norms + attention + inner + (2 * shape.width + queries + shape.inner) * width
    adapted = [layer for layer in shape.block if layer.name.endswith(model.lora.targets)]
    # A dropout of its own in front of every low-rank matrix: its mask, and what it let through in float32.
    dropped = (1 if model.lora.dropout else 0) + _FLOAT
    low_rank = sum(layer.inputs * dropped + model.lora.rank * _FLOAT for layer in adapted)
    return norms + attention + inner + low_rank


def _graph_tokens(recipe: TrainRecipe, step: StepSize) -> float:
    """Tokens whose graph is alive at once: of one chunk, or of everything where nothing is cached."""
    if recipe.optimisation.chunk is not None:
        return step.longest
    return step.longest_queries + step.longest_documents


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
