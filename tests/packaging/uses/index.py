"""Extra `index`: documents go into an index on disk and are found."""

import sys

from o1_retriever import Index, Retriever, ThinkingEmbedder, ThoughtSettings
from o1_retriever.documents import Document

short = ThoughtSettings(n_thoughts=2, max_new_tokens=8)
embedder = ThinkingEmbedder.from_pretrained(sys.argv[1], cache=False, settings=short)
with Index("index", embedder) as index:
    index.add(
        [
            Document(id="bread", text="Yeast makes dough rise."),
            Document(id="moon", text="Tides follow the moon."),
        ]
    )
    print(Retriever(embedder, index).search("What makes dough rise?", k=1).hits[0].id)
