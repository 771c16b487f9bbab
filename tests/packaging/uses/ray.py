"""Extra `ray`: records to shards of vectors on a cluster of this machine."""

import tempfile
from pathlib import Path

from o1_retriever.index.shards import embed_shards, read_shard
from o1_retriever.vectors import Precision, VectorSpace
from ray_o1_retriever import Cluster


class Encoder:
    space = VectorSpace(weights="e", layout="plain", pooling="none", dimension=2)
    precision = Precision()

    def encode_documents(self, documents, **_options):
        return [[0.6, 0.8] for _ in documents]


folder = Path(tempfile.mkdtemp())
(folder / "rows.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in "abc"))
maker = Cluster(actors=1).shard_maker(Encoder())
manifest = embed_shards(str(folder / "rows.jsonl"), folder / "out", Encoder(), maker=maker)
(page,) = read_shard(folder / "out" / manifest.shards[0].name)
print(manifest.documents, [round(float(number), 6) for number in page[0].vector])
