"""A row of training data, the same for every stage, with the field names of the released O1 Embedder data."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from o1_retriever.errors import InputError
from o1_retriever.query import check_text

# What stands in every line, even when it is empty: readers of the released data expect it.
_ALWAYS = ("query", "pos", "neg", "all_thought", "thought")


def _text(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return check_text(value, what="text")
        except InputError as error:
            raise ValueError(error.message) from None
    return value


def _one_or_several(value: Any) -> Any:
    if value is None:
        return []
    return [value] if isinstance(value, str) else value


def _candidates(value: Any) -> Any:
    """Several texts; an empty one is how other tools write down a generation that failed."""
    value = _one_or_several(value)
    return [_or_none(each) for each in value] if isinstance(value, list) else value


def _or_none(value: Any) -> Any:
    return None if isinstance(value, str) and not value.strip() else value


Text = Annotated[str, BeforeValidator(_text)]
Texts = Annotated[list[Text], BeforeValidator(_one_or_several)]


class Failure(BaseModel):
    """A candidate that could not be had: its place in `all_thought`, and why."""

    candidate: int
    reason: str


class TrainingRow(BaseModel):
    """A query with its documents, and what the stages have added; fields of one's own are kept.

    `all_thought` holds the candidates in order, None where one could not be had (`failures` says why);
    `writers` names who wrote each. `thought` is the winner, None without a usable candidate. `model2scores`
    has each member's scores of the candidates, `bare_scores` its score of the query without a thought, and
    `votes` the candidate that it voted for. `tokens` are the prompt's and the completion's.
    """

    model_config = ConfigDict(extra="allow", validate_by_alias=True, validate_by_name=True)

    key: str | None = None
    id: Annotated[str | None, BeforeValidator(lambda value: str(value) if type(value) is int else value)] = (
        Field(default=None, validation_alias=AliasChoices("id", "_id"))
    )
    query: Text = Field(validation_alias=AliasChoices("query", "text"))
    pos: Texts = Field(default_factory=list)
    neg: Texts = Field(default_factory=list)
    pos_scores: list[float] | None = None
    neg_scores: list[float] | None = None
    prompt: str | None = None
    type: str | None = None
    all_thought: Annotated[list[Text | None], BeforeValidator(_candidates)] = Field(
        default_factory=list, validation_alias=AliasChoices("all_thought", "thoughts")
    )
    thought: Annotated[str | None, BeforeValidator(_or_none)] = None
    writers: list[str] = Field(default_factory=list)
    failures: list[Failure] = Field(default_factory=list)
    tokens: tuple[int, int] | None = None
    model2scores: dict[str, list[float | None]] = Field(default_factory=dict)
    bare_scores: dict[str, float | None] = Field(default_factory=dict)
    votes: dict[str, int | None] = Field(default_factory=dict)

    @property
    def identity(self) -> str:
        """16 hexadecimal digits that stand for this row in every stage: what the input said about it."""
        return self.key or key_of(json.dumps([self.id, self.query, self.pos, self.prompt, self.type]))

    @property
    def usable(self) -> list[int]:
        """The places of the candidates that could be had."""
        return [place for place, thought in enumerate(self.all_thought) if thought is not None]

    def line(self) -> str:
        """The row as one JSON line, its key first, empty fields left out."""
        fields = self.model_dump(mode="json").items()
        kept = {name: value for name, value in fields if name in _ALWAYS or value not in (None, [], {})}
        return json.dumps({"key": self.identity, **kept}, ensure_ascii=False) + "\n"


def key_of(text: str) -> str:
    """16 hexadecimal digits that stand for a text."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def plain_text(text: str) -> str:
    """The words of a text in small letters, one space between them."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def parse_row(value: Any) -> TrainingRow:
    """A row from a JSON object. Raises `ValueError` with one line about the first field that is wrong."""
    if not isinstance(value, dict):
        raise ValueError(f"found a {type(value).__name__}; expected an object")
    try:
        return TrainingRow.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing":
            raise ValueError(f"the field {field!r} is missing; found {sorted(value)[:8]}") from None
        said = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"the field {field!r} is {first['input']!r:.60}: {said}") from None
