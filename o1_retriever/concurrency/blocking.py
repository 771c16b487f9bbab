"""Steps that are written once as coroutines, and also serve callers that have no event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

Result = TypeVar("Result")
Given = ParamSpec("Given")


async def called(
    blocking: bool, function: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs
) -> Result:
    """Call a function: here where `blocking`, or else in a thread, so that the event loop goes on."""
    if blocking:
        return function(*args, **kwargs)
    return await asyncio.to_thread(function, *args, **kwargs)


def finished(steps: Coroutine[Any, Any, Result]) -> Result:
    """The result of a coroutine in which nothing waits, because all that it calls is `blocking`.

    So each search is written once, and its synchronous form needs no event loop.
    """
    try:
        steps.send(None)
    except StopIteration as end:
        result: Result = end.value
        return result
    steps.close()
    raise RuntimeError("A blocking search has waited for something.")
