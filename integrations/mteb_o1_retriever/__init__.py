"""MTEB: the model object that `mteb.evaluate` takes, which thinks about queries.

```python
import mteb
from mteb_o1_retriever import O1Model
from o1_retriever import ThinkingEmbedder

model = O1Model(ThinkingEmbedder.from_pretrained("models/o1-embedder-22m"), name="o1/embedder-22m")
print(mteb.evaluate(model, mteb.get_tasks(tasks=["NFCorpus"])))
```

`as_task` makes a task of a collection of your own.
"""

from o1_retriever.extras import require

require("mteb", extra="eval", purpose="The MTEB model")

from mteb_o1_retriever.model import O1Model, as_task  # noqa: E402 - after the check above

__all__ = ["O1Model", "as_task"]
