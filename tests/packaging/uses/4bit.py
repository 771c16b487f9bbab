"""Extra `4bit`: the model is loaded in four bits."""

import sys

from o1_retriever import ThinkingEmbedder

embedder = ThinkingEmbedder.from_pretrained(sys.argv[1], device="cpu", load_in_4bit=True, cache=False)
print(embedder.precision.quantization, embedder.encode_documents("a").shape)
