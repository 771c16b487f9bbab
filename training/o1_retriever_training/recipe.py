"""What is asked of whom: all that decides what the synthesised thoughts say."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from o1_retriever.thought import ThoughtSettings
from o1_retriever_training.prompts import INSTRUCTIONS


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Contributor(_Frozen):
    """One voice of an ensemble: `n` candidates by `expert` (a name; None: the first one).

    `instruction` None takes the row's own `prompt`, else the one of its task type.
    """

    expert: str | None = None
    n: int = Field(default=3, ge=1, le=1024)
    instruction: str | None = None


class Recipe(_Frozen):
    """How thoughts are asked for.

    Three candidates of at most 512 tokens are the paper's; the temperature is ours, chosen so that they
    differ. `examples` other queries, each with its passage cut at `example_characters`, are shown before
    every query; they are drawn with `seed` from the first `example_pool` rows of the input. `labels` stand
    before a query and its response there. `instructions` (by task type) add to those of
    `prompts.INSTRUCTIONS`.
    """

    contributors: tuple[Contributor, ...] = Field(default=(Contributor(),), min_length=1)
    seed: int = Field(default=0, ge=0, lt=2**63)
    temperature: float = Field(default=0.7, ge=0, le=100)
    top_p: float = Field(default=0.95, gt=0, le=1)
    repetition_penalty: float = Field(default=1.0, ge=0.01, le=100)
    max_tokens: int = Field(default=512, ge=1, le=1_000_000)
    examples: int = Field(default=3, ge=0, le=64)
    example_characters: int = Field(default=800, ge=20)
    example_pool: int = Field(default=1000, ge=0)
    labels: tuple[str, str] = ("Query", "Response")
    instructions: dict[str, str] = Field(default_factory=dict)

    @field_validator("instructions")
    @classmethod
    def _named(cls, value: dict[str, str]) -> dict[str, str]:
        if any(not text.strip() for text in value.values()):
            raise ValueError("an instruction is empty")
        return value

    @property
    def candidates(self) -> int:
        """Thoughts per query, of all contributors together."""
        return sum(each.n for each in self.contributors)

    @property
    def sampling(self) -> ThoughtSettings:
        """How every candidate is sampled; its index makes its draw another one."""
        return ThoughtSettings(
            n_thoughts=self.candidates,
            temperature=self.temperature,
            top_p=self.top_p,
            repetition_penalty=self.repetition_penalty,
            max_new_tokens=self.max_tokens,
            seed=self.seed,
        )

    def to_dict(self) -> dict[str, Any]:
        """The recipe as JSON values, with the wording of every instruction that it may use."""
        return self.model_dump(mode="json") | {"instructions": INSTRUCTIONS | self.instructions}

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that stand for the recipe."""
        content = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


def read_recipe(path: str | Path) -> Recipe:
    """A recipe from a YAML or JSON file. Raises `SettingsError` naming the first field that is wrong."""
    from o1_retriever_training.recipe_files import read_yaml

    return as_recipe(read_yaml(path), where=str(path))


def as_recipe(value: Any, *, where: str = "The recipe") -> Recipe:
    """A recipe from its fields. Raises `SettingsError` naming the first one that is wrong."""
    try:
        return Recipe.model_validate(value)
    except ValidationError as error:
        from o1_retriever_training.recipe_files import refusal

        raise refusal(error, Recipe, where) from None
