"""Extra `eval`: a model for MTEB, and measures."""

import sys

from mteb_o1_retriever import O1Model
from o1_retriever.evaluation import per_query

measured = per_query({"q": {"a": 1}}, {"q": {"b": 2.0, "a": 1.0}}, measures=("nDCG@10",))
print(O1Model(sys.argv[1], name="o1/embedder-22m").mteb_model_meta.name, round(measured["nDCG@10"]["q"], 3))
