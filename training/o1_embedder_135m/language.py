"""A Llama in plain torch: a low-rank adapter of all layers at once, a sampler, and a trainer.

A model of this size leaves a GPU waiting for the next small operation. So the matrices of one projection are
one tensor for all layers, they are merged into the base at every step, and what has a fixed shape is recorded
as a CUDA graph; a CPU runs the same code without. H is the width, V the vocabulary, D the width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
POSITIONS = 512  # of the longest prompt with its thought
HIDDEN = -1e4  # added to the score of what must not be read

Prompts: TypeAlias = Sequence[Sequence[int]]
Row: TypeAlias = tuple[list[int], list[int]]  # a prompt's ids, and those that are learned behind it
Written: TypeAlias = tuple[list[int], bool]  # a thought's ids, and whether it ended by itself
Attend: TypeAlias = Callable[[int, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Shape:
    """What weights do not tell: heads, those with keys, RoPE's base, the norms' epsilon, the end's id."""

    heads: int
    keys: int
    theta: float
    epsilon: float
    end: int

    @classmethod
    def of(cls, config: Any, end: int) -> Shape:
        """That of a `LlamaConfig`."""
        theta = config.rope_parameters["rope_theta"]
        return cls(config.num_attention_heads, config.num_key_value_heads, theta, config.rms_norm_eps, end)


class Layer(NamedTuple):
    """Two norms [H] and the projections [out, in]; those that read the same are one."""

    before: Tensor
    qkv: Tensor
    out: Tensor
    between: Tensor
    gate_up: Tensor
    down: Tensor


class Weights(NamedTuple):
    """A whole model, its adapter merged: word embeddings and head [V, H], the last norm [H]."""

    embed: Tensor
    head: Tensor
    norm: Tensor
    layers: tuple[Layer, ...]

    def tensors(self) -> list[Tensor]:
        """All of them in one order."""
        return [self.embed, self.head, self.norm, *(each for layer in self.layers for each in layer)]


@cache
def _turns(theta: float, width: int) -> tuple[Tensor, Tensor]:
    """RoPE's cosines and sines [POSITIONS, D]."""
    frequencies = 1 / theta ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
    angles = (torch.arange(POSITIONS).float()[:, None] * frequencies).repeat(1, 2)
    return angles.cos().to(DEVICE, DTYPE), angles.sin().to(DEVICE, DTYPE)


def forward(shape: Shape, weights: Weights, ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
    """Last states [n, t, H] of ids [n, t] at positions [n or 1, t].

    `attend(layer, queries, keys, values)` gets [n, heads, t, D], of keys and values as many heads as these
    have, and returns [n, heads, t, D].
    """
    (n, t), x = ids.shape, F.embedding(ids, weights.embed)
    for place, layer in enumerate(weights.layers):
        y = F.linear(_norm(x, layer.before, shape), layer.qkv)
        y = y.view(n, t, shape.heads + 2 * shape.keys, -1).transpose(1, 2)
        turned, values = torch.split(y, [shape.heads + shape.keys, shape.keys], 1)
        cos, sin = (each[positions][:, None] for each in _turns(shape.theta, y.shape[-1]))
        first, second = turned.chunk(2, -1)
        turned = turned * cos + torch.cat([-second, first], -1) * sin
        queries, keys = torch.split(turned, [shape.heads, shape.keys], 1)
        x = x + F.linear(attend(place, queries, keys, values).transpose(1, 2).reshape(n, t, -1), layer.out)
        gate, up = F.linear(_norm(x, layer.between, shape), layer.gate_up).chunk(2, -1)
        x = x + F.linear(F.silu(gate) * up, layer.down)
    return _norm(x, weights.norm, shape)


def _norm(x: Tensor, weight: Tensor, shape: Shape) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), weight, shape.epsilon)


def read(shape: Shape, weights: Weights, ids: Tensor) -> Tensor:
    """Last states [n, t, H] of ids [n, t] padded on the right, where causal attention needs no mask."""

    def attend(_: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        keys, values = (each.repeat_interleave(shape.heads // shape.keys, 1) for each in (keys, values))
        return F.scaled_dot_product_attention(queries, keys, values, is_causal=True)

    return forward(shape, weights, ids, torch.arange(ids.shape[1], device=DEVICE)[None], attend)


def last_states(shape: Shape, weights: Weights, rows: Prompts) -> Tensor:
    """The state at the last token of each of some rows, padded together, [n, H]."""
    ids = np.full((len(rows), max(map(len, rows))), shape.end, np.int64)
    for line, row in zip(ids, rows, strict=True):
        line[: len(row)] = row
    last = torch.tensor([len(row) - 1 for row in rows], device=DEVICE)
    return read(shape, weights, torch.from_numpy(ids).to(DEVICE))[
        torch.arange(len(rows), device=DEVICE), last
    ]


@torch.no_grad()
def ends(shape: Shape, weights: Weights, rows: Prompts, at_once: int = 1024) -> Tensor:
    """The state at the last token of each row, float32 [n, H]."""
    found = torch.empty(len(rows), weights.embed.shape[1], device=DEVICE)
    order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
    for first in range(0, len(order), at_once):
        part = order[first : first + at_once]
        found[torch.tensor(part)] = last_states(shape, weights, [rows[place] for place in part]).float()
    return found


class Adapter:
    """Low-rank matrices of every projection of a transformers Llama.

    `a` is [layers, rank, in], `b` [layers, out, rank] and zero at the start. What is trained is
    float32, and rounded to DTYPE once it is merged.
    """

    GROUPS = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
    NAMES = tuple(name for group in GROUPS for name in group)

    def __init__(self, model: Any, *, rank: int, alpha: int, seed: int) -> None:
        layers = model.model.layers
        fixed = [
            model.get_input_embeddings().weight,
            model.get_output_embeddings().weight,
            model.model.norm.weight,
        ]
        self._embed, self._head, self._norm = (each.detach().to(DEVICE, DTYPE) for each in fixed)
        self._before, self._between = (
            [getattr(layer, name).weight.detach().to(DEVICE, DTYPE) for layer in layers]
            for name in ("input_layernorm", "post_attention_layernorm")
        )
        self.base = {name: self._stacked(layers, name) for name in self.NAMES}
        self.rank, self.alpha, draw = rank, alpha, torch.Generator().manual_seed(seed)
        self.a, self.b = {}, {}
        for name, (count, out, inner) in ((name, base.shape) for name, base in self.base.items()):
            start = (torch.rand(count, rank, inner, generator=draw) * 2 - 1) / math.sqrt(inner)
            self.a[name] = start.to(DEVICE).requires_grad_()
            self.b[name] = torch.zeros(count, out, rank, device=DEVICE, requires_grad=True)

    @classmethod
    def _block(cls, name: str) -> str:
        return "self_attn" if name[0] in "qkvo" else "mlp"

    def _stacked(self, layers: Any, name: str) -> Tensor:
        each = [getattr(getattr(layer, self._block(name)), name).weight.detach() for layer in layers]
        return torch.stack(each).to(DEVICE, torch.float32)

    def parameters(self) -> list[Tensor]:
        """What is trained."""
        return [*self.a.values(), *self.b.values()]

    def weights(self) -> Weights:
        """Base and adapter in one; the gradient of what is made of them reaches `parameters`."""
        scale = self.alpha / self.rank
        whole = {
            name: torch.baddbmm(self.base[name], self.b[name], self.a[name], alpha=scale).to(DTYPE)
            for name in self.NAMES
        }
        # Unbound at once: a gradient of one layer at a time would be as large as that of all.
        qkv, out, gate_up, down = (
            torch.cat([whole[name] for name in group], 1).unbind(0) for group in self.GROUPS
        )
        layers = zip(self._before, qkv, out, self._between, gate_up, down, strict=True)
        return Weights(self._embed, self._head, self._norm, tuple(Layer(*each) for each in layers))

    @torch.no_grad()
    def frozen(self) -> Weights:
        """The weights as they are now, without a gradient."""
        return self.weights()

    def named(self) -> dict[str, Tensor]:
        """The matrices by peft's names."""
        return {
            f"base_model.model.model.layers.{place}.{self._block(name)}.{name}.{kind}.weight": matrix.detach()
            for kind, matrices in (("lora_A", self.a), ("lora_B", self.b))
            for name, stacked in matrices.items()
            for place, matrix in enumerate(stacked)
        }


def _recorded(run: Callable[[], None], pool: Any = None) -> Any:
    """`run` as a CUDA graph, run once before as torch wants it; None on a CPU."""
    if DEVICE.type != "cuda":
        return None
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        run()
    return graph


@dataclass
class _Slots:
    """A batch at fixed addresses: keys and values [layers, rows, key heads, T, D], mask [rows, T]."""

    keys: Tensor
    values: Tensor
    mask: Tensor
    place: Tensor  # [1], where the next token's keys go
    position: Tensor
    token: Tensor
    done: Tensor
    temperature: Tensor
    top_p: Tensor
    graph: Any = None


class Sampler:
    """Writes thoughts, `rows` at a time: prompts of one width, padded on the left, and one recorded step."""

    TOP = 64  # ids among which is drawn

    def __init__(self, shape: Shape, weights: Weights, rows: int) -> None:
        self.shape, self.rows = shape, rows
        layers = tuple(Layer(*(each.clone() for each in layer)) for layer in weights.layers)
        self.weights = Weights(weights.embed.clone(), weights.head.clone(), weights.norm.clone(), layers)
        self._slots: dict[tuple[int, int], _Slots] = {}

    def load(self, weights: Weights) -> None:
        """Write with these weights, copied to where the recorded steps read them."""
        for mine, new in zip(self.weights.tensors(), weights.tensors(), strict=True):
            mine.copy_(new)

    def write(
        self, prompts: Prompts, new: int, temperature: float, top_p: float, widths: Sequence[int]
    ) -> list[Written]:
        """At most `new` tokens behind each prompt, whose last ids of the largest width are read."""
        found: list[Written] = [([], False)] * len(prompts)
        groups: dict[int, list[int]] = {width: [] for width in widths}
        for place in sorted(range(len(prompts)), key=lambda place: len(prompts[place])):
            width = next((each for each in widths if each >= len(prompts[place])), widths[-1])
            groups[width].append(place)
        for width, group in groups.items():
            for first in range(0, len(group), self.rows):
                part = group[first : first + self.rows]
                tails = [prompts[place][-width:] for place in part]
                tokens = self._batch(tails, width, new, temperature, top_p)
                for place, row in zip(part, tokens, strict=True):
                    ids: list[int] = row.tolist()
                    ended = self.shape.end in ids
                    found[place] = (ids[: ids.index(self.shape.end)] if ended else ids, ended)
        return found

    @torch.no_grad()
    def _batch(self, prompts: Prompts, width: int, new: int, temperature: float, top_p: float) -> Any:
        """Tokens [n, new] as numpy, the end's id behind an end."""
        if (width, new) not in self._slots:
            self._slots[width, new] = self._empty(width + new)
        slots = self._slots[width, new]
        slots.temperature.fill_(temperature)
        slots.top_p.fill_(top_p)
        slots.done.zero_()
        self._pick(slots, self._prompts(slots, prompts, width))
        found = [slots.token.clone()]
        if slots.graph is None and DEVICE.type == "cuda":
            changed = (slots.place, slots.position, slots.token, slots.done, slots.mask)
            before = [each.clone() for each in changed]
            slots.graph = _recorded(lambda: self._step(slots))
            for each, value in zip(changed, before, strict=True):
                each.copy_(value)
        for step in range(1, new):
            if slots.graph is None:
                self._step(slots)
            else:
                slots.graph.replay()
            found.append(slots.token.clone())
            if step % 8 == 0 and bool(slots.done[: len(prompts)].all()):
                break
        tokens = torch.stack(found, 1)[: len(prompts)]
        return F.pad(tokens, (0, new - tokens.shape[1]), value=self.shape.end).cpu().numpy()

    def _empty(self, total: int) -> _Slots:
        layer = self.weights.layers[0]
        width = layer.qkv.shape[0] // (self.shape.heads + 2 * self.shape.keys)
        cache_shape = (len(self.weights.layers), self.rows, self.shape.keys, total, width)
        keys, values = (torch.zeros(cache_shape, device=DEVICE, dtype=DTYPE) for _ in range(2))
        sizes = (1, self.rows, self.rows)
        place, position, token = (torch.zeros(size, dtype=torch.long, device=DEVICE) for size in sizes)
        done = torch.zeros(self.rows, dtype=torch.bool, device=DEVICE)
        mask = torch.empty(self.rows, total, device=DEVICE, dtype=DTYPE)
        temperature, top_p = torch.ones(2, 1, device=DEVICE)
        return _Slots(keys, values, mask, place, position, token, done, temperature, top_p)

    def _prompts(self, slots: _Slots, prompts: Prompts, width: int, at_once: int = 512) -> Tensor:
        """Read the prompts, some rows at a time as scores are large; returns the last states [rows, H]."""
        ids, start = np.zeros((self.rows, width), np.int64), np.full(self.rows, width - 1)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :], start[row] = prompt, width - len(prompt)
        tokens, first = torch.from_numpy(ids).to(DEVICE), torch.from_numpy(start).to(DEVICE)
        at = torch.arange(width, device=DEVICE)
        positions = (at[None] - first[:, None]).clamp_min(0)
        slots.mask.fill_(HIDDEN)
        slots.mask[:, :width].masked_fill_(at[None] >= first[:, None], 0.0)
        causal = torch.where(at[None] <= at[:, None], 0.0, HIDDEN).to(DTYPE)
        states = []
        for row in range(0, self.rows, at_once):
            rows = slice(row, row + at_once)
            mask = (causal + slots.mask[rows, None, :width]).clamp_min(HIDDEN)[:, None, None]

            def attend(
                place: int,
                queries: Tensor,
                keys: Tensor,
                values: Tensor,
                rows: slice = rows,
                mask: Tensor = mask,
            ) -> Tensor:
                slots.keys[place, rows, :, :width], slots.values[place, rows, :, :width] = keys, values
                return _shared(queries, keys, values, mask)

            read = forward(self.shape, self.weights, tokens[rows], positions[rows], attend)
            states.append(read[:, -1])
        slots.place.fill_(width)
        slots.position.copy_(width - first)
        return torch.cat(states)

    def _step(self, slots: _Slots) -> None:
        """Read the newest token of every row and draw the next."""
        slots.mask.index_fill_(1, slots.place, 0.0)

        def attend(place: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            slots.keys[place].index_copy_(2, slots.place, keys)
            slots.values[place].index_copy_(2, slots.place, values)
            return _shared(queries, slots.keys[place], slots.values[place], slots.mask[:, None, None, None])

        states = forward(self.shape, self.weights, slots.token[:, None], slots.position[:, None], attend)
        slots.place.add_(1)
        slots.position.add_(1)
        self._pick(slots, states[:, 0])

    def _pick(self, slots: _Slots, states: Tensor) -> None:
        """Draw a token for each of the states [rows, H] by temperature and top-p; the end stays the end."""
        logits = F.linear(states, self.weights.head).float() / slots.temperature
        best, ids = logits.topk(min(self.TOP, logits.shape[-1]), -1)
        share = (best - torch.logsumexp(logits, -1, keepdim=True)).exp()
        share = share * ((share.cumsum(-1) - share) < slots.top_p)
        # The largest of p / Exp(1) is a draw by p, and needs no answer from the CPU.
        drawn = (share / -torch.log(torch.rand_like(share).clamp_min(1e-20))).argmax(-1, keepdim=True)
        token = ids.gather(-1, drawn)[:, 0].masked_fill(slots.done, self.shape.end)
        slots.token.copy_(token)
        slots.done.logical_or_(token == self.shape.end)


def _shared(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Attention [n, heads, t, D] over keys [n, key heads, T, D] that heads share; mask [n, 1, 1, ., T]."""
    n, heads, t, width = queries.shape
    count = keys.shape[1]
    scores = queries.reshape(n, count, -1, width) @ keys.transpose(-1, -2) * width**-0.5
    scores = scores.view(n, count, heads // count, t, -1) + mask
    shares = torch.softmax(scores, -1, dtype=torch.float32).to(DTYPE).view(n, count, heads // count * t, -1)
    return (shares @ values).view(n, heads, t, width)


@dataclass
class _Padded:
    """Rows of one length at fixed addresses [n, length]: ids, the next ids, and what each of these weighs."""

    ids: Tensor
    target: Tensor
    weight: Tensor
    temperature: Tensor
    loss: Tensor
    graph: Any = None


class Trainer:
    """Adds up gradients of sum(weight * cross entropy) over rows, about `micro` padded tokens at a time."""

    LENGTHS = (32, 40, 48, 56, 64, 80, 96, 112, 136, 176, 208)

    def __init__(self, shape: Shape, adapter: Adapter, micro: int) -> None:
        self.shape, self.adapter, self.micro = shape, adapter, micro
        self._padded: dict[int, _Padded] = {}
        self._pool: Any = None

    def start(self, *, betas: tuple[float, float] = (0.9, 0.98)) -> None:
        """Begin a phase with a new AdamW."""
        parameters = self.adapter.parameters()
        fused = DEVICE.type == "cuda"
        self._optimiser = torch.optim.AdamW(parameters, betas=betas, weight_decay=0.0, fused=fused)
        for each in parameters:
            each.grad = torch.zeros_like(each) if each.grad is None else each.grad.zero_()

    def add(self, rows: Sequence[Row], weights: Sequence[float], temperature: float = 1.0) -> Tensor:
        """Add the gradient of rows, each learned token weighing the row's weight; returns the loss."""
        total, by_length = torch.zeros((), device=DEVICE), self._by_length(rows)
        for length, places in by_length.items():
            padded = self._room(length)
            size = len(padded.ids)
            for first in range(0, len(places), size):
                part = places[first : first + size]
                self._fill(padded, [rows[place] for place in part], [weights[place] for place in part])
                padded.temperature.fill_(temperature)
                if padded.graph is None:
                    self._run(padded)
                else:
                    padded.graph.replay()
                total += padded.loss
        return total

    def step(self, rate: float) -> None:
        """One step of AdamW along what was added."""
        parameters = self.adapter.parameters()
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        self._optimiser.step()
        for each in parameters:
            assert each.grad is not None
            each.grad.zero_()

    def teach(
        self, rows: Sequence[Row], *, tokens: int, rate: float, seed: int, passes: int = 1, floor: float = 0,
        say: Callable[[str], None] = print,
    ) -> None:  # fmt: skip
        """Learn rows in steps of about `tokens`, the rate falling from `rate` to `floor` of it."""
        draw, plan = Random(seed), []
        for _ in range(passes):
            pieces = []
            shuffled = draw.sample(range(len(rows)), len(rows))
            for length, places in self._by_length([rows[place] for place in shuffled]).items():
                size = max(1, self.micro // length)
                pieces += [[shuffled[at] for at in places[a : a + size]] for a in range(0, len(places), size)]
            draw.shuffle(pieces)
            each = max(1, tokens // self.micro)
            steps = (pieces[first : first + each] for first in range(0, len(pieces), each))
            plan += [[place for some in step for place in some] for step in steps]
        self.start()
        losses = []
        for number, part in enumerate(plan):
            learned = sum(len(rows[place][1]) for place in part)
            losses.append(self.add([rows[place] for place in part], [1 / learned] * len(part)))
            warm = min(1.0, (number + 1) / max(1.0, 0.03 * len(plan)))
            self.step(rate * warm * (floor + (1 - floor) * (1 - number / len(plan))))
            if number % 60 == 59 or number + 1 == len(plan):
                say(f"step {number + 1} of {len(plan)}, loss {torch.stack(losses[-60:]).mean().item():.3f}")

    def _by_length(self, rows: Sequence[Row]) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for place, (prompt, answer) in enumerate(rows):
            total = len(prompt) + len(answer)
            length = next((each for each in self.LENGTHS if each >= total), self.LENGTHS[-1])
            found.setdefault(length, []).append(place)
        return found

    def _room(self, length: int) -> _Padded:
        if length not in self._padded:
            size = (max(1, self.micro // length), length)
            ids, target = (torch.zeros(size, dtype=torch.long, device=DEVICE) for _ in range(2))
            weight, temperature = torch.zeros(size, device=DEVICE), torch.ones(1, device=DEVICE)
            padded = _Padded(ids, target, weight, temperature, torch.zeros((), device=DEVICE))
            padded.graph = _recorded(lambda: self._run(padded), self._pool)  # nothing weighs anything yet
            self._pool = self._pool or (padded.graph and padded.graph.pool())
            self._padded[length] = padded
        return self._padded[length]

    @staticmethod
    def _fill(padded: _Padded, rows: Sequence[Row], weights: Sequence[float]) -> None:
        """A prompt that is too long loses its beginning."""
        ids, target, weight = (np.zeros(padded.ids.shape, kind) for kind in (np.int64, np.int64, np.float32))
        for line, ((prompt, answer), each) in enumerate(zip(rows, weights, strict=True)):
            prompt = prompt[max(0, len(prompt) + len(answer) - ids.shape[1]) :]
            first, last = len(prompt), len(prompt) + len(answer)
            ids[line, :last] = prompt + answer
            target[line, first - 1 : last - 1], weight[line, first - 1 : last - 1] = answer, each
        for mine, new in ((padded.ids, ids), (padded.target, target), (padded.weight, weight)):
            mine.copy_(torch.from_numpy(new))

    def _run(self, padded: _Padded) -> None:
        weights = self.adapter.weights()
        logits = F.linear(read(self.shape, weights, padded.ids), weights.head).float().flatten(0, 1)
        each = F.cross_entropy(logits / padded.temperature, padded.target.flatten(), reduction="none")
        loss = (each * padded.weight.flatten()).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        padded.loss.copy_(loss.detach())
