"""What callbacks and tracers see of the thinking: a run beneath the retriever's, and a custom event."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    CallbackManagerForRetrieverRun,
    adispatch_custom_event,
    dispatch_custom_event,
)

from o1_retriever.guard import Decision
from o1_retriever.thought import QueryEmbedding

THOUGHTS_EVENT = "o1_retriever_thoughts"
"""Name of the custom event that shows callbacks, and `astream_events`, what was thought."""

THINKING_RUN = "think"
"""Name of the run, a child of the retriever's, in which tracers such as LangSmith show the thinking."""


class Recorder:
    """What a block that thinks calls with what was thought, and with the decision where there was one."""

    def __init__(self) -> None:
        self.record: dict[str, Any] = {}

    def __call__(self, embedding: QueryEmbedding, decision: Decision | None = None) -> None:
        """Keep it, as plain JSON values."""
        timings = embedding.timings
        self.record = {
            "query": embedding.query,
            "thoughts": records(embedding),
            "think_ms": round(timings.think_ms, 3),
            "embed_ms": round(timings.embed_ms, 3),
            "decision": None if decision is None else decision.to_dict(),
        }


@contextmanager
def think_run(run_manager: CallbackManagerForRetrieverRun, query: str) -> Iterator[Recorder]:
    """A run in which a query is thought about; the block records what was thought."""
    recorder = Recorder()
    run = run_manager.get_child().on_chain_start({}, {"query": query}, name=THINKING_RUN)
    try:
        yield recorder
    except BaseException as error:
        run.on_chain_error(error)
        raise
    run.on_chain_end(recorder.record)
    dispatch_custom_event(THOUGHTS_EVENT, recorder.record, config={"callbacks": run_manager.get_child()})


@asynccontextmanager
async def athink_run(run_manager: AsyncCallbackManagerForRetrieverRun, query: str) -> AsyncIterator[Recorder]:
    """The same for async callbacks."""
    recorder = Recorder()
    run = await run_manager.get_child().on_chain_start({}, {"query": query}, name=THINKING_RUN)
    try:
        yield recorder
    except BaseException as error:
        await run.on_chain_error(error)
        raise
    await run.on_chain_end(recorder.record)
    await adispatch_custom_event(
        THOUGHTS_EVENT, recorder.record, config={"callbacks": run_manager.get_child()}
    )


def records(embedding: QueryEmbedding) -> list[dict[str, Any]]:
    """The thoughts as plain JSON values."""
    return [thought.to_dict() for thought in embedding.thoughts]
