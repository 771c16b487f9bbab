"""What tests of joint training share: rows, and a recipe on a tiny model of a real architecture."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from o1_retriever_training.joint.recipe import TrainRecipe
from tests.support.forks import Forks
from tests.support.joint_runs import HEAVY
from tests.support.tiny import tiny_model

_LAYERS = {"bert": ["query", "key", "value", "dense"]}
_PROJECTIONS = [f"{part}_proj" for part in ("q", "k", "v", "o", "gate", "up", "down")]


def write_rows(path: Path, count: int = 48, *, seed: int = 0, long: int = 1) -> Path:
    """Rows with a thought, a positive and three negatives, of varying length; `long` times as long."""
    draw = random.Random(seed)

    def text(low: int, high: int) -> str:
        words = ["iron", "cold", "rain", "glass", "tide"]
        return " ".join(draw.choice(words) for _ in range(long * draw.randint(low, high)))

    def row() -> dict[str, Any]:
        return {
            "query": text(2, 4),
            "thought": text(3, 9),
            "pos": [text(4, 12)],
            "neg": [text(4, 12) for _ in range(3)],
        }

    rows = (row() for _ in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


Recipes = Callable[..., TrainRecipe]


@pytest.fixture(scope="session")
def forks(root: Path) -> Iterator[Forks]:
    """A process that has imported what training needs, and whose children train."""
    with Forks(root, *HEAVY) as running:
        yield running


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """The folder of a tiny model by architecture and by the layout whose markers it has."""
    root = tmp_path_factory.mktemp("bases")

    def base(architecture: str, layout: str) -> Path:
        folder = root / f"{architecture}-{layout}"
        if not folder.exists():
            model, tokenizer = tiny_model(architecture, layout)  # type: ignore[arg-type]
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        return folder

    return base


@pytest.fixture
def tiny_recipe(tmp_path: Path, bases: Callable[[str, str], Path]) -> Recipes:
    """A recipe of few rows on a tiny model; sections given by name add to it."""

    def make(architecture: str = "llama", markers: str = "paper", **sections: Any) -> TrainRecipe:
        rows = tmp_path / "rows.jsonl"
        if not rows.exists():
            write_rows(rows)
        value: dict[str, Any] = {
            "model": {
                "base": str(bases(architecture, markers)),
                "tuning": "full",
                "dtype": "float32",
                "gradient_checkpointing": False,
                "lora": {"rank": 4, "targets": _LAYERS.get(architecture, _PROJECTIONS)},
            },
            "data": {
                "train": str(rows),
                "max_query_tokens": 32,
                "max_document_tokens": 80,
                "max_length": 96,
                "group": 3,
            },
            "optimisation": {"queries": 8, "chunk": None, "steps": 4},
            "output": str(tmp_path / "out"),
        }
        for name, fields in sections.items():
            value[name] = {**value.get(name, {}), **fields} if isinstance(fields, dict) else fields
        return TrainRecipe.of(value)

    return make
