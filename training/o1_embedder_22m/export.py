"""The last step: a trained model in 32 MB, with the settings that it is used with.

```
python training/o1_embedder_22m/export.py --model WORK/joint/model --out models/o1-embedder-22m
```

Weights in float16, word embeddings in 8 bits; the configuration says float32, to compute in. The word
embeddings are the larger half of a small model. In float8 (e4m3) twice as many of them fit into the same
file, which is worth far more than the rounding costs: see the README.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from start import SETTINGS, load_tokenizer
from transformers import BertLMHeadModel

from o1_retriever.engine.template import CONFIG_NAME, TemplateConfig
from o1_retriever_training.saving import save_embedder

MAX_BYTES = 32_000_000
WORDS = "bert.embeddings.word_embeddings.weight"


def pack(folder: Path) -> None:
    """Store the weights of a model's folder in float16, its words in float8, its tokenizer without indents.

    The indented vocabulary would be twice the size.
    """
    path = folder / "model.safetensors"
    weights = {name: value.half() for name, value in load_file(path).items()}
    weights[WORDS] = weights[WORDS].to(torch.float8_e4m3fn)
    save_file(weights, path, metadata={"format": "pt"})
    path.chmod(0o644)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float32"}, indent=2) + "\n")
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")), ensure_ascii=False), encoding="utf-8")


def export(model: Path, out: Path, settings: dict[str, Any]) -> int:
    """Write the whole folder; returns its size in bytes."""
    if not (model / CONFIG_NAME).is_file():
        raise SystemExit(f"No trained model in {model}: run `o1-retriever train` first.")
    config = replace(TemplateConfig.from_file(model / CONFIG_NAME), settings=settings)
    loaded = BertLMHeadModel.from_pretrained(model, dtype=torch.float32)
    save_embedder(out, loaded, load_tokenizer(model), config)
    pack(out)
    return sum(path.stat().st_size for path in out.rglob("*") if path.is_file())


def main() -> None:
    """Parse the options and export."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--model", type=Path, required=True, help="model folder that was trained")
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    for name, value in SETTINGS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    args = parser.parse_args()
    size = export(args.model, args.out, {name: getattr(args, name) for name in SETTINGS})
    if size > MAX_BYTES:
        raise SystemExit(f"{args.out} has {size} bytes, over {MAX_BYTES}: use a smaller --vocabulary.")
    print(f"{args.model} exported to {args.out}: {size} bytes")


if __name__ == "__main__":
    main()
