"""LlamaIndex: an embedding model and a retriever that think, over llama-index-core alone.

```python
from llama_index.core import Settings, SimpleDirectoryReader, VectorStoreIndex
from llama_index_o1_retriever import O1Embedding, O1Retriever

Settings.embed_model = O1Embedding("models/o1-embedder-22m")
index = VectorStoreIndex.from_documents(SimpleDirectoryReader("docs").load_data())
nodes = O1Retriever(index, similarity_top_k=3).retrieve("Why does my bathroom mirror go blank?")
```

`models/o1-embedder-22m` is a folder of the repository; any other `ThinkingEmbedder` does as well.

The thoughts are in the instrumentation event `O1ThoughtsEvent`, which any event handler receives.
"""

from o1_retriever.errors import require

require("llama_index.core", extra="llama-index", purpose="The LlamaIndex adapter")

from llama_index_o1_retriever.models import LLMThinker, O1Embedding, O1ThoughtsEvent
from llama_index_o1_retriever.retrievers import ConversationBundle, O1Retriever

__all__ = ["ConversationBundle", "LLMThinker", "O1Embedding", "O1Retriever", "O1ThoughtsEvent"]
