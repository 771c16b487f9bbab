"""The local road: one language model that thinks and embeds.

`load` finds and checks a checkpoint, `padding` makes batches, `sampling` draws tokens, `decode` writes
thoughts and takes the `<emb>` states from the cache that writing left, `encode` embeds finished texts,
`backend` offers all of it to the embedder.
"""
