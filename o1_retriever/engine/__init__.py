"""The local road: one language model that thinks and embeds.

In the order of the story: `load` finds, checks and prepares a checkpoint (`checkpoint`, `weights`,
`precision`, `packing`); `batching` sizes batches by their tokens; `prefill` runs prompts; `slots` keeps
their keys and values, `rows` what each row has written, with tokens drawn by `sampling`; `steps` feeds all
rows one token; `memory` lends large blocks, `attention` is that of a step; `decode` is the loop that writes
thoughts and takes the `<emb>` states that writing left; `encode` embeds finished texts; `threads` spares
the cores that others want; `backend` offers all of it to the embedder.
"""
