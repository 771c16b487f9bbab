"""Extra `dspy`: dspy alone, its own retriever over passages, our embedder."""

import sys

from dspy_o1_retriever import O1Embedder, O1Embeddings
from o1_retriever import ThoughtSettings

embedder = O1Embedder(sys.argv[1], settings=ThoughtSettings(n_thoughts=2, max_new_tokens=8))
search = O1Embeddings(["Yeast makes dough rise.", "Tides follow the moon."], embedder, k=1)
print(search("What makes dough rise?").passages[0])
