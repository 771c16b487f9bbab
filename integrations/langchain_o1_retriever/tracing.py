"""What callbacks and tracers see of the thinking: a run beneath the retriever's, and a custom event."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    CallbackManagerForRetrieverRun,
    adispatch_custom_event,
    dispatch_custom_event,
)

from o1_retriever.retriever import thought_record
from o1_retriever.thought import QueryEmbedding

THOUGHTS_EVENT = "o1_retriever_thoughts"
"""Name of the custom event that shows callbacks, and `astream_events`, what was thought."""

THINKING_RUN = "think"
"""Name of the run, a child of the retriever's, in which tracers such as LangSmith show the thinking."""

Tell = Callable[[QueryEmbedding], None]


@contextmanager
def thinking(run_manager: CallbackManagerForRetrieverRun, query: str) -> Iterator[Tell]:
    """A run in which a query is thought about; the block tells what was thought."""
    told: list[QueryEmbedding] = []
    run = run_manager.get_child().on_chain_start({}, {"query": query}, name=THINKING_RUN)
    try:
        yield told.append
    except BaseException as error:
        run.on_chain_error(error)
        raise
    record = event(told[0])
    run.on_chain_end(record)
    dispatch_custom_event(THOUGHTS_EVENT, record, config={"callbacks": run_manager.get_child()})


@asynccontextmanager
async def athinking(run_manager: AsyncCallbackManagerForRetrieverRun, query: str) -> AsyncIterator[Tell]:
    """The same for async callbacks."""
    told: list[QueryEmbedding] = []
    run = await run_manager.get_child().on_chain_start({}, {"query": query}, name=THINKING_RUN)
    try:
        yield told.append
    except BaseException as error:
        await run.on_chain_error(error)
        raise
    record = event(told[0])
    await run.on_chain_end(record)
    await adispatch_custom_event(THOUGHTS_EVENT, record, config={"callbacks": run_manager.get_child()})


def event(embedding: QueryEmbedding) -> dict[str, Any]:
    """What is shown of a query: its thoughts, and the milliseconds of thinking and embedding."""
    timings = embedding.timings
    return {
        "query": embedding.query,
        "thoughts": records(embedding),
        "think_ms": round(timings.think_ms, 3),
        "embed_ms": round(timings.embed_ms, 3),
    }


def records(embedding: QueryEmbedding) -> list[dict[str, Any]]:
    """The thoughts as plain JSON values."""
    return [thought_record(thought) for thought in embedding.thoughts]
