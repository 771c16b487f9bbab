"""The rows of stages 1 and 2, and the vocabulary that they are written in.

```
python training/o1_embedder_22m/data.py --data ../shared/data --work WORK
python training/o1_embedder_22m/data.py --work WORK2 --stage collections --held-out DEV/queries.jsonl
```
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from documents import all_rows, corpus_texts
from sources import Row, english_rows, read_jsonl, require_data, write_jsonl
from transformers import PreTrainedTokenizerFast
from vocabulary import base_tokenizer, build_tokenizer, choose_pieces, count_pieces, rank_pieces

MAX_TEXT, MAX_THOUGHT = 400, 96  # tokens, markers not counted
SHORT, LONG = 40, 64  # tokens up to which a row counts as short, beyond which as long


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


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str], most: int) -> list[list[int]]:
    """Token ids of each text without markers, cut at `most`."""
    encoded = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return [ids[:most] for ids in encoded]


def tokenised(tokenizer: PreTrainedTokenizerFast, rows: list[Row]) -> tuple[list[int], np.ndarray]:
    """The tokens of each row with its markers, and how often each token occurs in all of them.

    The bias of the language-model head starts from the latter, in which a thought's token counts four times.
    """
    lengths: list[int] = []
    counts = np.zeros(len(tokenizer), dtype=np.int64)
    for first in range(0, len(rows), 4096):
        part = rows[first : first + 4096]
        texts = encode(tokenizer, [row.text for row in part], MAX_TEXT)
        thoughts = encode(tokenizer, [row.thought for row in part], MAX_THOUGHT)
        lengths += [
            len(text) + 2 + (len(thought) + 3 if thought else 0)
            for text, thought in zip(texts, thoughts, strict=True)
        ]
        counts += np.bincount([each for ids in texts for each in ids], minlength=len(counts))
        counts += 4 * np.bincount(
            np.array([each for ids in thoughts for each in ids], dtype=np.int64), minlength=len(counts)
        )
    return lengths, counts


def chosen(rows: list[Row], lengths: list[int], args: argparse.Namespace) -> Iterator[dict[str, str]]:
    """The rows in the trainer's words: short ones several times, of the long ones a share.

    Short rows teach more vectors a token, so that they are used more.
    """
    draw = random.Random(args.seed)
    for row, length in zip(rows, lengths, strict=True):
        kept = length <= LONG or draw.random() < args.long_share
        line = {"query": row.text} | ({"thought": row.thought} if row.thought else {})
        if row.kind == "document":
            line = {"kind": "document", "text": row.text}
        yield from [line] * (args.short_repeat if length <= SHORT else int(kept))


def main() -> None:
    """Write the tokenizer, the rows and the token counts to the work folder."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data"), help="folder with text/ and train/"
    )
    parser.add_argument("--work", type=Path, required=True, help="folder to write into")
    parser.add_argument("--vocabulary", type=int, default=12_288, help="entries, special tokens included")
    parser.add_argument("--stage", choices=("english", "collections"), default="english")
    parser.add_argument("--held-out", type=Path, help="queries.jsonl whose texts are kept out")
    parser.add_argument("--limit", type=int, help="take so many rows alone (to try the way)")
    parser.add_argument("--long-share", type=float, default=0.35, help="share of rows over 64 tokens")
    parser.add_argument("--short-repeat", type=int, default=2, help="uses of rows up to 40 tokens")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    start = time.time()
    require_data(args.data)
    kept_out = frozenset(row["text"] for row in read_jsonl(args.held_out)) if args.held_out else frozenset()
    english = args.stage == "english"
    rows = english_rows(args.data, args.seed) if english else all_rows(args.data, args.seed, kept_out)
    rows = rows[: args.limit]
    print(f"{len(rows)} rows {dict(Counter(r.kind for r in rows))}, {time.time() - start:.0f} s", flush=True)
    tokenizer = make_vocabulary(args.data, args.vocabulary, args.work / "tokenizer")
    print(f"vocabulary of {len(tokenizer)}, {time.time() - start:.0f} s", flush=True)
    lengths, counts = tokenised(tokenizer, rows)
    np.save(args.work / "unigrams.npy", counts)
    count = write_jsonl(args.work / "rows.jsonl", chosen(rows, lengths, args))
    print(f"{count} rows written, {time.time() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
