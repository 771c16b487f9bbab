"""Invented names: pronounceable, one word each, none like another and none a word of the questions."""

from __future__ import annotations

import random

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
