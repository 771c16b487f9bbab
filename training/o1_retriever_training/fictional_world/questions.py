"""Questions about the world with the facts that answer them, and which of them training never sees."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from o1_retriever.errors import SettingsError
from o1_retriever_training.fictional_world.relations import CHAINS
from o1_retriever_training.fictional_world.settings import WorldSettings
from o1_retriever_training.fictional_world.world import Entity, Fact, World


@dataclass(frozen=True, slots=True)
class Question:
    """A question and the chain of facts, one or two, whose last object is its answer."""

    id: str
    text: str
    chain: tuple[Fact, ...]

    @property
    def subject(self) -> Entity:
        """Whom the question names."""
        return self.chain[0].subject

    @property
    def answer(self) -> Entity:
        """Whose page is looked for."""
        return self.chain[-1].object

    @property
    def hops(self) -> str:
        """ "one-hop" or "two-hop"."""
        return ("one-hop", "two-hop")[len(self.chain) - 1]

    @property
    def thought(self) -> str:
        """The chain in words."""
        return " ".join(map(str, self.chain))


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Questions to train on, and held-out two-hop ones: `dev` to choose by, `test` to report."""

    one_hop: Sequence[Question]
    two_hop: Sequence[Question]
    dev: Sequence[Question]
    test: Sequence[Question]


def one_hop_questions(world: World) -> list[Question]:
    """A question about every fact."""
    return [
        Question(
            f"{fact.subject.id}.{fact.relation.name}",
            fact.relation.question.format(subject=fact.subject.name),
            (fact,),
        )
        for fact in world.all_facts()
    ]


def two_hop_questions(world: World) -> list[Question]:
    """A question about every chain of two facts that does not lead back to whom it names."""
    questions = []
    for first, second in CHAINS:
        for subject in world.of_kind(first.subject):
            bridge = world.fact(subject, first)
            answer = world.fact(bridge.object, second)
            if answer.object is not subject:
                asked = second.question.format(subject=first.phrase.format(subject=subject.name))
                name = f"{subject.id}.{first.name}.{second.name}"
                questions.append(Question(name, asked, (bridge, answer)))
    return questions


def split_questions(world: World, settings: WorldSettings) -> Split:
    """Hold out a share of the two-hop questions, half of it for dev and half for test.

    Raises `SettingsError` where the share is less than two questions.
    """
    generator = random.Random(f"split {settings.seed}")
    drawn = two_hop_questions(world)
    generator.shuffle(drawn)
    count = round(settings.held_out * len(drawn))
    if count < 2:
        raise SettingsError(
            f"Found held_out={settings.held_out}, which is {count} of {len(drawn)} two-hop questions; "
            "expected at least 2, one for dev and one for test."
        )
    held_out, kept = drawn[:count], drawn[count:]
    return Split(
        one_hop=one_hop_questions(world),
        two_hop=kept,
        dev=held_out[: count // 2],
        test=held_out[count // 2 :],
    )
