"""Whether thinking helps on a collection, how much, and at what cost.

```python
from o1_retriever.evaluation import load_collection

collection = load_collection("my-data", split="test")
print(collection.report)
```
"""

from o1_retriever.evaluation.collection import Collection, CollectionReport, load_collection
from o1_retriever.evaluation.metrics import MEASURES, means, per_query
from o1_retriever.reporting import Problem

__all__ = ["MEASURES", "Collection", "CollectionReport", "Problem", "load_collection", "means", "per_query"]
