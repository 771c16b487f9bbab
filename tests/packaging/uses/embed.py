"""Extra `embed`: records to shards of vectors."""

import tempfile
from pathlib import Path

from o1_retriever.embedder import ThinkingEmbedder
from o1_retriever.encoders import CallableEncoder
from o1_retriever.index.shards import embed_shards, read_shard


def encode(texts: list[str]) -> list[list[float]]:
    return [[3.0, 4.0] for _ in texts]


folder = Path(tempfile.mkdtemp())
(folder / "rows.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in "abc"))
embedder = ThinkingEmbedder.from_parts(lambda queries, k: [], CallableEncoder(encode, name="e"), cache=False)
manifest = embed_shards(str(folder / "rows.jsonl"), folder / "out", embedder)
(page,) = read_shard(folder / "out" / manifest.shards[0].name)
print(manifest.documents, [round(float(number), 6) for number in page[0].vector])
