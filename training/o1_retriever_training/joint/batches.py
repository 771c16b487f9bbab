"""Batches: which rows make one, what is drawn for each row, and the tensors that come of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from o1_retriever.engine.template import Template
from o1_retriever_training.joint.recipe import DataSection, LossSection
from o1_retriever_training.joint.rows import TrainingRows

Pick: TypeAlias = tuple[int, int]  # a row, and the epoch that it is drawn in


class SameSourceBatches(Sampler[list[Pick]]):
    """The batches of one process over a whole run of `steps`, so that step n is the same after any resume.

    `sources` (rows,) says where each row comes from. A batch of all `world` processes together has up to
    `size * world` rows of one source, each process every `world`-th of them; the last one of a source may
    be smaller, and what does not give every process a row waits for another epoch.
    """

    def __init__(
        self, sources: NDArray[np.int64], *, size: int, steps: int, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        self._rows = [np.flatnonzero(sources == source) for source in np.unique(sources)]
        self._size, self._steps, self._seed = size, steps, seed
        self._rank, self._world = rank, world

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[list[Pick]]:
        left, epoch = self._steps, 0
        while left > 0:
            for batch in self._epoch(epoch)[:left]:
                yield [(int(row), epoch) for row in batch[self._rank :: self._world]]
                left -= 1
            epoch += 1

    def _epoch(self, epoch: int) -> list[NDArray[np.int64]]:
        whole = self._size * self._world
        batches = []
        for source, rows in enumerate(self._rows):
            shuffled = rows[_generator(self._seed, epoch, source).permutation(len(rows))]
            parts = [shuffled[start : start + whole] for start in range(0, len(rows), whole)]
            batches += [part for part in parts if len(part) >= self._world]
        order = _generator(self._seed, epoch, len(self._rows)).permutation(len(batches))
        return [batches[place] for place in order]


def steps_per_epoch(sources: NDArray[np.int64], *, size: int, world: int = 1) -> int:
    """Batches in one pass over the rows."""
    whole = size * world
    counts = np.unique(sources, return_counts=True)[1]
    return sum(math.ceil(count / whole) - (0 < count % whole < world) for count in counts.tolist())


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


Batch = dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """What a row contributes to one batch, by numbers of texts.

    `thought` is None where there is none or it was dropped; `fast` and `thinking` say which vectors are
    trained; `documents` are the positive and then the negatives, `scores` the teacher's of these.
    """

    query: int
    thought: int | None
    fast: bool
    thinking: bool
    documents: list[int]
    scores: list[float]
    positives: list[int]


class DrawnRows(Dataset[Drawn]):
    """Draws rows: the thought, z, and the documents follow from the seed, the epoch and the row alone."""

    def __init__(
        self, rows: TrainingRows, *, data: DataSection, losses: LossSection, seed: int, layout: str
    ) -> None:
        self.rows = rows
        self._data, self._losses, self._seed = data, losses, seed
        self._one_vector = layout != "paper"

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, pick: Pick) -> Drawn:
        row, epoch = pick
        draw = np.random.Generator(np.random.Philox(np.random.SeedSequence([self._seed, epoch, row])))
        # Always the same number of draws, so that one setting does not change what another draws.
        dropped, z, which = draw.random(3)
        rows, losses = self.rows, self._losses
        thoughts, positives = rows.thoughts(row), rows.positives(row)
        # A thought is never dropped from a row without a positive: nothing would be left of it.
        drop = dropped < losses.thought_dropout and len(positives) > 0
        thought = None if drop or not len(thoughts) else int(thoughts[int(which * len(thoughts))])
        both = losses.vectors == "both"
        thinking = thought is not None and (both or self._one_vector or z < losses.thinking_probability)
        documents, scores = self._documents(row, draw)
        return Drawn(
            query=int(rows.query[row]),
            thought=thought,
            fast=not thinking or (both and not self._one_vector),
            thinking=thinking,
            documents=documents,
            scores=scores,
            positives=[int(number) for number in positives],
        )

    def _documents(self, row: int, draw: np.random.Generator) -> tuple[list[int], list[float]]:
        positives, negatives, scores = (
            self.rows.positives(row),
            self.rows.negatives(row),
            self.rows.scores(row),
        )
        if not len(positives):
            return [], []
        first = int(draw.integers(len(positives)))
        count = min(self._data.group - 1, len(negatives))
        others = draw.permutation(len(negatives))[:count]
        places = [first, *(len(positives) + others).tolist()]
        chosen = [int(positives[first]), *(int(negatives[other]) for other in others)]
        return chosen, [float(scores[place]) for place in places]


@dataclass(slots=True)
class _Sequences:
    """The query sequences of a batch as they are collected."""

    ids: list[list[int]] = field(default_factory=list)
    vectors: list[tuple[int, int, int]] = field(default_factory=list)  # owner, sequence, column
    labels: list[tuple[int, int, int]] = field(default_factory=list)  # sequence, column, next id


class Collator:
    """Puts drawn rows into tensors, right-padded and longest first; a document in it twice stands once.

    Returns `query_ids` [B, L]; `vector_rows` and `vector_columns` [V], which `<emb>` is whose vector;
    `label_rows`, `label_columns` and `label_ids` [T], the thoughts' tokens and where they are predicted;
    `document_ids` [D, L'] and `document_ends` [D], the column of `<emb>`; and what the losses take:
    `targets` [V], `positive_keys` [V, P], `document_keys` [D, 2], and `candidates`, `teacher` and `groups`
    [V, G].
    `tokens` counts what is no padding.
    """

    def __init__(self, rows: TrainingRows, template: Template, *, max_document_tokens: int) -> None:
        self._rows, self._template = rows, template
        self._document = max_document_tokens - (template.max_length - template.max_document)

    def __call__(self, drawn: Sequence[Drawn]) -> Batch:
        """The batch of these rows."""
        sequences = self._sequences(drawn)
        order = _longest_first([len(row) for row in sequences.ids])
        place = {number: new for new, number in enumerate(order)}
        vectors = sorted((place[sequence], column, owner) for owner, sequence, column in sequences.vectors)
        labels = sorted((place[sequence], column, label) for sequence, column, label in sequences.labels)
        owners = [drawn[owner] for _, _, owner in vectors]
        pad = _pad(self._template)
        rows, columns = _columns([each[:2] for each in vectors], 2)
        label_rows, label_columns, label_ids = _columns(labels, 3)
        return {
            "query_ids": _padded([sequences.ids[number] for number in order], pad),
            "vector_rows": rows,
            "vector_columns": columns,
            "label_rows": label_rows,
            "label_columns": label_columns,
            "label_ids": label_ids,
            **(documents := self._documents(owners, pad)),
            "tokens": torch.tensor(
                sum(len(row) for row in sequences.ids) + int((documents["document_ends"] + 1).sum())
            ),
        }

    def _sequences(self, drawn: Sequence[Drawn]) -> _Sequences:
        found = _Sequences()
        texts, template = self._rows.texts, self._template
        offset = template.fast_offset
        for owner, row in enumerate(drawn):
            query = texts.ids(row.query)
            prompt = template.prompt(query)
            fast = row.fast and bool(row.documents)
            if row.thought is not None:
                thought = texts.ids(row.thought)
                sequence = template.thinking_query(query, thought)
                number = len(found.ids)
                found.ids.append(sequence)
                found.labels += _labels(
                    number, sequence, len(prompt), whole=len(thought) <= template.room(prompt)
                )
                if row.thinking and row.documents:
                    found.vectors.append((owner, number, len(sequence) - 1))
                if fast and offset is not None:
                    found.vectors.append((owner, number, len(prompt) + offset))
                    fast = False
            if fast:
                sequence = template.fast_query(query)
                found.vectors.append((owner, len(found.ids), len(sequence) - 1))
                found.ids.append(sequence)
        return found

    def _documents(self, owners: Sequence[Drawn], pad: int) -> Batch:
        texts = self._rows.texts
        numbers = sorted({number for row in owners for number in row.documents})
        ids = [self._template.document(texts.ids(number)[: self._document]) for number in numbers]
        order = _longest_first([len(row) for row in ids])
        place = {numbers[old]: new for new, old in enumerate(order)}
        groups = [[place[number] for number in row.documents] for row in owners]
        keys = [[key for number in row.positives for key in self._keys(number)] for row in owners]
        kept = [ids[old] for old in order]
        return {
            "document_ids": _padded(kept, pad),
            "document_ends": torch.tensor([len(row) - 1 for row in kept], dtype=torch.int64),
            "document_keys": _columns([self._keys(numbers[old]) for old in order], 2).T,
            "targets": torch.tensor([group[0] for group in groups], dtype=torch.int64),
            "groups": _padded(groups, -1),
            "candidates": _padded(groups, -1),
            "teacher": _table([row.scores for row in owners], torch.nan, torch.float32),
            "positive_keys": _padded(keys, 0),
        }

    def _keys(self, number: int) -> tuple[int, int]:
        """What makes two documents the same one: a text, or an id."""
        return int(self._rows.texts.keys[number]), int(self._rows.ids[number])


def _labels(number: int, sequence: Sequence[int], prompt: int, *, whole: bool) -> list[tuple[int, int, int]]:
    """The thought's tokens and the column before each; its end only where it was not cut."""
    last = len(sequence) - 2 if whole else len(sequence) - 3
    return [(number, column - 1, sequence[column]) for column in range(prompt, last + 1)]


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda number: (-lengths[number], number))


def _columns(rows: Sequence[Sequence[int]], width: int) -> Tensor:
    return torch.tensor(list(rows), dtype=torch.int64).reshape(-1, width).T.contiguous()


def _padded(rows: Sequence[Sequence[int]], pad: int) -> Tensor:
    return _table(rows, pad, torch.int64)


def _table(rows: Sequence[Sequence[Any]], pad: float, kind: torch.dtype) -> Tensor:
    width = max((len(row) for row in rows), default=0)
    found = torch.full((len(rows), width), pad, dtype=kind)
    for number, row in enumerate(rows):
        found[number, : len(row)] = torch.tensor(list(row), dtype=kind)
    return found


def _pad(template: Template) -> int:
    # Never seen by a real token and never a label: any id will do.
    return int(template.tokenizer.pad_token_id or template.eos)
