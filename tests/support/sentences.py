"""Whether thoughts read like sentences: words that are known, none over and over, and an end."""

from __future__ import annotations

import json
import re
from itertools import groupby
from pathlib import Path

# What every text has, whatever it is about.
_COMMON = """
a about after all also an and any are as at be because been before being between both but by can
called could do does down due during each even for from further get has have he her here him his how
i if in into is it its itself just known like made make many may more most much my no not of off
often on once one only or other our out over own part same she should so some such than that the
their them then there these they this those through to too two under until up used very was way we
were what when where which while who why will with would you your
"""


def words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return re.findall(r"[^\W\d_]+", text.lower())


def known_words(root: Path) -> set[str]:
    """The words of the repository's own plain texts: the demo's passages and the everyday corpus."""
    known = set(words(_COMMON))
    demo = json.loads((root / "o1_retriever" / "cli" / "demo.json").read_text(encoding="utf-8"))
    known |= {word for row in demo["documents"] for word in words(f"{row['title']} {row['text']}")}
    corpus = root / "cookbook" / "data" / "everyday" / "corpus.jsonl"
    for line in corpus.read_text(encoding="utf-8").splitlines():
        known |= set(words(json.loads(line)["text"]))
    return known


def longest_run(text: str) -> int:
    """How often a word follows itself, at most."""
    return max((len(list(run)) for _, run in groupby(words(text))), default=0)


def ends_in_a_sentence(text: str) -> bool:
    """Whether the text ends where a sentence does."""
    return bool(re.search(r"[.!?…][\"'”’)\]]*$", text.strip()))


def share_known(text: str, known: set[str]) -> float:
    """The share of its words that are known, those with a usual ending of a known one included."""
    found = words(text)
    return sum(_stems(word).isdisjoint(known) is False for word in found) / max(1, len(found))


def _stems(word: str) -> set[str]:
    endings = ("", "s", "es", "d", "ed", "ing", "ly", "er", "al")
    cut = {word.removesuffix(ending) for ending in endings if len(word.removesuffix(ending)) > 2}
    return {word} | cut | {f"{stem}e" for stem in cut}
