"""What may be said in the fictional world: its kinds of entities, and the relations between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["person", "company", "city", "country"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Relation:
    """One relation; every subject has exactly one object.

    `statement` says a fact, with {subject} and {object}; `question` asks for the object, and `phrase` stands
    for the object where its name is not said ("the teacher of {subject}"), both with {subject}.
    """

    name: str
    subject: Kind
    object: Kind
    statement: str
    question: str
    phrase: str


RELATIONS: tuple[Relation, ...] = (
    Relation(
        name="works_at",
        subject="person",
        object="company",
        statement="{subject} works at {object}.",
        question="Where does {subject} work?",
        phrase="the employer of {subject}",
    ),
    Relation(
        name="born_in",
        subject="person",
        object="city",
        statement="{subject} was born in {object}.",
        question="Where was {subject} born?",
        phrase="the birthplace of {subject}",
    ),
    Relation(
        name="learned_from",
        subject="person",
        object="person",
        statement="{subject} learned from {object}.",
        question="Who taught {subject}?",
        phrase="the teacher of {subject}",
    ),
    Relation(
        name="based_in",
        subject="company",
        object="city",
        statement="{subject} has its seat in {object}.",
        question="In which city is {subject}?",
        phrase="the seat of {subject}",
    ),
    Relation(
        name="founded_by",
        subject="company",
        object="person",
        statement="{subject} was founded by {object}.",
        question="Who founded {subject}?",
        phrase="the founder of {subject}",
    ),
    Relation(
        name="lies_in",
        subject="city",
        object="country",
        statement="{subject} lies in {object}.",
        question="In which country is {subject}?",
        phrase="the country around {subject}",
    ),
    Relation(
        name="governed_from",
        subject="country",
        object="city",
        statement="{subject} is governed from {object}.",
        question="What is the capital of {subject}?",
        phrase="the capital of {subject}",
    ),
)

# A country's capital lies in that country: nobody has to be asked.
_TRIVIAL = {("governed_from", "lies_in")}

CHAINS: tuple[tuple[Relation, Relation], ...] = tuple(
    (first, second)
    for first in RELATIONS
    for second in RELATIONS
    if first.object == second.subject and (first.name, second.name) not in _TRIVIAL
)
