"""A model's layers on a processor: attention over what rows share, and layers with fewer operations.

torch's attention kernel is made for many queries at once, and so it gets them: in a step, the heads that
share keys are queries of one product, and what all prompts begin with is one product for all rows. Each part
comes with the logarithm of its sum of weights, by which the two are joined exactly.

Much of a step of a small model is spent between its matrix products: on launching small operations from
Python. So in a layer of the Llama family queries, keys and values are one product; its norms' weights are
part of the products behind them; its activation, its gate and its sums are part of the products before them;
and the rotation of positions is one multiplication of complex numbers. A layer is replaced where the new one
was tried on its weights and gives the same; elsewhere it stays.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import Linear, Parameter
from transformers import AttentionInterface
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from o1_retriever.engine.weights import ACTIVATIONS, activated, pack, plus, times
from o1_retriever.errors import CheckpointError

_NAME = "o1_retriever"
Layers = Sequence[tuple[torch.Tensor, torch.Tensor]]
_shared: ContextVar[Layers] = ContextVar("shared", default=())
# What a model may pass along that changes nothing here: a window is part of the mask already.
_HARMLESS = frozenset(
    ("dropout", "is_causal", "sliding_window", "position_ids", "use_cache", "cache_position")
)


def takes_our_attention(model: Any) -> bool:
    """Whether a model can go through this attention: on a CPU, where it would take torch's own."""
    config = model.config.get_text_config(decoder=True)
    return bool(model.device.type == "cpu" and config._attn_implementation in ("sdpa", _NAME))


@contextmanager
def sharing(model: Any, layers: Layers) -> Iterator[None]:
    """Within it, `model` takes this attention where it can.

    `layers` are keys and values, (heads, tokens, head dimension), that stand before those of every row; no
    other attention knows of them.
    """
    if not takes_our_attention(model):
        yield
        return
    config = model.config.get_text_config(decoder=True)
    usual, before = config._attn_implementation, _shared.set(layers)
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = usual
        _shared.reset(before)


def attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    scaling: float,
    layer: int,
) -> torch.Tensor:
    """Attention of queries (rows, tokens, group, kv heads, d) over keys (rows, kv heads, columns, d).

    The `group` query heads of a kv head share its keys. The mask is added to the scores, (rows, 1, tokens,
    columns); None: each token sees those before it. Gives what the queries' shape is.
    """
    shared = _shared.get()
    states, sums = _over_own(query, keys, values, mask, scaling)
    if not shared:
        return states
    first, first_sums = _over_shared(query, *shared[layer], scaling)
    share = torch.sigmoid(sums - first_sums).unsqueeze(-1).to(states.dtype)
    return torch.lerp(first, states, share)


def _over_own(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over each row's own tokens, and the logarithms of the sums of its weights."""
    rows, tokens, group, kv, _ = query.shape
    if tokens == 1:
        states, sums = _kernel(query[:, 0].transpose(1, 2), keys, values, mask, scaling)
        return states.transpose(1, 2).unsqueeze(1), sums.transpose(1, 2).unsqueeze(1)
    if group > 1:
        keys, values = keys.repeat(1, group, 1, 1), values.repeat(1, group, 1, 1)
    states, sums = _kernel(query.flatten(2, 3).transpose(1, 2), keys, values, mask, scaling, mask is None)
    shape = (rows, tokens, group, kv)
    return states.transpose(1, 2).view(*shape, -1), sums.transpose(1, 2).view(shape)


def _over_shared(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same over what all rows share, (kv heads, tokens, d), as if they were queries of one row."""
    rows, tokens, group, kv, size = query.shape
    together = query.permute(3, 0, 1, 2, 4).reshape(1, kv, rows * tokens * group, size)
    states, sums = _kernel(together, keys[None], values[None], None, scaling)
    shape = (kv, rows, tokens, group)
    return states[0].view(*shape, -1).permute(1, 2, 3, 0, 4), sums[0].view(shape).permute(1, 2, 3, 0)


def _kernel(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    causal: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    states, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, keys, values, is_causal=causal, attn_mask=mask, scale=scaling
    )
    return states, sums


def _as_called(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """As transformers calls an attention: query (rows, heads, tokens, d), keys (rows, kv heads, columns, d).

    Gives (rows, tokens, heads, d). What is not for us goes to transformers' own function.
    """
    shared = bool(_shared.get())
    unusual = any(value is not None for name, value in options.items() if name not in _HARMLESS)
    if shared and unusual:
        raise CheckpointError(
            f"A {type(module).__name__} asks for an attention that cannot share a prompt's beginning.",
            hint="Load the model with attn_implementation='eager'.",
        )
    if not shared and (unusual or query.shape[2] != 1 or attention_mask is None):
        given: Any = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
        return given  # type: ignore[no-any-return]
    rows, _, tokens, size = query.shape
    grouped = query.reshape(rows, key.shape[1], -1, tokens, size).permute(0, 3, 2, 1, 4)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    mask = added(attention_mask, query.dtype)
    states = attend(grouped, key, value, mask, scaling=scaling, layer=module.layer_idx)
    return states.transpose(2, 3).flatten(2, 3), None


def added(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """A mask that is added to scores, of one that says what is seen."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -math.inf)


AttentionInterface.register(_NAME, _as_called)
AttentionMaskInterface.register(_NAME, sdpa_mask)


logger = logging.getLogger(__name__)

# How far a layer's own contribution may be off, as a share of it: rounding, and no more.
_OFF, _OFF_IN_HALF = 1e-3, 0.05
_TRIED = 7  # tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Heads of a layer: `group` query heads share each of `kv` key heads, of `size` numbers each."""

    group: int
    kv: int
    size: int

    @property
    def turned(self) -> int:
        """How many numbers of a product are queries and keys, which the rotation turns."""
        return (self.group + 1) * self.kv * self.size


class FusedLayer(torch.nn.Module):
    """A decoder layer of the Llama family, called as transformers calls it. It can be run, not saved."""

    def __init__(self, layer: Any, shared: _OncePerPass) -> None:
        super().__init__()
        attention = layer.self_attn
        query, keys, values, out, gate, up, down = _projections(layer)
        size = int(attention.head_dim)
        kv = keys.out_features // size
        self.shape = Shape(group=query.out_features // size // kv, kv=kv, size=size)
        self.scaling, self.layer_idx = float(attention.scaling), int(attention.layer_idx)
        self.activation: str = layer.self_attn.config.hidden_act
        first, second = layer.input_layernorm, layer.post_attention_layernorm
        self.qkv = _folded(_stacked(query, keys, values, self.shape), first)
        self.out = _regrouped(out, self.shape)
        self.gate, self.up, self.down = _folded(gate, second), _folded(up, second), down
        self.epsilons = _epsilon(first), _epsilon(second)
        self.head_norms = _head_norms(attention, self.shape)
        self.once = shared

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_embeddings: Any = None,
        cache: Any = None,
        past_key_values: Any = None,
        **_others: Any,
    ) -> torch.Tensor:
        """The layer's states (rows, tokens, dimension)."""
        rows, tokens, size = hidden_states.shape
        states = hidden_states.reshape(-1, size)
        product = self.qkv(_unit(states, self.epsilons[0])).view(rows, tokens, -1)
        query, keys, values = self._heads(product, self.once.rotation(position_embeddings))
        cache = past_key_values if cache is None else cache  # its name in earlier versions of transformers
        if cache is not None:
            keys, values = cache.update(keys, values, self.layer_idx)
        mask = self.once.mask(attention_mask, states.dtype)
        attended = attend(query, keys, values, mask, scaling=self.scaling, layer=self.layer_idx)
        states = plus(self.out, attended.reshape(len(states), -1), states)
        unit = _unit(states, self.epsilons[1])
        gated = times(self.up, unit, activated(self.gate, unit, self.activation))
        return plus(self.down, gated, states).view(rows, tokens, size)

    def _heads(
        self, product: torch.Tensor, rotation: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries (rows, tokens, group, kv heads, d), keys and values (rows, kv heads, tokens, d)."""
        shape = self.shape
        rows, tokens, _ = product.shape
        both = product[..., : shape.turned].view(rows, tokens, -1, shape.size)
        wide = _wide(both)
        if self.head_norms is not None:
            weight, epsilon = self.head_norms
            wide = _unit(wide, epsilon).mul_(weight)
        # In place: queries and keys are nobody else's.
        torch.view_as_complex(wide.view(*wide.shape[:-1], -1, 2)).mul_(rotation)
        turned = wide.to(both.dtype)
        values = product[..., shape.turned :].view(rows, tokens, shape.kv, shape.size)
        queries = shape.group * shape.kv
        return (
            turned[:, :, :queries].view(rows, tokens, shape.group, shape.kv, shape.size),
            turned[:, :, queries:].transpose(1, 2),
            values.transpose(1, 2),
        )


class _OncePerPass:
    """What all layers of a pass are given alike, brought once into the form that they compute with."""

    def __init__(self) -> None:
        # What was given last, and what was made of it: one pair, as threads may run passes at once.
        self._rotation: tuple[Any, Any] = (None, None)
        self._mask: tuple[Any, Any] = (None, None)

    def rotation(self, embeddings: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Cosines and sines (rows, tokens, d) as complex numbers (rows, tokens, 1, d/2)."""
        given, made = self._rotation
        if given is not embeddings[0]:
            given, half = embeddings[0], embeddings[0].shape[-1] // 2
            cosines, sines = (_wide(part[..., None, :half]) for part in embeddings)
            made = torch.complex(cosines, sines)
            self._rotation = given, made
        rotation: torch.Tensor = made
        return rotation

    def mask(self, mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
        """The mask as one that is added."""
        given, made = self._mask
        if given is not mask:
            given, made = mask, added(mask, dtype)
            self._mask = given, made
        sums: torch.Tensor | None = made
        return sums


def _wide(states: torch.Tensor) -> torch.Tensor:
    """At least float32, in which complex numbers exist and lengths are exact."""
    return states.float() if states.dtype.itemsize < 4 else states


def _unit(states: torch.Tensor, epsilon: torch.Tensor) -> torch.Tensor:
    """States over their length, which `epsilon` keeps from being nought: a norm without its weight."""
    wide = torch.float32 if states.dtype.itemsize < 4 else states.dtype
    length = torch.linalg.vector_norm(states, dim=-1, keepdim=True, dtype=wide)
    return torch.div(states, length.hypot_(epsilon)).to(states.dtype)


def lay_out(model: Any, *, int8: bool = False) -> None:
    """Lay a causal model's weights out for this processor, in place: it can be run then, and not be saved."""
    _fuse(model)
    pack(model, int8=int8)


@torch.no_grad()
def _fuse(model: Any) -> None:
    """Replace a model's decoder layers by fused ones, in place, each where it gives the same."""
    layers = getattr(model.base_model, "layers", None)
    if not isinstance(layers, torch.nn.ModuleList) or not takes_our_attention(model):
        return
    once = _OncePerPass()
    for place, layer in enumerate(layers):
        if _is_of_the_family(layer):
            layers[place] = _fused(model, layer, once)


def _is_of_the_family(layer: Any) -> bool:
    """Whether a layer has the parts of Llama's, and no others with weights."""
    try:
        parts = [*_projections(layer), layer.input_layernorm, layer.post_attention_layernorm]
        parts += _norms_of_heads(layer.self_attn)
        activation = layer.self_attn.config.hidden_act
    except AttributeError:
        return False
    known = sum(weights.numel() for part in parts for weights in part.parameters())
    whole = known == sum(weights.numel() for weights in layer.parameters())
    return whole and all(type(part) is Linear for part in parts[:7]) and activation in ACTIVATIONS


def _fused(model: Any, layer: Any, once: _OncePerPass) -> Any:
    """The layer in its fused form, if that adds the same to some states as rounding goes; else itself."""
    ids = torch.arange(_TRIED, device=model.device)[None]
    states = model.get_input_embeddings()(ids)
    try:
        rotation = model.base_model.rotary_emb(states, ids)
        expected = layer(states, attention_mask=None, position_ids=ids, position_embeddings=rotation)
        fused = FusedLayer(layer, once)
        found = fused(states, position_embeddings=rotation)
    except (AttributeError, RuntimeError, TypeError) as error:
        logger.debug("A %s stays as it is: %s", type(layer).__name__, error)
        return layer
    off = (found - expected).float().norm() / (expected - states).float().norm()
    return fused if off < (_OFF_IN_HALF if states.dtype.itemsize < 4 else _OFF) else layer


def _projections(layer: Any) -> list[Linear]:
    """The seven products of a layer; those that are stored as one (Phi-3) are cut."""
    attention, mlp = layer.self_attn, layer.mlp
    if hasattr(attention, "qkv_proj"):
        config, size = attention.config, attention.head_dim
        heads = [config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads]
        first = _cut(attention.qkv_proj, [size * count for count in heads])
        half = mlp.gate_up_proj.out_features // 2
        return [*first, attention.o_proj, *_cut(mlp.gate_up_proj, [half, half]), mlp.down_proj]
    first = [attention.q_proj, attention.k_proj, attention.v_proj]
    return [*first, attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj]


def _cut(linear: Any, sizes: list[int]) -> list[Any]:
    if type(linear) is not Linear:
        return [linear] * len(sizes)
    weights = torch.split_with_sizes(linear.weight, sizes)
    biases = [None] * len(sizes) if linear.bias is None else torch.split_with_sizes(linear.bias, sizes)
    return [_linear(weight, bias) for weight, bias in zip(weights, biases, strict=True)]


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    """A layer of these weights, which are not copied."""
    linear = Linear(1, 1, bias=False)
    linear.out_features, linear.in_features = weight.shape
    linear.weight = Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        linear.bias = Parameter(bias.detach(), requires_grad=False)
    return linear


def _stacked(query: Linear, keys: Linear, values: Linear, shape: Shape) -> Linear:
    """One product for all three."""
    layers = query, keys, values
    weights = [_arranged(part.weight, shape) for part in layers[:2]]
    weight = torch.cat([*weights, values.weight])
    if query.bias is None:
        return _linear(weight, None)
    biases = [_arranged(part.bias[:, None], shape)[:, 0] for part in layers[:2]]
    return _linear(weight, torch.cat([*biases, values.bias]))


def _arranged(rows: torch.Tensor, shape: Shape) -> torch.Tensor:
    """The rows of queries or keys, (heads x d, ...): query heads by place in their group, halves as pairs.

    The two halves of a head, which the rotation takes as the parts of complex numbers, stand side by side
    then; scores do not depend on the order in which they are summed up.
    """
    heads = rows.reshape(shape.kv, -1, 2, shape.size // 2, rows.shape[1])
    return heads.permute(1, 0, 3, 2, 4).reshape(rows.shape)


def _regrouped(out: Linear, shape: Shape) -> Linear:
    """The product behind the attention, for heads by place in their group."""
    heads = out.weight.reshape(-1, shape.kv, shape.group, shape.size)
    return _linear(heads.transpose(1, 2).reshape(out.weight.shape), out.bias)


def _folded(linear: Linear, norm: Any) -> Linear:
    """The product of states that a norm has weighted, for states of length one."""
    factor = _norm_weight(norm) * math.sqrt(linear.in_features)
    weight = _wide(linear.weight) * factor.to(_wide(linear.weight).dtype)
    return _linear(weight.to(linear.weight.dtype), linear.bias)


def _norm_weight(norm: Any) -> torch.Tensor:
    """What a norm multiplies by: its weight, and with Gemma one more."""
    weight: torch.Tensor = norm.weight.detach().double()
    given: torch.Tensor = norm(torch.ones_like(norm.weight)[None])[0].double()
    return weight + 1 if (given - weight).abs().max() > 0.5 else weight


def _head_norms(attention: Any, shape: Shape) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Weights (heads, d) and epsilon of the norms of queries and keys, where a layer has them (Qwen3)."""
    norms = _norms_of_heads(attention)
    if not norms:
        return None
    pairs = [_norm_weight(norm).view(2, -1).T.reshape(1, shape.size) for norm in norms]
    weights = [pairs[0].repeat(shape.group * shape.kv, 1), pairs[1].repeat(shape.kv, 1)]
    weight = torch.cat(weights) * math.sqrt(shape.size)
    return weight.to(_wide(norms[0].weight).dtype), _epsilon(norms[0])


def _norms_of_heads(attention: Any) -> list[Any]:
    norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
    return [norm for norm in norms if norm is not None]


def _epsilon(norm: Any) -> torch.Tensor:
    """What the length of states is joined with, as the norm adds to their mean square."""
    epsilon = norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps
    return torch.tensor([math.sqrt(epsilon * len(norm.weight))], dtype=_wide(norm.weight).dtype)


def layer_windows(config: Any) -> list[int | None]:
    """Each layer's attention window in tokens, None for a layer that sees everything.

    Raises `CheckpointError` for layers that are not attention over keys and values.
    """
    windows: list[int | None] = []
    layers: list[Any] = DynamicCache(config=config.get_text_config(decoder=True)).layers
    for layer in layers:
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            raise CheckpointError(
                f"The model has a {type(layer).__name__}; expected plain attention, full or sliding.",
                hint="Use it behind a server: ThinkingEmbedder.from_parts(OpenAIThinker(...), encoder).",
            )
        windows.append(getattr(layer, "sliding_window", None) if layer.is_sliding else None)
    return windows
