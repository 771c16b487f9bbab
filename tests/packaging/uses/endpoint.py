"""Extra `endpoint`: an endpoint that is down leaves a recorded failure, and the query is embedded."""

from openai import OpenAI

from o1_retriever import ThinkingEmbedder, ThoughtSettings
from o1_retriever.thinkers import OpenAIThinker, RequestPolicy


def encode(texts: list[str]) -> list[list[float]]:
    return [[3.0, 4.0] for _ in texts]


client = OpenAI(base_url="http://127.0.0.1:9/v1", api_key="none", max_retries=0)
thinker = OpenAIThinker("m", client=client, policy=RequestPolicy(retries=0, timeout=5, deadline=5))
embedder = ThinkingEmbedder.from_parts(thinker, encode, cache=False, settings=ThoughtSettings(n_thoughts=1))
query = embedder.embed_query("why?")
print(query.thoughts[0].finish, query.thought_about, query.vector)
