"""A chat server's answers that depend on the request alone, and faults in between."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from tests.support.chat_server import Answer, as_json, completion, refusal

_USAGE = {"prompt_tokens": 1, "completion_tokens": 1}
_JSON = {"Content-Type": "application/json"}

FAULTS: dict[str, Callable[[], Answer]] = {
    "drop": lambda: Answer(drop=True),
    "429": lambda: refusal(429, "slow down", retry_after="0"),
    "500": lambda: refusal(500, "oops"),
    "503": lambda: refusal(503, "busy"),
    "truncated JSON": lambda: Answer(b'{"choices": [{"mess', headers=_JSON),
    "broken transfer": lambda: Answer(b'{"choices": []}', headers=_JSON, missing=40),
    "empty text": lambda: completion(""),
    "blank text": lambda: completion("   \n"),
    "no choices": lambda: as_json({"choices": [], "usage": _USAGE}),
    "choices without content": lambda: as_json({"choices": [{"index": 0}, {"index": 1}], "usage": _USAGE}),
    "slow": lambda: Answer(b"{}", delay=0.5),
}


def honest(body: dict[str, Any], number: int) -> Answer:
    """What depends on the request alone, not on when it comes."""
    return completion(f"seed {body['seed']}: {body['messages'][-1]['content'][-60:]}")


def answers_with_faults(*, seed: int, share: float) -> Callable[[dict[str, Any], int], Answer]:
    """Honest answers, of which a share is replaced by faults of all kinds."""
    generator = random.Random(seed)

    def answer(body: dict[str, Any], number: int) -> Answer:
        if generator.random() >= share:
            return honest(body, number)
        return FAULTS[generator.choice(sorted(FAULTS))]()

    return answer
