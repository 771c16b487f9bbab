"""Without any extra: the model of the repository thinks and embeds, and parts are joined."""

import sys

from o1_retriever import ThinkingEmbedder, ThoughtSettings


def think(queries: list[str], k: int) -> list[list[str]]:
    return [["a thought"] * k for _ in queries]


def encode(texts: list[str]) -> list[list[float]]:
    return [[3.0, 4.0] for _ in texts]


short = ThoughtSettings(n_thoughts=2, max_new_tokens=8)
embedder = ThinkingEmbedder.from_pretrained(sys.argv[1], cache=False, settings=short)
query = embedder.embed_query("Why does my bathroom mirror go blank?")
parts = ThinkingEmbedder.from_parts(think, encode, cache=False)
print(query.vector.shape, len(query.thoughts), parts.encode_queries("why?"))
