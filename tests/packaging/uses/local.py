"""Extra `local`: a sentence-transformers model embeds, and our checkpoint is one too."""

import sys

from sentence_transformers import SentenceTransformer

from o1_retriever import ThinkingEmbedder

parts = ThinkingEmbedder.from_parts(
    lambda queries, k: [["a thought"] * k] * len(queries), sys.argv[1], cache=False
)
print(parts.encode_queries(["why?"]).shape, SentenceTransformer(sys.argv[1]).encode_document(["a"]).shape)
