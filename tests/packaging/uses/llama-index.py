"""Extra `llama-index`: llama-index-core alone, its own index, our embedding and retriever."""

import sys

from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode

from llama_index_o1_retriever import O1Embedding, O1Retriever
from o1_retriever import ThoughtSettings

model = O1Embedding(sys.argv[1], settings=ThoughtSettings(n_thoughts=2, max_new_tokens=8))
nodes = [TextNode(text=text) for text in ("Yeast makes dough rise.", "Tides follow the moon.")]
[found] = O1Retriever(VectorStoreIndex(nodes, embed_model=model), similarity_top_k=1).retrieve(
    "What makes dough rise?"
)
print(found.node.get_content())
