"""LangChain: embeddings and a retriever that think, over langchain-core alone.

```python
from langchain_chroma import Chroma
from langchain_o1_retriever import O1Embeddings, O1Retriever

store = Chroma(
    embedding_function=O1Embeddings("models/o1-embedder-22m"),
    collection_configuration={"hnsw": {"space": "cosine"}},
)
store.add_texts(["Water vapour condenses on cold glass."])
documents = O1Retriever(vectorstore=store, k=3).invoke("Why does my bathroom mirror go blank?")
print(documents[0].metadata["relevance_score"])
```

`models/o1-embedder-22m` is a folder of the repository; any other `ThinkingEmbedder` does as well.
"""

from o1_retriever.errors import require

require("langchain_core", extra="langchain", purpose="The LangChain adapter")

from langchain_o1_retriever.models import ChatModelThinker, O1Embeddings
from langchain_o1_retriever.retrievers import THINKING_RUN, THOUGHTS, THOUGHTS_EVENT, O1Retriever

__all__ = ["THINKING_RUN", "THOUGHTS", "THOUGHTS_EVENT", "ChatModelThinker", "O1Embeddings", "O1Retriever"]
