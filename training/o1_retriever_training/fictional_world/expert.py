"""What an expert who errs would have written: candidates of which some name a wrong bridge."""

from __future__ import annotations

import random
from collections.abc import Sequence

from o1_retriever_training.fictional_world.questions import Question
from o1_retriever_training.fictional_world.settings import WorldSettings
from o1_retriever_training.fictional_world.world import Entity, Fact, World


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
