"""The server on a cluster: replicas of the same application behind Ray Serve, as many as the requests need.

```
serve run o1_retriever_server.scaled:application model=models/o1-embedder-22m least=2 most=8 gpus=1
```

`application` takes names and texts, as that command passes them, or a file of Ray Serve's (docs/scaling.md).
What a replica had accepted when it died is answered with an error, and a client that asks again gets its
answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from o1_retriever import Index, ThinkingEmbedder
from o1_retriever.errors import SettingsError, require
from o1_retriever.search.result import SearchOptions
from o1_retriever_server.app import create_app
from o1_retriever_server.middleware import Keys
from o1_retriever_server.service import LOOPBACK, ServerSettings

serve = require("ray.serve", extra="ray", purpose="Replicas on a cluster", distribution="ray")


@dataclass(frozen=True, kw_only=True)
class Replicas:
    """What is served, and by how many.

    `model` thinks and embeds, or a `thinker` and an `encoder` do; `index` is a folder that every replica
    sees. Between `least` and `most` replicas run, so many that each has about `requests` under way. Each has
    `cpus` and `gpus`. `keys` is a file of keys; without one, only this machine may call. Raises
    `SettingsError`.
    """

    model: str = ""
    thinker: str = ""
    encoder: str = ""
    index: str = ""
    name: str = "o1-retriever"
    keys: str = ""
    thinking: str = ""
    least: int = 1
    most: int = 4
    requests: float = 16.0
    queue: int = 128
    cpus: float = 1.0
    gpus: float = 0.0

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Replicas:
        """What the names and texts of a command or a file mean."""
        kinds: dict[str, Any] = {each.name: type(each.default) for each in fields(cls)}
        if unknown := sorted(set(given) - set(kinds)):
            raise SettingsError(f"Unknown arguments {unknown}; expected some of {list(kinds)}.")
        made = {}
        for name, value in given.items():
            try:
                made[name] = kinds[name](value)
            except (TypeError, ValueError):
                raise SettingsError(f"{name} is {value!r}; expected a number.") from None
        found = cls(**made)
        if bool(found.model) == bool(found.thinker and found.encoder):
            raise SettingsError("Expected a model, or a thinker and an encoder.", hint="model=FOLDER_OR_ID")
        if not 0 < found.least <= found.most:
            raise SettingsError(f"least is {found.least}, most {found.most}; expected 0 < least <= most.")
        return found


def application(arguments: dict[str, str]) -> Any:
    """The application for `serve run`. Raises `SettingsError` for arguments that cannot be."""
    wanted = Replicas.of(arguments)

    def build() -> Any:  # Ray Serve takes nothing but a plain function
        return _replica(wanted)

    deployment = serve.deployment(
        serve.ingress(build)(),
        name="o1-retriever",
        ray_actor_options={"num_cpus": wanted.cpus, "num_gpus": wanted.gpus},
        max_ongoing_requests=wanted.queue,
        autoscaling_config={
            "min_replicas": wanted.least,
            "initial_replicas": wanted.least,
            "max_replicas": wanted.most,
            "target_ongoing_requests": wanted.requests,
        },
        # A replica that died is noticed, and another begun, within seconds.
        health_check_period_s=2,
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=60,
    )
    return deployment.bind()


def _replica(wanted: Replicas) -> Any:
    """The server's application, made where a replica runs."""
    import torch

    if not torch.cuda.is_available():
        torch.set_num_threads(max(1, int(wanted.cpus)))
    if wanted.model:
        embedder = ThinkingEmbedder.from_pretrained(wanted.model)
    else:
        embedder = ThinkingEmbedder.from_parts(wanted.thinker, wanted.encoder)
    keys = Keys.read(wanted.keys or None)
    settings = ServerSettings(max_waiting=wanted.queue, hosts=("*",) if keys else LOOPBACK)
    indexes = {"index": Index(wanted.index, embedder, create=False)} if wanted.index else {}
    options: SearchOptions = {"thinking": wanted.thinking} if wanted.thinking else {}  # type: ignore[typeddict-item]
    return create_app(embedder, indexes, name=wanted.name, keys=keys, settings=settings, options=options)
