"""What stands beside the weights of a trained thinker: the chat it was trained with, and how it samples."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from o1_retriever.endpoint.prompt import ChatPrompt
from o1_retriever.errors import CheckpointError, SettingsError
from o1_retriever.thought import ThoughtSettings

CONFIG_NAME = "o1_thinker.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinkerConfig:
    """A trained thinker's own small config file, `o1_thinker.json`.

    `settings` are the `ThoughtSettings` that it prefers; what is missing there falls back to a local model's.
    """

    prompt: ChatPrompt = field(default_factory=ChatPrompt)
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def beside(cls, folder: Path) -> ThinkerConfig | None:
        """The config in a model's folder, None without one. Raises `CheckpointError` for a damaged one."""
        path = folder / CONFIG_NAME
        if not path.is_file():
            return None
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            prompt = data["prompt"]
            examples = tuple((str(query), str(thought)) for query, thought in prompt.get("examples", ()))
            found = ChatPrompt(user=prompt["user"], system=prompt.get("system"), examples=examples)
            settings = dict(data.get("settings", {}))
            ThoughtSettings().with_changes(**settings)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SettingsError) as error:
            raise CheckpointError(
                f"{path} cannot be used: {type(error).__name__}: {error}. Expected an object with a prompt "
                "(user, system, examples) and settings."
            ) from None
        return cls(prompt=found, settings=settings)

    def save(self, folder: Path) -> None:
        """Write the file into a model's folder."""
        text = json.dumps({"format_version": 1, **asdict(self)}, indent=2, ensure_ascii=False)
        (folder / CONFIG_NAME).write_text(text + "\n", encoding="utf-8")
