"""Step 1: choose the vocabulary, then write the rows as tokenised shards.

```
python training/o1_embedder_22m/data.py --data ../shared/data --work WORK
python training/o1_embedder_22m/data.py --work WORK2 --stage collections --held-out DEV/queries.jsonl
```
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
from documents import all_rows, corpus_texts
from sources import Row, english_rows, read_jsonl, require_data
from transformers import PreTrainedTokenizerFast
from vocabulary import base_tokenizer, build_tokenizer, choose_pieces, count_pieces, rank_pieces

KINDS = ("document", "query", "thinking")
MAX_DOCUMENT, MAX_QUERY, MAX_THOUGHT = 400, 128, 96  # tokens, markers not counted


def vocabulary_texts(data: Path) -> dict[str, list[str]]:
    """The texts whose pieces are counted, by group of sources."""
    groups: dict[str, list[str]] = {"textbook": [], "dictionary": [], "pairs": []}
    groups["textbook"] = [r["text"] for r in read_jsonl(data / "text" / "openstax_sections.jsonl.gz")]
    for entry in read_jsonl(data / "text" / "wordnet_glosses.jsonl.gz"):
        groups["dictionary"] += [
            " ".join(entry["words"]),
            entry["gloss"],
            *map(str, entry.get("examples", [])),
        ]
    for path in sorted((data / "train").glob("*.jsonl.gz")):
        for row in read_jsonl(path):
            groups["pairs"] += [row["query"], *row["pos"][:2], str(row.get("thought") or "")]
    for path in sorted((data / "expert_thoughts").glob("*.train.jsonl")):
        groups["pairs"] += [t for entry in read_jsonl(path) for t in entry["thoughts"]]
    groups["collections"] = corpus_texts(data)
    return groups


def make_vocabulary(data: Path, size: int, out: Path) -> PreTrainedTokenizerFast:
    """Build the pruned tokenizer and write it to `out` with the full vocabulary's id of each kept piece."""
    base = base_tokenizer()
    counts = {name: count_pieces(base, texts) for name, texts in vocabulary_texts(data).items()}
    full: dict[str, int] = base.get_vocab()
    pieces = choose_pieces(full, rank_pieces(counts), size)
    tokenizer = build_tokenizer(pieces)
    tokenizer.save_pretrained(out)
    (out / "base_ids.json").write_text(json.dumps([full.get(piece, -1) for piece in pieces]))
    return tokenizer


def unigram_counts(shards: list[Path], size: int) -> np.ndarray:
    """How often each token occurs in the tokenised rows: the LM head's bias starts from it."""
    totals = np.zeros(size, dtype=np.int64)
    for shard in shards:
        with np.load(shard) as arrays:
            totals += np.bincount(arrays["text_ids"], minlength=size)
            totals += 4 * np.bincount(arrays["thought_ids"], minlength=size)
    return totals


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str], limits: list[int]) -> list[list[int]]:
    """Token ids of each text without markers, cut to its limit."""
    encoded = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return [ids[:limit] for ids, limit in zip(encoded, limits, strict=True)]


def write_shard(tokenizer: PreTrainedTokenizerFast, rows: list[Row], path: Path) -> int:
    """Write one shard's token ids (`.npz`) and its texts for the teacher (`.jsonl`); returns its tokens."""
    limits = [MAX_DOCUMENT if r.kind == "document" else MAX_QUERY for r in rows]
    texts = encode(tokenizer, [r.text for r in rows], limits)
    thoughts = encode(tokenizer, [r.thought for r in rows], [MAX_THOUGHT] * len(rows))
    path.with_suffix(".jsonl").write_text(
        "".join(json.dumps({"text": r.text, "thought": r.thought}) + "\n" for r in rows), encoding="utf-8"
    )
    np.savez(
        path,
        kind=np.array([KINDS.index(r.kind) for r in rows], dtype=np.uint8),
        text_ids=np.array([i for ids in texts for i in ids], dtype=np.uint16),
        text_ends=np.cumsum([len(ids) for ids in texts]),
        thought_ids=np.array([i for ids in thoughts for i in ids], dtype=np.uint16),
        thought_ends=np.cumsum([len(ids) for ids in thoughts]),
    )
    return sum(map(len, texts)) + sum(map(len, thoughts))


def stage_rows(args: argparse.Namespace) -> list[Row]:
    """The rows of the stage that was asked for."""
    if args.stage == "english":
        return english_rows(args.data, args.seed, args.textbook_words, args.dictionary_share)
    kept_out = frozenset(row["text"] for row in read_jsonl(args.held_out)) if args.held_out else frozenset()
    return all_rows(args.data, args.seed, kept_out)


RAW = argparse.RawDescriptionHelpFormatter


def main() -> None:
    """Write the tokenizer and all shards to the work folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RAW)
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data"), help="folder with text/ and train/"
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for shards and checkpoints")
    parser.add_argument("--vocabulary", type=int, default=12_288, help="entries, special tokens included")
    parser.add_argument("--stage", choices=("english", "collections"), default="english")
    parser.add_argument("--held-out", type=Path, help="queries.jsonl whose texts are kept out")
    parser.add_argument("--textbook-words", type=int, default=3_600_000)
    parser.add_argument("--dictionary-share", type=float, default=0.6)
    parser.add_argument("--limit", type=int, help="take so many rows alone (to try the way)")
    parser.add_argument("--shard-rows", type=int, default=16_384)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    start = time.time()
    require_data(args.data)
    rows = stage_rows(args)[: args.limit]
    print(f"{len(rows)} rows {dict(Counter(r.kind for r in rows))}, {time.time() - start:.0f} s", flush=True)
    tokenizer = make_vocabulary(args.data, args.vocabulary, args.work / "tokenizer")
    print(f"vocabulary of {len(tokenizer)}, {time.time() - start:.0f} s", flush=True)
    (args.work / "shards").mkdir(parents=True, exist_ok=True)
    shards: list[Path] = []
    for first in range(0, len(rows), args.shard_rows):
        shards.append(args.work / "shards" / f"{len(shards):03d}.npz")
        tokens = write_shard(tokenizer, rows[first : first + args.shard_rows], shards[-1])
        print(f"{shards[-1].name}: {tokens} tokens, {time.time() - start:.0f} s", flush=True)
    np.save(args.work / "unigrams.npy", unigram_counts(shards, len(tokenizer)))


if __name__ == "__main__":
    main()
