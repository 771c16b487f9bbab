"""Extra `langchain`: langchain-core alone, its own vector store, our embeddings and retriever."""

import sys

from langchain_core.vectorstores import InMemoryVectorStore

from langchain_o1_retriever import O1Embeddings, O1Retriever
from o1_retriever import ThoughtSettings

embeddings = O1Embeddings(sys.argv[1], settings=ThoughtSettings(n_thoughts=2, max_new_tokens=8))
store = InMemoryVectorStore.from_texts(["Yeast makes dough rise.", "Tides follow the moon."], embeddings)
[found] = O1Retriever(vectorstore=store, k=1).invoke("What makes dough rise?")
print(found.page_content, 0 < found.metadata["relevance_score"] <= 1)
