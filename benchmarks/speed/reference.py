"""The usual two-pass road, faithfully: generate, decode to text, tokenise again, run everything once more.

This is how the method's reference implementation encodes queries (`num_return_sequences` prefills the prompt
k times, the thoughts travel as text, the second forward starts from nothing), written with transformers' own
`generate` and the same layout, weights and sampling as ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import normalize

from o1_retriever.engine.load import LocalModel
from o1_retriever.engine.passes import padded
from o1_retriever.thought import ThoughtSettings

BATCH = 16


def encode_queries(local: LocalModel, queries: Sequence[str], settings: ThoughtSettings) -> torch.Tensor:
    """Mean of the k normalised vectors of each query (queries, dimension)."""
    return torch.cat(
        [_batch(local, queries[start : start + BATCH], settings) for start in range(0, len(queries), BATCH)]
    )


@torch.inference_mode()
def _batch(local: LocalModel, queries: Sequence[str], settings: ThoughtSettings) -> torch.Tensor:
    template, tokenizer = local.template, local.template.tokenizer
    ids = template.text_ids(queries)
    prompts, mask = padded([template.prompt(row) for row in ids], local.device, side="left")
    written = local.model.generate(
        input_ids=prompts,
        attention_mask=mask,
        do_sample=settings.temperature > 0,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=0,
        num_return_sequences=settings.n_thoughts,
        max_new_tokens=settings.max_new_tokens,
        eos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
    )
    texts = tokenizer.batch_decode(written[:, prompts.shape[1] :], skip_special_tokens=True)
    thoughts = template.text_ids(texts)
    rows = [
        template.thinking_query(ids[place // settings.n_thoughts], row) for place, row in enumerate(thoughts)
    ]
    again, mask = padded(rows, local.device, side="left")
    hidden = local.model(input_ids=again, attention_mask=mask, output_hidden_states=True).hidden_states[-1]
    vectors = normalize(hidden[:, -1].float(), dim=-1)
    return vectors.view(len(queries), settings.n_thoughts, -1).mean(1)
