"""Extra `haystack`: haystack-ai alone, its own document store, our two embedders."""

import sys

from haystack import Document
from haystack.document_stores.in_memory import InMemoryDocumentStore

from haystack_o1_retriever import O1DocumentEmbedder, O1TextEmbedder

store = InMemoryDocumentStore(embedding_similarity_function="cosine")
documents = [Document(content="Yeast makes dough rise."), Document(content="Tides follow the moon.")]
store.write_documents(O1DocumentEmbedder(sys.argv[1]).run(documents)["documents"])
settings = {"n_thoughts": 2, "max_new_tokens": 8}
asked = O1TextEmbedder(sys.argv[1], settings=settings).run("What makes dough rise?")
[found] = store.embedding_retrieval(asked["embedding"], top_k=1)
print(found.content)
