"""Step 3b: go on from a run with a small vocabulary in a larger one.

```
python training/o1_embedder_22m/widen.py --work WORK --run WORK/run --new-work WIDE --new-run WIDE/run
```

Pieces that both vocabularies have keep their trained embedding; the others return with MiniLM's own, in whose
space the trained ones still are. The optimizer starts anew.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from model import build_model, load_tokenizer
from train import make_optimizer, save
from transformers import BertLMHeadModel

ROWS = ("bert.embeddings.word_embeddings.weight", "cls.predictions.bias")


def widened(work: Path, run: Path, new_work: Path) -> BertLMHeadModel:
    """A model over the vocabulary of `new_work` with all that the run in `run` has learned."""
    path = run / "checkpoint.pt"
    if not path.is_file():
        raise SystemExit(f"No checkpoint at {path}: run train.py first.")
    old = torch.load(path, weights_only=True, map_location="cpu")["model"]
    model = build_model(new_work)
    state = model.state_dict()
    narrow, wide = (load_tokenizer(folder / "tokenizer").get_vocab() for folder in (work, new_work))
    shared = sorted(set(narrow) & set(wide))
    there = torch.tensor([wide[piece] for piece in shared])
    here = torch.tensor([narrow[piece] for piece in shared])
    for name, value in old.items():
        if state[name].shape == value.shape:
            state[name] = value
    for name in ROWS:
        state[name][there] = old[name][here]
    model.load_state_dict(state)
    model.tie_weights()
    return model


def main() -> None:
    """Write the first checkpoint of the new run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("--work", "--run", "--new-work", "--new-run"):
        parser.add_argument(name, type=Path, required=True)
    args = parser.parse_args()
    model = widened(args.work, args.run, args.new_work)
    args.new_run.mkdir(parents=True, exist_ok=True)
    optimizer = make_optimizer(model, 0.0, 0.0)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 0, "tokens": 0}
    save(args.new_run / "checkpoint.pt", state | {"rng": torch.get_rng_state()})
    print(f"{args.new_run / 'checkpoint.pt'}: {model.config.vocab_size} tokens")


if __name__ == "__main__":
    main()
