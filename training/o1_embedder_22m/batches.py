"""Tokenised shards as length-bucketed batches in one fixed order: a step number is a data position."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from model import Batch
from numpy.typing import NDArray
from teacher import Teacher, encode_shard
from transformers import PreTrainedTokenizerBase

DOCUMENT, QUERY, THINKING = range(3)
Array = NDArray[Any]
SHORT, LONG = 40, 64  # tokens up to which a row counts as short, beyond which as long


@dataclass(frozen=True)
class Markers:
    """Ids of the tokens that frame a row."""

    query: int
    emb: int
    thought: int
    doc: int
    eos: int
    pad: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Markers:
        """The markers of a tokenizer."""
        names = ("<query>", "<emb>", "<thought>", "<doc>", tokenizer.eos_token, tokenizer.pad_token)
        vocabulary = tokenizer.get_vocab()
        return cls(*(vocabulary[str(name)] for name in names))


class Shard:
    """One shard: token ids of its rows, and the teacher's vectors once they are asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with np.load(path) as arrays:
            self.kind: Array = arrays["kind"]
            self.text_ids = arrays["text_ids"].astype(np.int64)
            self.text_ends = arrays["text_ends"]
            self.thought_ids = arrays["thought_ids"].astype(np.int64)
            self.thought_ends = arrays["thought_ends"]

    def lengths(self) -> Array:
        """Tokens of each row with its markers."""
        text, thought = np.diff(self.text_ends, prepend=0), np.diff(self.thought_ends, prepend=0)
        lengths: Array = text + 2 + np.where(self.kind == THINKING, thought + 3, 0)
        return lengths

    def text(self, row: int) -> Array:
        """Token ids of the row's document or query."""
        span: Array = self.text_ids[self.text_ends[row - 1] if row else 0 : self.text_ends[row]]
        return span

    def thought(self, row: int) -> Array:
        """Token ids of the row's thought."""
        span: Array = self.thought_ids[self.thought_ends[row - 1] if row else 0 : self.thought_ends[row]]
        return span

    def vectors(self) -> Array:
        """The teacher's vectors [rows, 2, 384]; computed here when teacher.py has not been run."""
        file = self.path.with_suffix(".npy")
        if not file.exists():
            vectors, _ = encode_shard(Teacher(), self.path.with_suffix(".jsonl"))
            np.save(file, vectors)
        loaded: Array = np.load(file)
        return loaded


@dataclass(frozen=True)
class PlanOptions:
    """How rows become batches; short rows teach more vectors a token, so that they are used more."""

    batch_tokens: int
    max_rows: int
    long_share: float
    short_repeat: int
    seed: int


def bucket(rows: Array, lengths: Array, options: PlanOptions, rng: random.Random) -> list[Array]:
    """The rows in batches of like length."""
    jitter = np.array([rng.random() for _ in range(len(rows))])
    order = rows[np.argsort(lengths[rows] + 3 * jitter, kind="stable")]
    batches: list[Array] = []
    first, longest = 0, 0
    for i, row in enumerate(order):
        longest = max(longest, int(lengths[row]))
        full = longest * (i - first + 1) > options.batch_tokens or i - first >= options.max_rows
        if i > first and full:
            batches.append(order[first:i])
            first, longest = i, int(lengths[row])
    return [*batches, order[first:]]


def plan_shard(lengths: Array, options: PlanOptions, rng: random.Random) -> list[Array]:
    """Rows of one shard in batches of like length, batches in random order."""
    chance = np.array([rng.random() for _ in range(len(lengths))])
    batches = bucket(np.flatnonzero((lengths <= LONG) | (chance < options.long_share)), lengths, options, rng)
    short = np.flatnonzero(lengths <= SHORT)
    for _ in range(options.short_repeat - 1):
        batches += bucket(short, lengths, options, rng)
    rng.shuffle(batches)
    return batches


def plan_run(shards: list[Shard], options: PlanOptions) -> list[tuple[int, Array]]:
    """The whole run: (shard, rows) of every step."""
    plan: list[tuple[int, Array]] = []
    for number, shard in enumerate(shards):
        rng = random.Random(f"{options.seed}/{number}")
        plan += [(number, rows) for rows in plan_shard(shard.lengths(), options, rng)]
    return plan


def row_ids(shard: Shard, row: int, m: Markers) -> list[int]:
    """The row in the paper's layout, as token ids."""
    text = shard.text(row).tolist()
    if shard.kind[row] == DOCUMENT:
        return [m.doc, *text, m.emb]
    if shard.kind[row] == QUERY:
        return [m.query, *text, m.emb]
    return [m.query, *text, m.emb, m.thought, *shard.thought(row).tolist(), m.eos, m.emb]


def collate(shard: Shard, vectors: Array, rows: Array, m: Markers, text_targets: int) -> Batch:
    """Rows as a batch; at most `text_targets` document positions, evenly spread, carry the LM loss."""
    sequences = [row_ids(shard, int(row), m) for row in rows]
    width = max(map(len, sequences))
    ids = torch.full((len(rows), width), m.pad)
    spots: list[tuple[int, int]] = []
    teacher: list[Array] = []
    thought: list[int] = []
    text: list[int] = []
    for i, (row, sequence) in enumerate(zip(rows, sequences, strict=True)):
        ids[i, : len(sequence)] = torch.tensor(sequence)
        first = 1 + len(shard.text(int(row)))
        start = i * width
        spots.append((i, first))
        teacher.append(vectors[row, 0])
        if shard.kind[row] == THINKING:  # from <thought> (predicts the first token) to the last token (eos)
            thought += range(start + first + 1, start + len(sequence) - 2)
            spots.append((i, len(sequence) - 1))
            teacher.append(vectors[row, 1])
        elif shard.kind[row] == DOCUMENT:
            text += range(start, start + first - 1)
    stride = max(1, -(-len(text) // text_targets)) if text_targets else len(text) + 1
    where = torch.tensor(spots)
    target = torch.nn.functional.normalize(torch.from_numpy(np.stack(teacher)).float(), dim=-1)
    chosen = text[int(rows[0]) % stride :: stride] if text_targets else []
    positions = [torch.tensor(each, dtype=torch.long) for each in (thought, chosen)]
    return Batch(ids, where[:, 0], where[:, 1], target, positions[0], positions[1])
