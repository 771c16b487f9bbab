"""Invented names: pronounceable, one word each, none like another and none a word of the questions."""

from __future__ import annotations

import random

_OPENINGS = (
    "b br c ch d dr f fl g gl gr h j k kr l m n p pl qu r s sk sl st t th tr v vl w y z".split()
)
_VOWELS = "a e i o u ai ea ia io ou".split()
_CLOSINGS = "l ld lm ln m n nd nt r rk rn rt s sk st t th v x z".split()


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
    # Three syllables, some of them closed: millions of names, so that a large world ends too.
    first, second, third = (generator.choice(_OPENINGS) + generator.choice(_VOWELS) for _ in range(3))
    closing = generator.choice(_CLOSINGS)
    return (first + generator.choice(("", second)) + third + closing).capitalize()
