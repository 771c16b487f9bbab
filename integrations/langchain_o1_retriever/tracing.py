"""What callbacks and tracers see of the thinking: a run beneath the retriever's, and a custom event."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    CallbackManagerForRetrieverRun,
    adispatch_custom_event,
    dispatch_custom_event,
)

from o1_retriever.guard import Decision
from o1_retriever.query import Given
from o1_retriever.thought import QueryEmbedding

THOUGHTS_EVENT = "o1_retriever_thoughts"
"""Name of the custom event that shows callbacks, and `astream_events`, what was thought."""

THINKING_RUN = "think"
"""Name of the run, a child of the retriever's, in which tracers such as LangSmith show the thinking."""


THOUGHTS = "o1_retriever_thoughts"
"""Key of a run's metadata under which a caller brings thoughts of its own."""


def given_thoughts(manager: CallbackManagerForRetrieverRun | AsyncCallbackManagerForRetrieverRun) -> Given:
    """The thoughts that the configuration of a run brings; None where it brings none."""
    found: Given = manager.metadata.get(THOUGHTS)
    return found


@asynccontextmanager
async def think_run(
    manager: CallbackManagerForRetrieverRun | AsyncCallbackManagerForRetrieverRun, query: str
) -> AsyncIterator[dict[str, Any]]:
    """A run in which a query is thought about; the block puts a `record` of what was thought into the dict.

    Under a blocking manager nothing waits.
    """
    blocking = isinstance(manager, CallbackManagerForRetrieverRun)
    dispatch = dispatch_custom_event if blocking else adispatch_custom_event
    shown: dict[str, Any] = {}
    run: Any = await _value(manager.get_child().on_chain_start({}, {"query": query}, name=THINKING_RUN))
    try:
        yield shown
    except BaseException as error:
        await _value(run.on_chain_error(error))
        raise
    await _value(run.on_chain_end(shown))
    await _value(dispatch(THOUGHTS_EVENT, shown, config={"callbacks": manager.get_child()}))


async def _value(result: Any) -> Any:
    """What a manager's method returns, of whichever of the two kinds it is."""
    return await result if inspect.isawaitable(result) else result


def record(embedding: QueryEmbedding, decision: Decision | None) -> dict[str, Any]:
    """What was thought, and why, as plain JSON values."""
    return {
        "query": embedding.query,
        "thoughts": [thought.to_dict() for thought in embedding.thoughts],
        "think_ms": round(embedding.timings.think_ms, 3),
        "embed_ms": round(embedding.timings.embed_ms, 3),
        "decision": None if decision is None else decision.to_dict(),
    }
