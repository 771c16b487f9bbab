"""The local engine: one language model that thinks and embeds.

In the order of the story: `load` finds, checks and loads a checkpoint (`checkpoint`, `template`), whose
`weights` and `layers` are laid out for the processor; `passes` runs prompts and finished texts through the
model, in batches sized by their tokens; `steps` keeps the keys and values of thoughts that are being written
and feeds all of them one token, `rows` draws it; `decode` is the loop that writes thoughts and takes the
`<emb>` states that writing left, and `follow` tells others of it; `threads` spares the cores that others
want; `backend` offers all of it to the embedder.
"""
