"""One address for vectors, thoughts and search, in the shapes that clients of OpenAI, Cohere and Jina speak.

```python
import uvicorn

from o1_retriever import Index, ThinkingEmbedder
from o1_retriever_server import create_app

embedder = ThinkingEmbedder.from_pretrained("models/o1-embedder-22m")
app = create_app(embedder, {"notes": Index(".o1-index", embedder)}, name="o1-embedder-22m")
uvicorn.run(app)
```

`models/o1-embedder-22m` is a folder of the repository; any other `ThinkingEmbedder` does as well.

`o1-retriever serve` does the same from the command line, with keys, limits and a log (docs/serving.md).
"""

from o1_retriever.errors import require

require("fastapi", extra="serve", purpose="The server")
require("mcp", extra="serve", purpose="The server")
require("prometheus_client", extra="serve", purpose="The server", distribution="prometheus-client")

from o1_retriever_server.app import create_app
from o1_retriever_server.middleware import Keys
from o1_retriever_server.service import ServerSettings

__all__ = ["Keys", "ServerSettings", "create_app"]
