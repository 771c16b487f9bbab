"""Extra `serve`: a server on the loopback interface, asked for a vector with its thoughts."""

import json
import socket
import sys
import threading
import urllib.request

import uvicorn

from o1_retriever import ThinkingEmbedder, ThoughtSettings
from o1_retriever_server import create_app

settings = ThoughtSettings(n_thoughts=2, max_new_tokens=8)
embedder = ThinkingEmbedder.from_pretrained(sys.argv[1], settings=settings, cache=False)
listener = socket.create_server(("127.0.0.1", 0))
server = uvicorn.Server(uvicorn.Config(create_app(embedder), log_config=None, access_log=False))
thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
thread.start()
request = urllib.request.Request(
    f"http://127.0.0.1:{listener.getsockname()[1]}/v1/embeddings",
    json.dumps({"input": "What makes dough rise?", "thoughts": True}).encode(),
    {"Content-Type": "application/json"},
)
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
with opener.open(request, timeout=120) as answer:
    [found] = json.load(answer)["data"]
server.should_exit = True
thread.join()
print(len(found["embedding"]), len(found["thoughts"]))
