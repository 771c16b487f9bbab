"""DSPy: `Retrieve` over our own index, and the retriever over a list of passages, both of which think.

```python
import dspy
from dspy_o1_retriever import O1Embeddings

passages = ["Water vapour condenses on cold glass.", "Yeast makes dough rise."]
search = O1Embeddings(passages, "models/o1-embedder-22m", k=1)
print(search("Why does my bathroom mirror go blank?").passages)
```
"""

from o1_retriever.extras import require

require("dspy", extra="dspy", purpose="The DSPy adapter")

from dspy_o1_retriever.retrieval import O1Embedder, O1Embeddings, O1Retrieve  # noqa: E402 - after the check

__all__ = ["O1Embedder", "O1Embeddings", "O1Retrieve"]
