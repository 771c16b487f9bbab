"""Questions about the world, what of them is held out, and what an expert who errs writes about them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.fictional_world.world import CHAINS, Entity, Fact, World, WorldSettings
from o1_retriever.errors import SettingsError


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


def candidate_thoughts(
    world: World, questions: Sequence[Question], settings: WorldSettings
) -> list[list[str]]:
    """For each question `settings.candidates` thoughts in random order, one of them right at least."""
    generator = random.Random(f"expert {settings.seed}")
    return [_candidates(world, question, settings, generator) for question in questions]


def _candidates(
    world: World, question: Question, settings: WorldSettings, generator: random.Random
) -> list[str]:
    errs = [generator.random() < settings.wrong for _ in range(settings.candidates - 1)]
    thoughts = [question.thought]
    thoughts += [wrong_thought(world, question, generator) if wrong else question.thought for wrong in errs]
    generator.shuffle(thoughts)
    return thoughts


def wrong_thought(world: World, question: Question, generator: random.Random) -> str:
    """A chain that goes astray at the first object and on from there truly, to a wrong answer if it can."""
    first = question.chain[0]
    kind = [entity for entity in world.of_kind(first.relation.object) if entity != first.object]
    others = [entity for entity in kind if _end(world, question, entity) != question.answer]
    if not kind:
        return question.thought
    astray = generator.choice(others or kind)
    said = [str(Fact(first.subject, first.relation, astray))]
    said += [str(world.fact(astray, fact.relation)) for fact in question.chain[1:]]
    return " ".join(said)


def _end(world: World, question: Question, bridge: Entity) -> Entity:
    if len(question.chain) == 1:
        return bridge
    return world.fact(bridge, question.chain[1].relation).object
