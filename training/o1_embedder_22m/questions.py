"""The joint stage's questions: each with a thought, its positives in the bank, and MiniLM's vector of it."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batches import DOCUMENT, Markers, Shard
from model import Batch
from numpy.typing import NDArray
from teacher import Teacher
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from o1_retriever_training.copies import share_copied

MOST_COPIED = 0.6  # share of a thought's content words that may stand in one of its positives
MAX_QUERY, MAX_THOUGHT = 96, 64  # tokens
Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Bank:
    """Vectors of every document that a question is compared with, float32 [n, 384], and where a text is."""

    vectors: Tensor
    place: dict[str, int]


@dataclass(frozen=True)
class Question:
    """One row: token ids, the rows of the bank that answer it, and what its tokens teach."""

    query: list[int]
    thought: list[int]
    positives: tuple[int, ...]  # none: only the thought is learned
    written: bool  # whether the thought is worth writing: elected, or an expert's
    fast: int  # row of MiniLM's vectors of the queries


@dataclass(frozen=True)
class QuestionBatch:
    """A batch with the places of its vectors: one fast and one thinking for each row."""

    batch: Batch  # `teacher` holds MiniLM's vectors of the queries
    thinking: Tensor  # [rows]: positions of each row's last <emb>
    positives: list[tuple[int, ...]] = field(default_factory=list)


def load_bank(work: Path, corpus: Path) -> Bank:
    """MiniLM's vectors of the corpus's texts: of those that the shards in `work` have, else computed here.

    They are kept in `work/bank.npy`.
    """
    texts = [json.loads(line)["text"] for line in corpus.read_text(encoding="utf-8").splitlines()]
    path = work / "bank.npy"
    if not path.exists():
        known = _known(work)
        missing = [text for text in texts if text not in known]
        known |= dict(zip(missing, Teacher().encode(missing), strict=True))
        np.save(path, np.stack([known[text] for text in texts]).astype(np.float32))
    vectors = torch.nn.functional.normalize(torch.from_numpy(np.load(path)), dim=-1)
    return Bank(vectors, {text: number for number, text in enumerate(texts)})


def _known(work: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in sorted((work / "shards").glob("*.npz")):
        vectors = Shard(path).vectors()
        kinds = np.load(path)["kind"]
        for number, line in enumerate(path.with_suffix(".jsonl").read_text("utf-8").splitlines()):
            if kinds[number] == DOCUMENT:
                found[json.loads(line)["text"]] = vectors[number, 0]
    return found


def load_questions(
    files: list[Path], bank: Bank, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[Question], Vectors]:
    """The rows of `files` with every usable thought, and MiniLM's vectors [queries, 384] of their queries."""
    rows = [json.loads(line) for path in files for line in path.read_text("utf-8").splitlines()]
    queries = list(dict.fromkeys(row["query"] for row in rows))
    number = {query: at for at, query in enumerate(queries)}
    found: list[Question] = []
    for row in rows:
        answers = tuple(sorted({bank.place[text] for text in row["pos"] if text in bank.place}))
        query = _ids(tokenizer, row["query"], MAX_QUERY)
        elected = row.get("thought")
        for thought in dict.fromkeys([*(row.get("all_thought") or []), *([elected] if elected else [])]):
            # A thought that repeats its passage is good to write; searched with, it would teach copying.
            copied = bool(answers) and share_copied(thought, row["pos"]) > MOST_COPIED
            positives = () if copied else answers
            if thought and (positives or thought == elected):
                written = thought == elected or "votes" not in row
                ids = _ids(tokenizer, thought, MAX_THOUGHT)
                found.append(Question(query, ids, positives, written, number[row["query"]]))
    return found, Teacher().encode(queries)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, limit: int) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return ids[:limit]


def batches_of(questions: list[Question], tokens: int, seed: int) -> list[list[int]]:
    """Rows in batches of like length, at most `tokens` padded tokens each, batches shuffled."""
    draw = random.Random(seed)
    lengths = [len(each.query) + len(each.thought) + 5 for each in questions]
    order = sorted(range(len(questions)), key=lambda at: lengths[at] + 6 * draw.random())
    found: list[list[int]] = [[]]
    longest = 0
    for at in order:
        longest = max(longest, lengths[at])
        if found[-1] and longest * (len(found[-1]) + 1) > tokens:
            found.append([])
            longest = lengths[at]
        found[-1].append(at)
    draw.shuffle(found)
    return found


def collate(questions: list[Question], fast: Vectors, m: Markers) -> QuestionBatch:
    """Rows `<query> q <emb> <thought> t eos <emb>`, padded on the right."""
    sequences = [[m.query, *q.query, m.emb, m.thought, *q.thought, m.eos, m.emb] for q in questions]
    width = max(map(len, sequences))
    ids = torch.full((len(sequences), width), m.pad)
    targets: list[int] = []
    for row, (question, sequence) in enumerate(zip(questions, sequences, strict=True)):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        if (
            question.written
        ):  # from <thought>, which predicts the first token, to the last token, which predicts eos
            targets += range(row * width + len(question.query) + 2, row * width + len(sequence) - 2)
    rows = torch.arange(len(sequences))
    first = torch.tensor([len(q.query) + 1 for q in questions])
    teacher = torch.from_numpy(np.stack([fast[q.fast] for q in questions])).float()
    batch = Batch(
        ids, rows, first, teacher, torch.tensor(targets, dtype=torch.long), torch.zeros(0, dtype=torch.long)
    )
    return QuestionBatch(
        batch, torch.tensor([len(s) - 1 for s in sequences]), [q.positives for q in questions]
    )
