"""What is trained for the table: the recipe with one thing changed at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

DRAWN = (1, 3, 5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One training: its name in the figures, its title in the table, what it changes in the recipe.

    With `data` "voted" it learns from the candidates of an expert who errs, with "right" from the right
    chains. It is searched with no thought, with the likeliest one, and with the mean of so many `drawn`.
    """

    name: str
    title: str
    changes: tuple[str, ...] = ()
    data: str = "right"
    drawn: tuple[int, ...] = ()
    thinks: bool = True


NO_THOUGHTS = ("data.train.0.thoughts=none", "evaluation.thoughts=0")
SAMPLED = "losses.vectors=sampled"

# The three figures that the recipe promises, from two trainings.
PROMISED: Mapping[str, Variant] = {
    "joint": Variant(name="joint", title="the recipe"),
    "no_thoughts": Variant(
        name="no_thoughts", title="trained without thoughts", changes=NO_THOUGHTS, thinks=False
    ),
}


def _z(share: str) -> Variant:
    return Variant(
        name=f"z={share}",
        title=f"z draws the thinking vector with probability {share}",
        changes=(SAMPLED, f"losses.thinking_probability={share}"),
    )


def _weight(weight: str) -> Variant:
    title = "λ = 1: thoughts are embedded, not learned" if weight == "1" else f"λ = {weight}"
    return Variant(name=f"lambda={weight}", title=title, changes=(f"losses.contrastive_weight={weight}",))


def _dropout(share: str) -> Variant:
    return Variant(
        name=f"thought_dropout={share}",
        title=f"thought dropout {share}",
        changes=(f"losses.thought_dropout={share}",),
    )


def _committee(name: str, title: str, thoughts: str) -> Variant:
    return Variant(
        name=f"committee={name}",
        title=title,
        changes=(f"data.train.0.thoughts={thoughts}",),
        data="voted",
        drawn=DRAWN,
    )


ABLATIONS: tuple[Variant, ...] = (
    Variant(name="reference", title="the recipe: λ = 0.5, both vectors, right thoughts", drawn=DRAWN),
    Variant(name="no_thoughts", title="no thoughts at all", changes=NO_THOUGHTS, thinks=False),
    _committee("on", "an expert who errs, a committee elects (BM25)", "elected"),
    _committee("off", "an expert who errs, no committee: the first thought", "first"),
    *map(_weight, ("0.2", "0.8", "1")),
    *map(_z, ("0", "0.5", "1")),
    *map(_dropout, ("0.1", "0.3", "0.6")),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How large a world and a model are, and how long they are trained."""

    world: Mapping[str, int] = field(default_factory=dict)
    changes: tuple[str, ...] = ()


# The recipe as it is.
FULL = Size()

# Three times as fast, in the same world.
SMALL = Size(
    world={"layers": 2, "width": 64},
    changes=(
        "optimisation.steps=1200",
        "optimisation.queries=32",
        "optimisation.learning_rate=3e-3",
        "evaluation=null",
        "checkpoints.every=400",
    ),
)
