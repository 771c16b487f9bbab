"""Training data from pairs of query and document: thoughts of an expert, chosen by a committee.

```
folder of documents ── queries ──┐            (make_data: all stages in one command)
                                 v
pairs ──────────────────────> synthesize ──> vote ──> negatives ──> training file
(query, pos)                  all_thought    thought  neg           pages shows any of them
                                             model2scores
```

Every stage reads a file of rows and writes one (`rows` has the fields and the formats), can be stopped
anywhere and goes on where it was (`ledger`). `recipe` says what is asked of whom, `synthesize` words it and
`experts` answer. `scorers` has who scores texts: the members of a committee, whoever searches for negatives,
and teachers. `vote` counts the votes and how far members agree.

Nothing is imported here: take `o1_retriever_training.synthesize.synthesize` and its neighbours.
"""
