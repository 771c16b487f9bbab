"""Calls as users write them, read by the type checker and never run: what is typed here stays typed."""

from __future__ import annotations

from typing import Any, assert_type

import chromadb
import numpy as np
from langchain_core.documents import Document as LangChainDocument
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnablePassthrough
from langchain_core.tools import create_retriever_tool
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core import Settings, VectorStoreIndex
from llama_index.core.llms import ChatMessage, MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index.core.vector_stores import MetadataFilters
from numpy.typing import NDArray

from chroma_o1_retriever import O1EmbeddingFunction, open_collection
from langchain_o1_retriever import ChatModelThinker, O1Embeddings
from langchain_o1_retriever import O1Retriever as LangChainRetriever
from llama_index_o1_retriever import ConversationBundle, LLMThinker, O1Embedding
from llama_index_o1_retriever import O1Retriever as LlamaIndexRetriever
from mteb_o1_retriever import O1Model
from o1_retriever import (
    Explanation,
    Index,
    QueryEmbedding,
    Retriever,
    ThinkingEmbedder,
    Thought,
    ThoughtSettings,
)
from o1_retriever.documents import Document
from o1_retriever.query import Conversation, Message, read_history
from o1_retriever.thinkers import OpenAIThinker

Floats = NDArray[np.float32]


def think(queries: list[str], k: int) -> list[list[str]]:
    return [["a thought"] * k for _ in queries]


def encode(texts: list[str]) -> Floats:
    return np.ones((len(texts), 3), np.float32)


def core() -> Retriever:
    embedder = ThinkingEmbedder.from_pretrained("models/o1-embedder-22m", device="cpu", load_in_4bit=False)
    assert_type(embedder.embed_query("why?"), QueryEmbedding)
    assert_type(embedder.think(["why?"], n_thoughts=2), list[list[Thought]])
    assert_type(embedder.embed_query("why?").vector, Floats)
    ThinkingEmbedder.from_parts(think, encode, cache=False)
    ThinkingEmbedder.from_parts("thoughts.jsonl", encode, settings=ThoughtSettings(n_thoughts=1))
    ThinkingEmbedder.from_parts(OpenAIThinker("qwen", base_url="http://127.0.0.1:8000/v1"), encode)
    with Index("index", embedder) as index:
        index.add([Document(id="a", text="b", metadata={"page": 1})])
        result = Retriever(embedder, index).search("why?", k=3, where={"page": 1})
    fused = Retriever(embedder, index, hybrid=True, pooling="best").search("why?", thinking="auto")
    assert_type(fused.decision.think, bool)
    assert_type(fused.hits[0].dense_rank, int | None)
    why = Retriever(embedder, index).explain("why?", k=3, where={"page": 1}, pooling="best")
    assert_type(why, Explanation)
    assert_type(why.moves[0].before, int | None)
    assert_type(why.per_thought[0][0], Thought)
    said = [{"role": "user", "content": "What is dew?"}, ("assistant", "Drops on cold grass.")]
    after = Retriever(embedder, index).search("And on glass?", history=said)
    assert_type(after.embedding.history, Conversation)
    Retriever(embedder, index).search_many(["a", "b"], histories=[Conversation.of(said), None])
    Retriever(embedder, index).explain("And on glass?", history=[Message("user", "What is dew?")])
    assert_type(embedder.embed_query("why?", history=said), QueryEmbedding)
    embedder.think(["why?"], histories=[read_history("chat.jsonl")])
    for hit in result:
        assert_type(hit.score, float)
        assert_type(hit.text, str)
    return Retriever(embedder, index)


async def langchain(embedder: ThinkingEmbedder, ours: Retriever) -> None:
    embeddings = O1Embeddings(embedder, settings=ThoughtSettings(n_thoughts=1))
    assert_type(embeddings.embed_query("why?"), list[float])
    assert_type(await embeddings.aembed_documents(["a"]), list[list[float]])
    assert_type(embeddings.think("why?").thoughts, tuple[Thought, ...])
    store = InMemoryVectorStore.from_texts(["a"], O1Embeddings("models/o1-embedder-22m"))
    retriever = LangChainRetriever(vectorstore=store, k=3, score_threshold=0.2)
    assert_type(retriever.invoke("why?", k=1), list[LangChainDocument])
    assert_type(await retriever.ainvoke("why?"), list[LangChainDocument])
    LangChainRetriever(vectorstore=store, embeddings=embeddings)
    LangChainRetriever(retriever=ours, filter={"source": "a.md"}, settings=ThoughtSettings(thinking="never"))
    LangChainRetriever(retriever=ours, pooling="best", thinking="auto", hybrid=True)
    assert_type(LangChainRetriever(retriever=ours).explain("why?", k=2), Explanation)
    retriever.invoke("why?", pooling="best", thinking="never", filter={"page": 1})
    retriever.invoke("And then?", history=[HumanMessage("What is dew?"), AIMessage("Drops.")])
    embeddings.think("And then?", history=[("human", "What is dew?")])
    retriever.batch(["why?", "how?"])
    create_retriever_tool(retriever, "search", "Searches.")
    chain = {"context": retriever, "question": RunnablePassthrough[str]()} | FakeListChatModel(
        responses=["a"]
    )
    chain.invoke("why?")
    ThinkingEmbedder.from_parts(ChatModelThinker(FakeListChatModel(responses=["a"]), name="fake"), encode)


async def llama_index(embedder: ThinkingEmbedder, ours: Retriever) -> None:
    Settings.embed_model = O1Embedding(embedder, embed_batch_size=16)
    retriever = LlamaIndexRetriever(VectorStoreIndex([]), similarity_top_k=3, similarity_cutoff=0.1)
    assert_type(retriever.retrieve("why?"), list[NodeWithScore])
    await LlamaIndexRetriever(ours, settings=ThoughtSettings(n_thoughts=1)).aretrieve(QueryBundle("why?"))
    chat = [ChatMessage(role="user", content="What is dew?")]
    retriever.retrieve(ConversationBundle("And then?", history=chat))
    LlamaIndexRetriever(ours, pooling="best", thinking="auto", hybrid=True, verbose=True)
    assert_type(LlamaIndexRetriever(ours).explain("why?"), Explanation)
    LlamaIndexRetriever(
        VectorStoreIndex([]), embed_model=embedder, pooling="best", filters=MetadataFilters(filters=[])
    )
    assert_type(O1Embedding(embedder).think(["why?"]), list[QueryEmbedding])
    RetrieverQueryEngine.from_args(retriever, llm=MockLLM())
    QueryFusionRetriever([retriever], llm=MockLLM(), num_queries=1)
    ThinkingEmbedder.from_parts(LLMThinker(MockLLM(), prompt="Answer: {query}"), encode)


def others(embedder: ThinkingEmbedder) -> Any:
    collection = open_collection(chromadb.EphemeralClient(), "facts", O1EmbeddingFunction(embedder))
    collection.query(query_texts=["why?"], n_results=1, where={"page": 1})
    assert_type(
        O1EmbeddingFunction("models/o1-embedder-22m", truncate_dim=128).think(["why?"]), list[QueryEmbedding]
    )
    return O1Model(
        embedder, name="o1/embedder-22m", settings=ThoughtSettings(n_thoughts=1)
    ).mteb_model_meta.name
