"""How much a server accepts, and how long it works on it."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]

# Names by which a server on the loopback interface may be addressed. Any other one comes from a page that has
# its own name point here (DNS rebinding).
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


class ServerSettings(BaseModel):
    """Limits of a server. What goes beyond one is refused before any model runs, and the answer says which.

    `max_waiting` requests are accepted and not yet answered at most; one more is answered with 429. A request
    is given up after `max_seconds`, or sooner where its header `X-Request-Timeout` says so. A request has
    `max_texts` texts with `max_tokens` tokens together, of which `max_queries` may be thought about, with
    `max_thoughts` thoughts of `max_new_tokens` tokens. `hosts` are the names in the `Host` header that are
    answered ("*": all), `cors_origins` the pages of other origins that may call, none of them by default.
    `token_ids` is the vocabulary of inputs that are token ids: an encoding of tiktoken, as OpenAI's clients
    send them, or "model" for the model's own. `log_texts` writes queries into the log.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_waiting: Count = 128
    max_seconds: Seconds = 60.0
    max_body_bytes: Count = 8 * 2**20
    max_texts: Count = 2048
    max_queries: Count = 256
    max_tokens: Count = 300_000
    max_hits: Count = 1000
    max_thoughts: Count = 16
    max_new_tokens: Count = 1024
    max_filter_characters: Count = 16_000
    max_turns: Count = 200
    hosts: tuple[str, ...] = LOOPBACK
    cors_origins: tuple[str, ...] = ()
    token_ids: str = "cl100k_base"
    log_texts: bool = False
