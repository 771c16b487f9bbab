"""A tokenizer of whole words for the fictional world, with the markers of the paper layout."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from o1_retriever.engine.template import MARKERS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

EOS, PAD, UNKNOWN = "</s>", "<pad>", "<unk>"


def words_of(texts: Iterable[str]) -> list[str]:
    """Every word and punctuation mark of the texts once, in alphabetical order."""
    return sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]+", text)})


def word_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer that knows the words of these texts; any other becomes `<unk>`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: place for place, word in enumerate([UNKNOWN, PAD, EOS, *words_of(texts)])}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(cleanup=True)  # no space before a full stop
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, unk_token=UNKNOWN, pad_token=PAD, eos_token=EOS
    )
    fast.add_special_tokens({"extra_special_tokens": list(MARKERS["paper"])})
    return fast
