"""The fictional world itself: entities with invented names, and who is related to whom, drawn from a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from o1_retriever.errors import SettingsError


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldSettings:
    """Numbers of entities, the held-out share of the two-hop facts, the expert's errors, the base's shape.

    `wrong` is the probability that a candidate thought names a wrong bridge; of a row's `candidates` one is
    right at least. `layers`, `width` and `heads` are those of the base model. All is drawn by `seed`.

    Raises `SettingsError` for a value out of range.
    """

    seed: int = 0
    people: int = 100
    companies: int = 40
    cities: int = 40
    countries: int = 10
    held_out: float = 0.2
    candidates: int = 3
    wrong: float = 0.5
    layers: int = 3
    width: int = 96
    heads: int = 4

    def __post_init__(self) -> None:
        for name in ("people", "companies", "countries", "candidates", "layers", "heads"):
            self._check(name, low=1 if name not in ("people", "companies") else 3, high=100_000)
        self._check("seed", low=0, high=2**63)
        self._check("cities", low=max(3, self.countries), high=100_000)
        for name in ("held_out", "wrong"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 <= value < 1:
                raise SettingsError(f"Found {name}={value!r}; expected a share from 0 to below 1.")
        self._check("width", low=2 * self.heads, high=100_000)
        if self.width % (2 * self.heads):
            raise SettingsError(
                f"Found width={self.width} and heads={self.heads}; expected a multiple of twice the heads."
            )

    @property
    def numbers(self) -> Mapping[Kind, int]:
        """How many entities of each kind."""
        return {
            "person": self.people,
            "company": self.companies,
            "city": self.cities,
            "country": self.countries,
        }

    def _check(self, name: str, *, low: int, high: int) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise SettingsError(f"Found {name}={value!r}; expected a whole number from {low} to {high}.")


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


_OPENINGS = "bdfgklmnprstvz"
_VOWELS = "aeiou"
_CLOSINGS = "lmnrsxk"


def invent_names(number: int, *, ending: str, generator: random.Random, taken: set[str]) -> list[str]:
    """So many new names with an ending ("" for none); `taken` holds those there are, and is added to."""
    names: list[str] = []
    while len(names) < number:
        name = _invent(generator) + ending
        if name not in taken:
            taken.add(name)
            names.append(name)
    return names


def _invent(generator: random.Random) -> str:
    # Two syllables or three, and a closing sound: millions of names, so that a large world ends too.
    syllables = [
        generator.choice(_OPENINGS) + generator.choice(_VOWELS) for _ in range(generator.choice((2, 2, 3)))
    ]
    return ("".join(syllables) + generator.choice(_CLOSINGS)).capitalize()


# How names of a kind end: it makes a page readable, and no name of one kind one of another.
_ENDINGS: Mapping[Kind, str] = {"person": "", "company": "works", "city": "burg", "country": "land"}


@dataclass(frozen=True, slots=True)
class Entity:
    """A person, company, city or country; `id` is that of its page."""

    id: str
    kind: Kind
    name: str


@dataclass(frozen=True, slots=True)
class Fact:
    """That `subject` stands in `relation` to `object`."""

    subject: Entity
    relation: Relation
    object: Entity

    def __str__(self) -> str:
        return self.relation.statement.format(subject=self.subject.name, object=self.object.name)


@dataclass(frozen=True)
class World:
    """All entities in the order of their pages, and each entity's facts by the name of the relation."""

    entities: tuple[Entity, ...]
    facts: Mapping[str, Mapping[str, Fact]]

    def of_kind(self, kind: Kind) -> list[Entity]:
        """The entities of a kind."""
        return [entity for entity in self.entities if entity.kind == kind]

    def fact(self, subject: Entity, relation: Relation) -> Fact:
        """The one fact of a subject in a relation that its kind has."""
        return self.facts[subject.id][relation.name]

    def all_facts(self) -> Iterator[Fact]:
        """Every fact, page by page."""
        for entity in self.entities:
            yield from self.facts[entity.id].values()

    def page(self, entity: Entity) -> str:
        """What the entity's page says: its kind, and every fact of which it is the subject."""
        said = [f"{entity.name} is a {entity.kind}.", *map(str, self.facts[entity.id].values())]
        return " ".join(said)


def make_world(settings: WorldSettings) -> World:
    """Invent the entities and draw their relations: the same settings, the same world."""
    generator = random.Random(f"world {settings.seed}")
    taken: set[str] = set()
    groups: dict[Kind, list[Entity]] = {}
    for kind, number in settings.numbers.items():
        names = invent_names(number, ending=_ENDINGS[kind], generator=generator, taken=taken)
        groups[kind] = [Entity(f"{kind}-{place}", kind, name) for place, name in enumerate(names)]
    objects = {relation.name: _drawn(relation, groups, generator) for relation in RELATIONS}
    objects["governed_from"] = _capitals(groups, objects["lies_in"], generator)
    entities = tuple(entity for group in groups.values() for entity in group)
    facts = {
        entity.id: {
            relation.name: Fact(entity, relation, objects[relation.name][entity.id])
            for relation in RELATIONS
            if relation.subject == entity.kind
        }
        for entity in entities
    }
    return World(entities, facts)


def _drawn(
    relation: Relation, groups: Mapping[Kind, list[Entity]], generator: random.Random
) -> dict[str, Entity]:
    """An object for every subject, each about equally often, and never the subject itself."""
    subjects, objects = groups[relation.subject], groups[relation.object]
    dealt = [objects[place % len(objects)] for place in range(len(subjects))]
    generator.shuffle(dealt)
    for place, subject in enumerate(subjects):
        if dealt[place] is subject:
            other = (place + 1) % len(subjects)
            dealt[place], dealt[other] = dealt[other], dealt[place]
    return {subject.id: found for subject, found in zip(subjects, dealt, strict=True)}


def _capitals(
    groups: Mapping[Kind, list[Entity]], lies_in: Mapping[str, Entity], generator: random.Random
) -> dict[str, Entity]:
    """A capital for every country, among its own cities."""
    cities: dict[str, list[Entity]] = {}
    for city in groups["city"]:
        cities.setdefault(lies_in[city.id].id, []).append(city)
    return {country.id: generator.choice(cities[country.id]) for country in groups["country"]}
