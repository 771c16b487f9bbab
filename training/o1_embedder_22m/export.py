"""Step 4: a checkpoint of train.py as a model folder that transformers and sentence-transformers load.

```
python training/o1_embedder_22m/export.py --work WORK --run WORK/run --out models/o1-embedder-22m
```
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from model import build_model, load_tokenizer
from safetensors.torch import load_file, save_file
from transformers import BertLMHeadModel, GenerationConfig, PreTrainedTokenizerBase

from o1_retriever.engine.template import Template, TemplateConfig
from o1_retriever_training.saving import chat_template, save_sentence_transformers

MAX_BYTES = 32_000_000
MAX_POSITIONS = 512
WORDS = "bert.embeddings.word_embeddings.weight"


def write_json(path: Path, value: Any) -> None:
    """Write a small JSON file, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def trained_model(work: Path, run: Path) -> tuple[BertLMHeadModel, int]:
    """The model of the run's latest checkpoint, and its step."""
    path = run / "checkpoint.pt"
    if not path.is_file():
        raise SystemExit(f"No checkpoint at {path}: run train.py first.")
    state = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    model = build_model(work)
    model.load_state_dict(state["model"])
    return model.eval(), int(state["step"])


def generation_config(tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any]) -> GenerationConfig:
    """Sampling defaults for `generate`: special tokens other than eos are never sampled."""
    never = sorted(set(tokenizer.all_special_ids) - {tokenizer.eos_token_id})
    return GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=True,
        temperature=settings["temperature"],
        top_p=settings["top_p"],
        top_k=0,
        max_new_tokens=settings["max_new_tokens"],
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=never,
    )


def save_weights(model: BertLMHeadModel, out: Path) -> None:
    """Weights in float16, word embeddings in 8 bits; the configuration says float32, to compute in.

    The word embeddings are the larger half of a small model. In float8 (e4m3) twice as many of them fit
    into the same file, which is worth far more than the rounding costs: see the README.
    """
    model.half().save_pretrained(out)  # type: ignore[no-untyped-call]
    path = out / "model.safetensors"
    weights = load_file(path)
    weights[WORDS] = weights[WORDS].to(torch.float8_e4m3fn)
    save_file(weights, path, metadata={"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    config["dtype"] = "float32"
    write_json(out / "config.json", config)
    (out / "model.safetensors").chmod(0o644)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """The tokenizer with its chat template."""
    tokenizer.chat_template = chat_template("paper")
    tokenizer.save_pretrained(out)
    config = json.loads((out / "tokenizer_config.json").read_text())
    for name in ("is_local", "local_files_only"):  # of the folder it was loaded from, not of the tokenizer
        config.pop(name, None)
    write_json(out / "tokenizer_config.json", config | {"tokenizer_class": "PreTrainedTokenizerFast"})
    path = out / "tokenizer.json"  # compact: the indented vocabulary is twice the size
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")), ensure_ascii=False), encoding="utf-8")


def export(args: argparse.Namespace) -> None:
    """Write the whole folder and check its size."""
    settings = {
        "n_thoughts": args.n_thoughts,
        "temperature": args.temperature,
        "top_p": args.top_p,
        "max_new_tokens": args.max_new_tokens,
        "repetition_penalty": args.repetition_penalty,
    }
    model, step = trained_model(args.work, args.run)
    tokenizer = load_tokenizer(args.work / "tokenizer")
    args.out.mkdir(parents=True, exist_ok=True)
    model.generation_config = generation_config(tokenizer, settings)
    save_weights(model, args.out)
    save_tokenizer(tokenizer, args.out)
    config = TemplateConfig(max_length=MAX_POSITIONS, settings=settings)
    config.save(args.out)
    save_sentence_transformers(args.out, Template(tokenizer, config), dimension=model.config.hidden_size)
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    if size > MAX_BYTES:
        raise SystemExit(f"{args.out} has {size} bytes, over {MAX_BYTES}: use a smaller --vocabulary.")
    print(f"step {step} exported to {args.out}: {size} bytes")


RAW = argparse.RawDescriptionHelpFormatter


def main() -> None:
    """Parse the options and export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RAW)
    parser.add_argument("--work", type=Path, required=True, help="folder that data.py wrote")
    parser.add_argument("--run", type=Path, required=True, help="folder of the run")
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    parser.add_argument("--k", type=int, default=3, help="thoughts per query")
    parser.add_argument("--temperature", type=float, default=0.5)
    parser.add_argument("--top-p", type=float, default=0.9)
    parser.add_argument("--repetition-penalty", type=float, default=1.0)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    export(parser.parse_args())


if __name__ == "__main__":
    main()
