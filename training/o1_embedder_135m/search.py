"""The indexes on the device: vectors and BM25 of all documents, both fused, and what a thought is worth.

N is the number of documents, Q of questions, n of thoughts about each.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp  # type: ignore[import-untyped]
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from o1_embedder_135m.language import DEVICE
from o1_embedder_135m.passages import Collection, Question
from o1_retriever.encoders import Encoder
from o1_retriever.evaluation.collection import encode_corpus
from o1_retriever.ranking.bm25 import Bm25, content_words
from o1_retriever.ranking.ranking import FUSION_DEPTH
from o1_retriever_training.adapt import only_embeds
from o1_retriever_training.make_data import SENTENCE

NEIGHBOURS = 4


def unit(x: Tensor) -> Tensor:
    """Rows of length 1."""
    return F.normalize(x, dim=-1)


class Index:
    """A collection's documents as vectors [N, dimension] and as BM25's scores of each stem [V, N]."""

    def __init__(self, collection: Collection, encoder: Encoder, folder: Path) -> None:
        self.collection, self.encoder = collection, encoder
        texts = collection.texts
        if len(texts) == len(collection.corpus.ids):
            vectors = encode_corpus(only_embeds(encoder), collection.corpus, folder).matrix
        else:
            vectors = encoder.embed_documents(texts)
        self.documents = unit(torch.tensor(np.array(vectors), device=DEVICE))
        index: Any = Bm25(texts)._index  # the product searches with this, and has no use for a matrix
        data, places, ends = (np.asarray(index.scores[name]) for name in ("data", "indices", "indptr"))
        self.sparse = sp.csr_matrix((data, places, ends), shape=(len(ends) - 1, len(texts)))
        self.bm25 = torch.tensor(self.sparse.toarray(), dtype=torch.float32, device=DEVICE)
        self.stems = {stem: row for stem, row in index.vocab_dict.items() if row < len(self.bm25)}

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors of queries."""
        return unit(torch.tensor(self.encoder.embed_queries(list(texts), batch_size=512), device=DEVICE))

    def dense(self, vectors: Tensor) -> Tensor:
        """Cosines [Q, N]."""
        return vectors @ self.documents.T

    def lexical(self, texts: Sequence[str]) -> Tensor:
        """BM25 [Q, N]: the sum of the rows of a text's stems."""
        rows = [[self.stems[stem] for stem in words if stem in self.stems] for words in content_words(texts)]
        starts = np.cumsum([0, *map(len, rows)])[:-1]
        ids = torch.tensor([each for row in rows for each in row], dtype=torch.long, device=DEVICE)
        return F.embedding_bag(ids, self.bm25, torch.tensor(starts, device=DEVICE), mode="sum")

    def neighbours(self) -> Tensor:
        """The documents [N, NEIGHBOURS] that share the rarest words with each."""
        strong = self.sparse.copy()
        strong.data[strong.data <= np.quantile(strong.data, 0.2)] = 0
        strong.eliminate_zeros()
        words, found = (strong > 0).astype(np.float32).T.tocsr(), []
        for first in range(0, words.shape[0], 1000):
            scores = torch.tensor((words[first : first + 1000] @ strong).toarray())
            scores.diagonal(first).fill_(-1)
            found.append(scores.topk(min(NEIGHBOURS, scores.shape[1]), -1).indices)
        return torch.cat(found)


def fused(dense: Tensor, lexical: Tensor, depth: int = FUSION_DEPTH) -> Tensor:
    """What `o1_retriever.ranking.ranking.fuse` makes of both, [Q, N]."""

    def stretched(scores: Tensor, ends_at_zero: bool) -> Tensor:
        best = scores.topk(min(depth, scores.shape[1]), -1).values
        low, high = best[:, -1:], best[:, :1]
        low = low.clamp_min(0) if ends_at_zero else low
        found = ((scores - low) / (high - low).clamp_min(1e-6)).clamp_min(0)
        return found * (high > 0) if ends_at_zero else found

    return (stretched(dense, False) + stretched(lexical, True)) / 2


def golds(questions: Sequence[Question], width: int | None = None) -> Tensor:
    """The places of the questions' passages [Q, width], -1 where there is none."""
    width = width or max(len(each.passages) for each in questions)
    rows = [(each.passages + [-1] * width)[:width] for each in questions]
    return torch.tensor(rows, device=DEVICE)


def ranks(scores: Tensor, gold: Tensor) -> Tensor:
    """The ranks from 0 of the passages `gold` [Q, w] by scores [Q, N]; nan where there is none."""
    own = scores.gather(1, gold.clamp_min(0))
    found = torch.stack([(scores > column[:, None]).sum(1) for column in own.T], 1).float()
    return found.masked_fill(gold < 0, float("nan"))


def ndcg(found: Tensor, k: int = 10) -> Tensor:
    """NDCG at k of ranks [Q, w]."""
    gain = torch.where(found < k, 1 / torch.log2(found + 2), 0.0).nan_to_num(0).sum(1)
    ideal = (1 / torch.log2(torch.arange(k, device=found.device) + 2)).cumsum(0)
    return gain / ideal[(~found.isnan()).sum(1).clamp(1, k) - 1]


def with_thoughts(
    index: Index, own: tuple[Tensor, Tensor], thoughts: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Scores by vectors and by BM25, each [Q, N], of questions with thoughts.

    `own` are the questions' vectors and BM25, `thoughts` the means of those of their thoughts.
    """
    return index.dense(unit(own[0] + thoughts[0])), own[1] + 0.5 * thoughts[1]


def contrast(cosines: Tensor, gold: Tensor) -> Tensor:
    """The mean negative log-likelihood of passages `gold` [Q, w] among all documents, temperature 0.05."""
    found = F.log_softmax(cosines / 0.05, -1).gather(1, gold.clamp_min(0)).masked_fill(gold < 0, 0)
    return -(found.sum(1) / (gold >= 0).sum(1).clamp_min(1)).mean()


def goodness(dense: Tensor, lexical: Tensor, gold: Tensor) -> Tensor:
    """How well each question's passages are found [Q]: nDCG@10, and a little for every rank beyond."""
    total = torch.zeros(len(gold), device=dense.device)
    for scores, weight in ((dense, 0.3), (lexical, 0.2), (fused(dense, lexical), 0.5)):
        found = ranks(scores, gold).clamp_max(1000)
        total += weight * (ndcg(found) - 0.12 * torch.log1p(found).nanmean(1))
    return total


@torch.no_grad()
def rewards(
    index: Index, questions: Sequence[Question], vectors: Tensor, texts: Sequence[str]
) -> tuple[Tensor, float]:
    """The reward [Q, n] of the thoughts `texts` (n for each question), and the mean gain of three together.

    `vectors` [Q, dimension] are those of the questions alone, corrected: a thought is to say what they lack.
    Three thoughts are used at once, and what they are worth lies in how they differ. So a thought gets 0.4 of
    what it gains alone, and 0.6 of what the triples gain that it was drawn into, twice.
    """
    count, n = len(questions), len(texts) // len(questions)
    asked, gold = [each.text for each in questions], golds(questions, 6)
    own = vectors, index.lexical(asked)
    said = (
        index.embed([f"{q} {t}" for q, t in zip(np.repeat(asked, n), texts, strict=True)]),
        index.lexical(texts),
    )

    line = torch.arange(count, device=DEVICE)[:, None, None]

    def gain(groups: Tensor) -> Tensor:
        """What thoughts `groups` [Q, m, size] gain together, [Q, m]."""
        m = groups.shape[1]
        vectors, words = (each.view(count, n, -1)[line, groups].mean(2).flatten(0, 1) for each in said)
        spread = own[0].repeat_interleave(m, 0), own[1].repeat_interleave(m, 0)
        scores = with_thoughts(index, spread, (vectors, words))
        return goodness(*scores, gold.repeat_interleave(m, 0)).view(count, m) - none

    none = goodness(index.dense(own[0]), own[1], gold)[:, None]
    alone = gain(torch.arange(n, device=DEVICE)[None, :, None].expand(count, -1, -1))
    total, drawn = torch.zeros(count, n, device=DEVICE), torch.zeros(count, n, device=DEVICE)
    for _ in range(2):
        groups = torch.rand(count, n, device=DEVICE).argsort(1)[:, : n // 3 * 3].view(count, -1, 3)
        each = gain(groups)[..., None].expand_as(groups).flatten(1)
        total.scatter_add_(1, groups.flatten(1), each)
        drawn.scatter_add_(1, groups.flatten(1), torch.ones_like(each))
    together = torch.where(drawn > 0, total / drawn.clamp_min(1), alone)
    return 0.4 * alone + 0.6 * together, together.mean().item()


def penalty(text: str, ended: bool, tokens: int) -> float:
    """What a thought pays for its form: no end, no sentence, no words, loops, tokens beyond 40."""
    words, sentences = text.lower().split(), [each.lower().strip(" .!?") for each in SENTENCE.split(text)]
    loops = any(
        words[at : at + size] == words[at + size : at + 2 * size]
        for size in range(2, 9)
        for at in range(len(words) - 2 * size + 1)
    )
    paid = 0.3 if not ended else 0.15 if not text.endswith((".", "!", "?")) else 0.0
    paid += 0.5 * (len(words) < 3) + 0.3 * loops + 0.2 * (len({*sentences}) < len(sentences))
    return -paid - 0.004 * max(0, tokens - 40)
