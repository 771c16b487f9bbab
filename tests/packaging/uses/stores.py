"""Extra `stores`: a collection of Qdrant in a folder, searched by vectors and by words."""

import tempfile

from o1_retriever import Retriever, ThinkingEmbedder, ThoughtSettings
from o1_retriever.documents import Document
from o1_retriever.encoders import CallableEncoder
from o1_retriever.index.ledger import EmbeddedDocument
from stores_o1_retriever import open_index, open_store


def encode(texts: list[str]) -> list[list[float]]:
    return [[1.0 + text.count("dough"), 1.0 + text.count("moon")] for text in texts]


embedder = ThinkingEmbedder.from_parts(
    lambda queries, k: [["Yeast makes dough rise."] * k for _ in queries],
    CallableEncoder(encode, name="words"),
    cache=False,
    settings=ThoughtSettings(n_thoughts=1),
)
address = f"qdrant:{tempfile.mkdtemp()}"
store = open_store(address)
store.begin({"space": embedder.space.to_dict()}, 2)
texts = {"bread": "Yeast makes dough rise.", "moon": "Tides follow the moon."}
vectors = embedder.encode_documents(list(texts.values()))
store.put(
    [
        EmbeddedDocument(document=Document(id=name, text=text), vector=vector)
        for (name, text), vector in zip(texts.items(), vectors, strict=True)
    ]
)
with open_index(address) as index:
    print(Retriever(embedder, index, hybrid=True).search("Why does bread rise?", k=1)[0].id)
store.close()
