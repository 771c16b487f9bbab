"""The fictional world itself: entities with invented names, and who is related to whom, drawn from a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from o1_retriever_training.fictional_world.names import invent_names
from o1_retriever_training.fictional_world.relations import RELATIONS, Kind, Relation
from o1_retriever_training.fictional_world.settings import WorldSettings

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
