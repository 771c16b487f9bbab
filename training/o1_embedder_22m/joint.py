"""Stage 3: one model learns to think and to embed together, against the whole index.

```
python training/o1_embedder_22m/joint.py voted.jsonl --corpus corpus.jsonl --work WORK --start RUN --run RUN
```

Each step takes a batch of questions with thoughts and a batch of documents. A question's thinking vector is
compared with every document of the bank (InfoNCE), documents and fast vectors are held where MiniLM has them,
so that the bank stays true, and elected thoughts are learned token by token. Run the same command again to
resume exactly.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path

import torch
from batches import DOCUMENT, Array, Markers, PlanOptions, Shard, collate, plan_run
from model import Batch, Weights, build_model, load_tokenizer, losses, token_losses, use_training_attention
from questions import Bank, QuestionBatch, batches_of, load_bank, load_questions
from questions import collate as collate_questions
from torch import Tensor
from torch.nn import functional
from train import make_optimizer, run_steps, start_from
from transformers import BertLMHeadModel


def bank_loss(vectors: Tensor, positives: list[tuple[int, ...]], bank: Tensor, temperature: float) -> Tensor:
    """InfoNCE of unit vectors [n, d] over the bank [m, d]; positives of one row do not compete."""
    known = [row for row, found in enumerate(positives) if found]
    if not known:
        return vectors.sum() * 0.0
    scores = vectors[known] @ bank.T / temperature
    parts = []
    for line, row in zip(scores, known, strict=True):
        own = torch.tensor(positives[row])
        others = torch.logsumexp(line.index_fill(0, own, -torch.inf), 0)
        parts.append(functional.softplus(others - line[own]).mean())
    return torch.stack(parts).mean()


def question_losses(
    model: BertLMHeadModel, found: QuestionBatch, bank: Bank, args: argparse.Namespace
) -> tuple[Tensor, dict[str, float]]:
    """The joint loss of a batch of questions, and its parts."""
    batch = found.batch
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.bert(input_ids=batch.ids, use_cache=False).last_hidden_state
        thought, _ = token_losses(model, hidden, batch)
    fast = functional.normalize(hidden[batch.vector_rows, batch.vector_columns].float(), dim=-1)
    thinking = functional.normalize(hidden[batch.vector_rows, found.thinking].float(), dim=-1)
    contrast = bank_loss(thinking, found.positives, bank.vectors, args.temperature)
    anchor = (1 - (fast * functional.normalize(batch.teacher, dim=-1)).sum(-1)).mean()
    generation = thought.mean() if len(thought) else hidden.sum() * 0.0
    total = args.contrast * contrast + args.cosine * anchor + args.tokens * generation
    parts = {"contrast": contrast, "anchor": anchor, "thought": generation}
    return total, {name: float(value.detach()) for name, value in parts.items()}


def document_batches(work: Path, tokens: int, seed: int) -> Iterator[tuple[Shard, Array, Array]]:
    """(shard, its vectors, rows): batches of documents of like length, epoch after epoch."""
    shards = [Shard(path) for path in sorted((work / "shards").glob("*.npz"))]
    vectors = [shard.vectors() for shard in shards]
    for epoch in itertools.count():
        plan = plan_run(shards, PlanOptions(tokens, 128, 1.0, 1, seed + epoch))
        for at in torch.randperm(len(plan), generator=torch.Generator().manual_seed(seed + epoch)).tolist():
            number, rows = plan[at]
            documents = rows[shards[number].kind[rows] == DOCUMENT]
            if len(documents):
                yield shards[number], vectors[number], documents


def train(args: argparse.Namespace) -> None:
    """Train on questions and documents side by side."""
    torch.manual_seed(args.seed)
    tokenizer = load_tokenizer(args.work / "tokenizer")
    markers = Markers.of(tokenizer)
    bank = load_bank(args.work, args.corpus)
    questions, fast = load_questions(args.rows, bank, tokenizer)
    model = build_model(args.work).train()
    start_from(args.start, model)
    use_training_attention(model)
    optimizer = make_optimizer(model, args.lr, 0.0)
    weights = Weights(args.cosine, args.similarity, args.tokens, args.text)
    print(f"{len(questions)} thoughts about questions", flush=True)

    def batches(first: int) -> Iterator[tuple[QuestionBatch, Batch]]:
        epochs = (batches_of(questions, args.batch_tokens, args.seed + epoch) for epoch in itertools.count())
        documents = document_batches(args.work, args.document_tokens, args.seed)
        pairs = zip(itertools.chain.from_iterable(epochs), documents, strict=True)
        for rows, (shard, vectors, chosen) in itertools.islice(pairs, first, args.steps):
            asked = collate_questions([questions[row] for row in rows], fast, markers)
            yield asked, collate(shard, vectors, chosen, markers, args.text_targets)

    def backward(both: tuple[QuestionBatch, Batch]) -> tuple[dict[str, float], int]:
        asked, held = both
        loss, parts = question_losses(model, asked, bank, args)
        loss.backward()
        loss, said = losses(model, held, weights)
        loss.backward()
        parts |= {f"document_{name}": value for name, value in said.items()}
        return parts, held.ids.numel() + asked.batch.ids.numel()

    run_steps(args, model, optimizer, batches, backward)


def parser() -> argparse.ArgumentParser:
    """The options."""
    raw = argparse.RawDescriptionHelpFormatter
    options = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add = options.add_argument
    add("rows", type=Path, nargs="+", help="voted rows with their thoughts, JSON lines")
    add("--work", type=Path, required=True, help="folder that data.py wrote, with the teacher's vectors")
    add("--corpus", type=Path, required=True, help="corpus.jsonl that pairs.py wrote")
    add("--start", type=Path, required=True, help="run whose weights this one starts from")
    add("--run", type=Path, required=True, help="folder for this run's checkpoint and log")
    add("--steps", type=int, default=400)
    add("--batch-tokens", type=int, default=3072)
    add("--document-tokens", type=int, default=1536)
    add("--temperature", type=float, default=0.05)
    add("--lr", type=float, default=1e-4)
    add("--warmup", type=int, default=20, help="steps")
    add("--decay", type=float, default=0.9, help="last share of the steps")
    add("--contrast", type=float, default=1.0, help="weight of the thinking vector's comparison")
    add("--cosine", type=float, default=30.0, help="weight of 1 - cosine to the teacher")
    add("--similarity", type=float, default=3.0, help="weight of in-batch similarity of documents")
    add("--tokens", type=float, default=0.7, help="weight of the next-token loss")
    add("--text", type=float, default=0.4, help="a document token's weight to a thought's")
    add("--text-targets", type=int, default=192, help="document positions a batch")
    add("--threads", type=int, default=1)
    add("--log-every", type=int, default=20)
    add("--save-minutes", type=float, default=4.0)
    add("--seed", type=int, default=0)
    return options


def main() -> None:
    """Parse the options and train."""
    args = parser().parse_args()
    torch.set_num_threads(args.threads)
    args.run.mkdir(parents=True, exist_ok=True)
    train(args)


if __name__ == "__main__":
    main()
