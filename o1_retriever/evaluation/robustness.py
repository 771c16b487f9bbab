"""The same questions in other wordings: with typos, with synonyms, in capitals, in lower case."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from o1_retriever.embedder import ThinkingEmbedder
from o1_retriever.evaluation.collection import Collection
from o1_retriever.query import Query
from o1_retriever.thinkers import RecordedThinker, Thinker
from o1_retriever.thinking import PairBackend
from o1_retriever.thought import Thought, ThoughtSettings

TYPO_SHARE = 0.2  # of the words that are long enough
_LONG = 4
_WORD = re.compile(r"[^\W\d_]+")

# Everyday words for one another; a word is replaced by the other of its pair, in its own case.
_PAIRS = """
big large|small little|start begin|end finish|fast quick|begins starts|ends finishes|make create|makes creates
show demonstrate|shows demonstrates|help aid|helps aids|need require|needs requires|get obtain|gets obtains
use employ|uses employs|used employed|using employing|change alter|changes alters|cause produce
increase raise|increases raises|decrease reduce|decreases reduces|reduced lowered|buy purchase|keep retain
choose select|happen occur|happens occurs|important significant|difficult hard|easy simple|kind type
people persons|person individual|children kids|doctor physician|illness disease|medicine drug|car automobile
film movie|author writer|country nation|town city|ocean sea|stone rock|forest woods|soil ground|job occupation
energy power|heat warmth|cold chilly|weather climate|animal creature|animals creatures|plant herb|plants herbs
food nourishment|light illumination|movement motion|moves travels|move travel|form shape|result outcome
results outcomes|part piece|parts pieces|effect impact|effects impacts|likely probable|best finest|main chief
correct right|most greatest|describes characterizes|explain clarify|explains clarifies|allow permit
allows permits|protect shield|protects shields|contain hold|contains holds|example instance|method procedure
born birthed|founded established|located situated|famous renowned|old ancient|new recent|rich wealthy
often frequently|always constantly|near close|whole entire|amount quantity|answer reply|ask inquire
associated linked|risk danger|growth development|treatment therapy|cancer tumour|kinds types|causes produces
"""
SYNONYMS = {
    word: other
    for pair in _PAIRS.replace("\n", "|").split("|")
    if pair.strip()
    for word, other in (pair.split(), pair.split()[::-1])
}


def with_typos(text: str, *, seed: int = 0) -> str:
    """Every fifth long word with two letters swapped, or one left out or doubled; at least one in a text.

    The draw depends on the text and the seed alone.
    """
    places = [match.span() for match in _WORD.finditer(text) if len(match.group()) >= _LONG]
    if not places:
        return text
    digest = hashlib.blake2b(text.encode(), digest_size=8, key=str(seed).encode()).digest()
    generator = np.random.default_rng(int.from_bytes(digest, "big"))
    count = max(1, round(TYPO_SHARE * len(places)))
    chosen = sorted(generator.choice(len(places), size=count, replace=False), reverse=True)
    for place in chosen:
        start, end = places[place]
        text = text[:start] + _misspelt(text[start:end], generator) + text[end:]
    return text


def with_synonyms(text: str) -> str:
    """Every word that the built-in list knows replaced by its synonym."""

    def other(match: re.Match[str]) -> str:
        word = match.group()
        found = SYNONYMS.get(word.lower(), word)
        if word.isupper() and len(word) > 1:
            return found.upper()
        return found.capitalize() if word[0].isupper() and found != word else found

    return _WORD.sub(other, text)


WORDINGS: Mapping[str, Callable[[str], str]] = {
    "typos": with_typos,
    "synonyms": with_synonyms,
    "upper case": str.upper,
    "lower case": str.lower,
}


def variants(collection: Collection) -> list[Collection]:
    """The collection itself, and with each other wording of its queries, named after it."""
    return [collection] + [
        collection.with_queries(
            {key: change(text) for key, text in collection.queries.items()},
            name=f"{collection.name} ({name})",
        )
        for name, change in WORDINGS.items()
    ]


def follow_wording(embedder: ThinkingEmbedder, original: Collection, variant: Collection) -> ThinkingEmbedder:
    """The embedder for a variant: recorded thoughts are found by the original wording of a query.

    A thinker that writes is left as it is: it reads the variant's wording, as it would in use.
    """
    backend = embedder.backend
    if not isinstance(backend, PairBackend) or not isinstance(backend.thinker, RecordedThinker):
        return embedder
    if variant is original:
        return embedder
    originals = {variant.queries[key]: text for key, text in original.queries.items()}
    thinker = _Reworded(backend.thinker, originals)
    cache = embedder.cache if embedder.cache is not None else False
    return ThinkingEmbedder.from_parts(thinker, backend.encoder, settings=embedder.settings, cache=cache)


class _Reworded:
    """Asks a thinker about the original wording."""

    identity = None  # nothing is gained by keeping again what is recorded

    def __init__(self, thinker: Thinker, originals: Mapping[str, str]) -> None:
        self._thinker = thinker
        self._originals = originals

    def think(
        self, queries: Sequence[Query], *, settings: ThoughtSettings, start: int = 0
    ) -> list[list[Thought]]:
        known = [Query(self._originals.get(query.text, query.text)) for query in queries]
        return self._thinker.think(known, settings=settings, start=start)


def _misspelt(word: str, generator: np.random.Generator) -> str:
    # The first letter stays: people seldom miss it.
    place = int(generator.integers(1, len(word) - 1))
    kind = int(generator.integers(3))
    if kind == 0:
        return word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    if kind == 1:
        return word[:place] + word[place + 1 :]
    return word[: place + 1] + word[place:]
