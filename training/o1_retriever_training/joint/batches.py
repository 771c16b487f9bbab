"""Batches: which rows make one, what is drawn for each row, and the tensors that come of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import Dataset, Sampler

from o1_retriever_training.joint.layouts import AnyTemplate
from o1_retriever_training.joint.recipe import TrainRecipe
from o1_retriever_training.joint.rows import TrainingRows

Pick: TypeAlias = tuple[int, int]  # a row, and the epoch that it is drawn in


@dataclass(frozen=True, slots=True)
class Budget:
    """How many tokens a batch of one process has at most, and how long each row is, (rows,)."""

    tokens: int
    lengths: NDArray[np.int64]

    def batches(
        self, rows: NDArray[np.int64], most: int, world: int, generator: np.random.Generator
    ) -> list[NDArray[np.int64]]:
        """The rows in batches of like length, of at most `most` rows."""
        # Without the jitter the same rows would meet in every epoch.
        order = rows[np.argsort(self.lengths[rows] + _JITTER * generator.random(len(rows)), kind="stable")]
        found: list[NDArray[np.int64]] = []
        first, longest = 0, 0
        for place, length in enumerate(self.lengths[order].tolist()):
            longest = max(longest, length)
            full = longest * (place - first + 1) > self.tokens * world or place - first >= most
            if place > first and full:
                found.append(order[first:place])
                first, longest = place, length
        return [*found, order[first:]] if len(order) else []


class SameSourceBatches(Sampler[list[Pick]]):
    """The batches of one process over a whole run of `steps`, so that step n is the same after any resume.

    `sources` (rows,) says where each row comes from. A batch of all `world` processes together has up to
    `size * world` rows of one source, each process every `world`-th of them; the last one of a source may be
    smaller, and what does not give every process a row waits for another epoch. With `budget` the rows of a
    batch are of like length and have at most so many tokens for each process, padding included.
    """

    def __init__(
        self,
        sources: NDArray[np.int64],
        *,
        size: int,
        steps: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        budget: Budget | None = None,
    ) -> None:
        self._rows = [np.flatnonzero(sources == source) for source in np.unique(sources)]
        self._size, self._steps, self._seed = size, steps, seed
        self._rank, self._world = rank, world
        self._budget = budget

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[list[Pick]]:
        left, epoch = self._steps, 0
        while left > 0:
            for batch in self.epoch(epoch)[:left]:
                yield [(int(row), epoch) for row in batch[self._rank :: self._world]]
                left -= 1
            epoch += 1

    def epoch(self, epoch: int) -> list[NDArray[np.int64]]:
        """The rows of each batch of all processes together."""
        whole = self._size * self._world
        batches = []
        for source, rows in enumerate(self._rows):
            generator = _generator(self._seed, epoch, source)
            if self._budget is not None:
                parts = self._budget.batches(rows, whole, self._world, generator)
            else:
                shuffled = rows[generator.permutation(len(rows))]
                parts = [shuffled[start : start + whole] for start in range(0, len(rows), whole)]
            batches += [part for part in parts if len(part) >= self._world]
        order = _generator(self._seed, epoch, len(self._rows)).permutation(len(batches))
        return [batches[place] for place in order]


def steps_per_epoch(
    sources: NDArray[np.int64], *, size: int, world: int = 1, budget: Budget | None = None
) -> int:
    """Batches in one pass over the rows; with a budget it is that of the first epoch."""
    batches = SameSourceBatches(sources, size=size, steps=0, seed=0, world=world, budget=budget)
    return len(batches.epoch(0))


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


Batch = dict[str, Tensor]
_JITTER = 3.0  # tokens that rows may differ by and still change places


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """What a row contributes to one batch, by numbers of texts.

    `thought` is None where there is none or it was dropped; `fast` and `thinking` say which vectors are
    trained; `documents` are the positive and then the negatives, `scores` the teacher's of these. `composed`
    is the teacher's vector of the query with this thought (-1: none), `answers` are rows of the index. A
    plain document is alone in `documents`, and its query is None.
    """

    query: int | None = None
    thought: int | None = None
    fast: bool = False
    thinking: bool = False
    documents: list[int]
    scores: list[float] = field(default_factory=list)
    positives: list[int] = field(default_factory=list)
    composed: int = -1
    answers: list[int] = field(default_factory=list)
    written: bool = True


class DrawnRows(Dataset[Drawn]):
    """Draws rows: the thought, z, and the documents follow from the seed, the epoch and the row alone."""

    def __init__(self, rows: TrainingRows, recipe: TrainRecipe) -> None:
        self.rows = rows
        self._data, self._losses, self._seed = recipe.data, recipe.losses, recipe.optimisation.seed
        self._one_vector = recipe.model.layout == "released"

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, pick: Pick) -> Drawn:
        row, epoch = pick
        if self.rows.document[row] >= 0:
            return Drawn(documents=[int(self.rows.document[row])])
        draw = _generator(self._seed, epoch, row)
        # Always the same number of draws, so that one setting does not change what another draws.
        dropped, z, which = draw.random(3)
        rows, losses = self.rows, self._losses
        thoughts, positives = rows.of(row, "thoughts"), rows.of(row, "positives")
        # A thought is never dropped from a row without a positive: nothing would be left of it.
        drop = dropped < losses.thought_dropout and len(positives) > 0
        place = None if drop or not len(thoughts) else int(which * len(thoughts))
        thought = None if place is None else int(thoughts[place])
        composed = rows.of(row, "composed")
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
            composed=-1 if place is None or not len(composed) else int(composed[place]),
            answers=[int(number) for number in rows.of(row, "answers")],
            written=self._data.train[int(rows.source[row])].written,
        )

    def _documents(self, row: int, draw: np.random.Generator) -> tuple[list[int], list[float]]:
        positives, negatives = self.rows.of(row, "positives"), self.rows.of(row, "negatives")
        if not len(positives) or self.rows.index is not None:
            return [], []
        first = int(draw.integers(len(positives)))
        others = draw.permutation(len(negatives))[: self._data.group - 1]
        places = [first, *(len(positives) + others)]
        documents = np.concatenate([positives, negatives])
        return documents[places].tolist(), self.rows.of(row, "scores")[places].tolist()


class Collator:
    """Puts drawn rows into tensors, right-padded and longest first; a document in it twice stands once.

    Returns `query_ids` [B, L]; `vector_rows` and `vector_columns` [V], which `<emb>` is whose vector;
    `labels` [3, T], the rows, the columns and the ids of the thoughts' tokens where they are predicted;
    `document_ids` [D, L'] and `document_ends` [D], the column of `<emb>`; `document_labels` [3, T'] of the
    plain documents' words; and what the losses take: `targets` [V], `positive_keys` [V, P], `document_keys`
    [D, 2], and `groups` and `teacher` [V, G], the documents of a query and their scores. With a teacher
    `teacher_queries` [V, d] and `teacher_documents` [D, d] have its vectors, nan for none, and with an index
    `answers` [V, A] the rows of it that answer, -1 for none. For a correction `encoded` [V, d] has the
    encoder's vectors in the place of `teacher_queries`, and `alone` [V] for a query with a thought the row of
    the same query without one, -1 for the others.
    `tokens` counts what is no padding.
    """

    def __init__(self, rows: TrainingRows, template: AnyTemplate, recipe: TrainRecipe) -> None:
        self._rows, self._template, self._recipe = rows, template, recipe
        self._markers = template.max_length - template.max_document  # around a document

    def __call__(self, drawn: Sequence[Drawn]) -> Batch:
        """The batch of these rows."""
        ids, vectors, labels = self._sequences(drawn)
        order = _longest_first(ids)
        place = {number: new for new, number in enumerate(order)}
        vectors = sorted((place[row], column, owner, thinks) for row, column, owner, thinks in vectors)
        owners, thinking = [drawn[owner] for *_, owner, _ in vectors], [thinks for *_, thinks in vectors]
        rows, columns = _columns([each[:2] for each in vectors], 2)
        labels = sorted((place[row], column, label) for row, column, label in labels)
        plain = sorted({row.documents[0] for row in drawn if row.query is None})
        documents = self._documents(owners, plain)
        read = sum(len(row) for row in ids) + int((documents["document_ends"] + 1).sum())
        return {
            "query_ids": _padded([ids[number] for number in order], self._pad),
            "vector_rows": rows,
            "vector_columns": columns,
            "labels": _columns(labels, 3),
            **documents,
            **self._fixed(owners, thinking),
            "tokens": torch.tensor(read),
        }

    @property
    def _pad(self) -> int:
        # Never seen by a real token and never a label: any id will do.
        return int(self._template.tokenizer.pad_token_id or self._template.eos)

    def _sequences(
        self, drawn: Sequence[Drawn]
    ) -> tuple[list[list[int]], list[tuple[int, int, int, bool]], list[tuple[int, int, int]]]:
        """Ids; (sequence, column, row, whether it is the thinking one) of vectors; and labels."""
        ids: list[list[int]] = []
        vectors: list[tuple[int, int, int, bool]] = []
        labels: list[tuple[int, int, int]] = []
        texts, template = self._rows.texts, self._template
        for owner, row in enumerate(drawn):
            if row.query is None:
                continue
            query = texts.ids(row.query)
            prompt = template.prompt(query)
            # A correction's teacher is its encoder: without an answer there is nothing to learn from it.
            taught = self._rows.teacher is not None and self._recipe.model.correction is None
            learns = bool(row.documents) or bool(row.answers) or taught
            fast = row.fast and learns
            if row.thought is not None:
                thought = texts.ids(row.thought)
                sequence = template.thinking_query(query, thought)
                if row.written:
                    # The thought's tokens and the column before each; its end only where it was not cut.
                    end = len(sequence) - template.tail + (len(thought) <= template.room(prompt))
                    labels += [(len(ids), at - 1, sequence[at]) for at in range(len(prompt), end)]
                if row.thinking and learns:
                    vectors.append((len(ids), len(sequence) - 1, owner, True))
                if fast and template.fast_offset is not None:
                    vectors.append((len(ids), len(prompt) + template.fast_offset, owner, False))
                    fast = False
                ids.append(sequence)
            if fast:
                sequence = template.fast_query(query)
                vectors.append((len(ids), len(sequence) - 1, owner, False))
                ids.append(sequence)
        return ids, vectors, labels

    def _documents(self, owners: Sequence[Drawn], plain: Sequence[int]) -> Batch:
        texts = self._rows.texts
        most = self._recipe.data.max_document_tokens - self._markers
        numbers = sorted({number for row in owners for number in row.documents} | {*plain})
        ids = [self._template.document(texts.ids(number)[:most]) for number in numbers]
        order = _longest_first(ids)
        place = {numbers[old]: new for new, old in enumerate(order)}
        groups = [[place[number] for number in row.documents] for row in owners]
        keys = [[key for number in row.positives for key in self._keys(number)] for row in owners]
        kept = [ids[old] for old in order]
        teacher: Batch = {}
        if self._rows.teacher is not None:
            taught = [int(self._rows.taught[numbers[old]]) for old in order]
            teacher["teacher_documents"] = _vectors(self._rows.teacher, taught)
        return {
            "document_labels": _columns(self._words(sorted(place[number] for number in plain), kept), 3),
            **teacher,
            "document_ids": _padded(kept, self._pad),
            "document_ends": torch.tensor([len(row) - 1 for row in kept], dtype=torch.int64),
            "document_keys": _columns([self._keys(numbers[old]) for old in order], 2).T,
            "targets": torch.tensor([group[0] if group else -1 for group in groups], dtype=torch.int64),
            "groups": _padded(groups, -1),
            "teacher": _padded([row.scores for row in owners], torch.nan, torch.float32),
            "positive_keys": _padded(keys, 0),
        }

    def _words(self, plain: Sequence[int], documents: Sequence[Sequence[int]]) -> list[tuple[int, int, int]]:
        """(document, column, next id) of the plain documents' words, at most `document_tokens` of them."""
        most = self._recipe.losses.document_tokens
        # The layout that opens a document predicts its first word as well.
        first = max(1, self._markers - 1)
        found = [
            (row, column - 1, documents[row][column])
            for row in plain
            for column in range(first, len(documents[row]) - 1)
        ]
        stride = 1 if most is None else max(1, -(-len(found) // most))
        return found[len(found) % stride :: stride]

    def _fixed(self, owners: Sequence[Drawn], thinking: Sequence[bool]) -> Batch:
        """The teacher's vectors of queries, or of queries with their thoughts; and the index's answers."""
        data, found = self._recipe.data, {}
        pairs = list(zip(owners, thinking, strict=True))
        if self._rows.teacher is not None and data.teacher is not None:
            composed, taught = data.teacher.thinking, self._rows.taught
            numbers = [
                (row.composed if composed else -1) if thinks else int(taught[row.query or 0])
                for row, thinks in pairs
            ]
            vectors = _vectors(self._rows.teacher, numbers)
            if self._recipe.model.correction is None:
                found["teacher_queries"] = vectors
            else:
                fast = {id(row): place for place, (row, thinks) in enumerate(pairs) if not thinks}
                alone = [fast.get(id(row), -1) if thinks else -1 for row, thinks in pairs]
                found |= {"encoded": vectors, "alone": torch.tensor(alone, dtype=torch.int64)}
        if self._rows.index is not None and data.index is not None:
            every = data.index.vectors == "all"
            found["answers"] = _padded([row.answers if thinks or every else [] for row, thinks in pairs], -1)
        return found

    def _keys(self, number: int) -> tuple[int, int]:
        """What makes two documents the same one: a text, or an id."""
        return int(self._rows.texts.keys[number]), int(self._rows.ids[number])


def unit_vectors(known: NDArray[np.float16]) -> Tensor:
    """Stored vectors as unit vectors in float32."""
    return normalize(torch.from_numpy(known.astype(np.float32)), dim=-1)


def _vectors(known: NDArray[np.float16], numbers: Sequence[int]) -> Tensor:
    """Unit vectors (numbers, d), nan where the number is -1."""
    found = torch.full((len(numbers), known.shape[1]), torch.nan)
    there = [place for place, number in enumerate(numbers) if number >= 0]
    found[there] = unit_vectors(known[[numbers[place] for place in there]])
    return found


def _longest_first(rows: Sequence[Sequence[int]]) -> list[int]:
    return sorted(range(len(rows)), key=lambda number: -len(rows[number]))


def _columns(rows: Sequence[Sequence[int]], width: int) -> Tensor:
    return torch.tensor(list(rows), dtype=torch.int64).reshape(-1, width).T.contiguous()


def _padded(rows: Sequence[Sequence[float]], pad: float, kind: torch.dtype = torch.int64) -> Tensor:
    width = max((len(row) for row in rows), default=0)
    table = [[*row, *[pad] * (width - len(row))] for row in rows]
    return torch.tensor(table, dtype=kind).reshape(len(rows), width)
