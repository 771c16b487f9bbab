"""Step 3: train vectors and thoughts together; run the same command again to resume exactly.

```
python training/o1_embedder_22m/train.py --work WORK --run WORK/run
```

The learning rate warms up, stays, and falls linearly to zero over the last part of `--steps`; a run can
be shortened on resume with a smaller `--steps` as long as its decay has not begun.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from batches import Markers, PlanOptions, Shard, collate, plan_run
from model import Batch, Weights, build_model, load_tokenizer, losses, use_training_attention
from transformers import BertLMHeadModel

MAX_GRADIENT_NORM = 30.0  # about the usual norm: only spikes are cut
Item = TypeVar("Item")
HEAD_RATE = 4.0  # the LM head's learning rate over the body's


def rate(step: int, steps: int, warmup: int, decay: float) -> float:
    """Share of the peak learning rate at a step: warm-up, plateau, linear decay to zero."""
    return min(1.0, (step + 1) / warmup, (steps - step) / max(1.0, decay * steps))


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint so that a reader or a crash never sees half of it."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)


def make_optimizer(model: BertLMHeadModel, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW; the LM head, which starts from nothing, learns faster than what MiniLM knows already."""
    head = [p for n, p in model.named_parameters() if n.startswith("cls")]
    body = [p for n, p in model.named_parameters() if not n.startswith("cls")]
    groups = [{"params": body, "scale": 1.0}, {"params": head, "scale": HEAD_RATE}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), weight_decay=weight_decay, fused=True)


def stream(args: argparse.Namespace, shards: list[Shard], plan: list[Any], first: int) -> Iterator[Batch]:
    """Batches from step `first` on; the plan repeats when it is shorter than the run."""
    markers = Markers.of(load_tokenizer(args.work / "tokenizer"))
    loaded, vectors = -1, None
    for step in range(first, args.steps):
        number, rows = plan[step % len(plan)]
        if number != loaded:
            loaded, vectors = number, shards[number].vectors()
        assert vectors is not None
        yield collate(shards[number], vectors, rows, markers, args.text_targets)


class Meter:
    """Running means of the losses and the speed since the last line."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}
        self.count = self.tokens = 0
        self.start = time.time()

    def add(self, parts: dict[str, float], tokens: int) -> None:
        """Count one step."""
        for name, value in parts.items():
            self.values.setdefault(name, []).append(value)
        self.count += 1
        self.tokens += tokens

    def line(self, step: int, steps: int, lr: float) -> dict[str, Any]:
        """Speed and mean losses so far."""
        seconds = time.time() - self.start
        out = {"step": step, "of": steps, "lr": round(lr, 7)}
        out |= {name: round(sum(values) / len(values), 4) for name, values in sorted(self.values.items())}
        out |= {"tokens_per_s": round(self.tokens / seconds)}
        out |= {"minutes_left": round((steps - step) * seconds / self.count / 60, 1)}
        return out


def resume(run: Path, model: BertLMHeadModel, optimizer: torch.optim.AdamW) -> tuple[int, int]:
    """Load the run's checkpoint when there is one; returns the next step and the tokens seen."""
    path = run / "checkpoint.pt"
    if not path.exists():
        return 0, 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["rng"])
    return int(state["step"]), int(state["tokens"])


def start_from(run: Path, model: BertLMHeadModel) -> None:
    """Take over the weights of another run's checkpoint."""
    model.load_state_dict(torch.load(run / "checkpoint.pt", weights_only=True)["model"])


def run_steps(
    args: argparse.Namespace,
    model: BertLMHeadModel,
    optimizer: torch.optim.AdamW,
    batches: Callable[[int], Iterator[Item]],
    backward: Callable[[Item], tuple[dict[str, float], int]],
) -> None:
    """Run the steps that are left, writing losses to `log.jsonl` and a checkpoint every few minutes.

    `batches` gives those from a step on; `backward` adds one's gradients and returns its losses and tokens.
    """
    first, tokens = resume(args.run, model, optimizer)
    print(f"{args.steps} steps, from step {first}", flush=True)
    meter, saved = Meter(), time.time()
    for step, batch in enumerate(batches(first), start=first):
        lr = args.lr * rate(step, args.steps, args.warmup, args.decay)
        for group in optimizer.param_groups:
            group["lr"] = lr * group["scale"]
        parts, size = backward(batch)
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tokens += size
        meter.add(parts, size)
        done = step + 1 == args.steps
        if (step + 1) % args.log_every == 0 or done:
            line = json.dumps(meter.line(step + 1, args.steps, lr) | {"tokens": tokens})
            print(line, flush=True)
            with (args.run / "log.jsonl").open("a") as log:
                log.write(line + "\n")
            meter = Meter()
        if time.time() - saved > 60 * args.save_minutes or done:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            save(args.run / "checkpoint.pt", state | {"tokens": tokens, "rng": torch.get_rng_state()})
            saved = time.time()


def train(args: argparse.Namespace) -> None:
    """Train on documents, queries and queries with thoughts."""
    torch.manual_seed(args.seed)
    shards = [Shard(path) for path in sorted((args.work / "shards").glob("*.npz"))[: args.shards]]
    options = PlanOptions(args.batch_tokens, args.batch_rows, args.long_share, args.short_repeat, args.seed)
    plan = plan_run(shards, options)
    args.steps = args.steps or len(plan)
    model = build_model(args.work).train()
    use_training_attention(model)
    optimizer = make_optimizer(model, args.lr, args.weight_decay)
    if args.start:
        start_from(args.start, model)
    weights = Weights(args.cosine, args.similarity, args.tokens, args.text)
    print(f"{len(plan)} batches in the data", flush=True)

    def backward(batch: Batch) -> tuple[dict[str, float], int]:
        loss, parts = losses(model, batch, weights)
        loss.backward()
        return parts, batch.ids.numel()

    run_steps(args, model, optimizer, lambda first: stream(args, shards, plan, first), backward)


RAW = argparse.RawDescriptionHelpFormatter


def main() -> None:
    """Parse the options and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RAW)
    parser.add_argument("--work", type=Path, required=True, help="folder that data.py wrote")
    parser.add_argument("--run", type=Path, required=True, help="folder for this run's checkpoint and log")
    parser.add_argument("--start", type=Path, help="run whose weights this one starts from")
    parser.add_argument("--shards", type=int, default=None, help="use the first shards only (pilot runs)")
    parser.add_argument("--steps", type=int, default=None, help="default: once through the data")
    parser.add_argument("--batch-tokens", type=int, default=3072)
    parser.add_argument("--batch-rows", type=int, default=128)
    parser.add_argument("--long-share", type=float, default=0.35, help="share of rows over 64 tokens")
    parser.add_argument("--short-repeat", type=int, default=2, help="uses of rows up to 40 tokens")
    parser.add_argument("--lr", type=float, default=1.5e-4)
    parser.add_argument("--warmup", type=int, default=60, help="steps")
    parser.add_argument("--decay", type=float, default=0.8, help="last share of the steps")
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--cosine", type=float, default=30.0, help="weight of 1 - cosine to the teacher")
    parser.add_argument("--similarity", type=float, default=3.0, help="weight of in-batch similarity")
    parser.add_argument("--tokens", type=float, default=1.0, help="weight of the next-token loss")
    parser.add_argument("--text", type=float, default=0.4, help="a document token's weight to a thought's")
    parser.add_argument("--text-targets", type=int, default=384, help="document positions a batch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--log-every", type=int, default=20)
    parser.add_argument("--save-minutes", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.run.mkdir(parents=True, exist_ok=True)
    train(args)


if __name__ == "__main__":
    main()
