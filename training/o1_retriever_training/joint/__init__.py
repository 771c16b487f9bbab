"""Joint training: one model learns to think about a query and to embed it (arXiv 2502.07555, section 4).

```
recipe.yaml ── recipe ──> dry_run              what it will cost, before anything is loaded
                 │
                 v
rows ──> batches ──> model ──> losses          one forward gives the thought's logits and the vectors
                       │
                     steps                     a contrastive batch larger than memory, and than one device
                       └── trainer ──> run     checkpoints, the dev collection, a folder for from_pretrained
```

`recipe` says everything about a run and is validated before anything is loaded, `dry_run` estimates tokens,
memory and time (`sizes` counts them), `run.train` trains, and `command` is `o1-retriever train`. Nothing is
imported here.
"""
