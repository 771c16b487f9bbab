"""The control of every claim about thoughts: the same run with thoughts that say nothing about the query.

If another query's thoughts, the query itself, random words or nothing at all do as well, then it is not what
the thoughts say that helps. `judge` gives a verdict on a thinker, by questions that were kept apart.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from o1_retriever.embedder import ThinkingEmbedder
from o1_retriever.errors import SettingsError
from o1_retriever.evaluation.collection import Collection, Corpus, EncodedCorpus
from o1_retriever.evaluation.comparison import (
    ALONE,
    CONTROLS,
    EMPTY,
    OTHERS,
    RANDOM,
    REPEATED,
    SIGNIFICANT,
    Audit,
    Comparison,
    Diagnosis,
    Evaluation,
    SystemResult,
    Values,
    compare,
    evaluate,
    holm,
)
from o1_retriever.evaluation.metrics import aligned
from o1_retriever.evaluation.systems import Dense, Hybrid, Lexical, Plan, System, bm25_over, family_of
from o1_retriever.query import Query
from o1_retriever.ranking.bm25 import content_words
from o1_retriever.reporting import counted, markdown_table
from o1_retriever.thinking import Backend, NewThoughts
from o1_retriever.thought import Thought, ThoughtSettings

# A system without thoughts, and what the same one is called with its thoughts, and with those about another
# query.
PAIRS = {
    "dense": ("dense with thoughts", "dense with another's"),
    "bm25": ("bm25 with thoughts", "bm25 with another's"),
    "hybrid": ("hybrid with thoughts", "hybrid with another's"),
}
FAST = "dense corrected"
_SAMPLED = 500  # documents from which random words are drawn
_NAMED = 5  # words that a diagnosis names

# From queries and settings to the thoughts about each.
Think = Callable[[Sequence[str], ThoughtSettings], list[list[Thought]]]


def thinking_systems(
    embedder: ThinkingEmbedder,
    queries: Sequence[str],
    corpus: Corpus,
    encoded: EncodedCorpus,
    settings: ThoughtSettings | None = None,
) -> list[System]:
    """The systems of `PAIRS`: vectors, BM25 and both, without thoughts, with them, and with another query's.

    Where the thinker corrects vectors, `FAST` too: the query alone, corrected, which costs no thought.
    `queries` are all that will be searched for: the thoughts about each go to another one.
    """
    always, bm25 = settings or embedder.settings, bm25_over(corpus)
    never = always.with_changes(thinking="never")
    # The guard would drop most of another query's thoughts, and nothing would be left to compare with.
    unguarded = always.with_changes(guard=False)
    members = [
        (_without_correction(embedder), never),
        (embedder, always),
        (with_other_thoughts(embedder, queries), unguarded),
    ]
    found: list[System] = []
    for place, (who, how) in enumerate(members):
        dense, words, both = ((name, *PAIRS[name])[place] for name in PAIRS)
        vectors = Dense(name=dense, embedder=who, corpus=corpus, encoded=encoded, settings=how)
        read = Lexical(name=words, corpus=corpus, index=bm25, embedder=who, settings=how)
        found += [vectors, read, Hybrid(name=both, corpus=corpus, parts=(vectors, read))]
    if getattr(embedder.backend, "correction", None) is not None:
        found.append(Dense(name=FAST, embedder=embedder, corpus=corpus, encoded=encoded, settings=never))
    return found


def _without_correction(embedder: ThinkingEmbedder) -> ThinkingEmbedder:
    """The encoder as it is without the thinker, which may correct vectors of queries too."""
    backend: Any = embedder.backend
    if getattr(backend, "correction", None) is None:
        return embedder
    return ThinkingEmbedder(backend.uncorrected, settings=embedder.settings, cache=embedder.cache or False)


def with_other_thoughts(embedder: ThinkingEmbedder, queries: Sequence[str]) -> ThinkingEmbedder:
    """An embedder that embeds each of `queries` with what is thought about another one, drawn by chance.

    No query gets its own. Raises `SettingsError` for fewer than two.
    """
    texts = list(dict.fromkeys(query.strip() for query in queries))
    if len(texts) < 2:
        raise SettingsError(f"Found {counted(len(texts), 'query', 'queries')} to shuffle thoughts between.")
    # Neighbours in a file are often about one subject: after a shuffle the next one is any other.
    order = [texts[place] for place in np.random.default_rng(0).permutation(len(texts))]
    other = dict(zip(order, [*order[1:], *order[:1]], strict=True))
    return _embedder(
        embedder,
        lambda asked, settings: embedder.think([other[text.strip()] for text in asked], settings=settings),
    )


def controlled(embedder: ThinkingEmbedder, control: str, collection: Collection) -> ThinkingEmbedder:
    """The embedder with the thoughts of one of the `CONTROLS` instead of its own, as many of them.

    A thought that could not be had stays one that could not be had.
    """
    if control == OTHERS:
        return with_other_thoughts(embedder, list(collection.queries.values()))
    texts: dict[str, Callable[[str, int, str], str]] = {
        EMPTY: lambda query, number, thought: "",
        REPEATED: lambda query, number, thought: query,
        RANDOM: partial(_random_words, _pool(collection.corpus)),
    }
    text = texts[control]

    def think(queries: Sequence[str], settings: ThoughtSettings) -> list[list[Thought]]:
        return [
            [
                thought
                if thought.failed
                else replace(thought, text=text(query, number, thought.text), token_ids=())
                for number, thought in enumerate(row)
            ]
            for query, row in zip(queries, embedder.think(queries, settings=settings), strict=True)
        ]

    return _embedder(embedder, think)


def _pool(corpus: Corpus) -> list[str]:
    """The running words of documents drawn by chance: each as often as it is used."""
    generator, count = np.random.default_rng(0), len(corpus.ids)
    places = np.sort(generator.choice(count, size=min(count, _SAMPLED), replace=False))
    return [word for place in places for (text,) in [corpus.texts(place, place + 1)] for word in text.split()]


def _random_words(pool: Sequence[str], query: str, number: int, thought: str) -> str:
    """As many words as the thought has; which ones hangs on the query and the thought's number alone."""
    digest = hashlib.blake2b(f"{number} {query}".encode(), digest_size=8).digest()
    generator = np.random.default_rng(int.from_bytes(digest, "big"))
    return " ".join(pool[place] for place in generator.integers(0, len(pool), size=len(thought.split())))


def _embedder(embedder: ThinkingEmbedder, think: Think) -> ThinkingEmbedder:
    # Vectors are kept by what a thought says, and thoughts not at all: nobody is taken for anybody else.
    cache = embedder.cache or False
    return ThinkingEmbedder(_Changed(embedder.backend, think), settings=embedder.settings, cache=cache)


class _Changed:
    """A backend whose thoughts come from elsewhere; all else is the inner backend's."""

    def __init__(self, inner: Backend, think: Think) -> None:
        self._inner, self._think = inner, think
        self.thinker_identity = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def think(
        self, queries: Sequence[Query], *, settings: ThoughtSettings, start: int, batch_size: int | None
    ) -> Iterator[NewThoughts]:
        """What is thought in place of the inner backend's thoughts."""
        written = self._think([query.text for query in queries], settings)
        for place, thoughts in enumerate(written):
            yield NewThoughts(place=place, start=start, thoughts=thoughts[start:])


def audited(
    evaluation: Evaluation, plan: Plan, embedders: Mapping[str, ThinkingEmbedder], settings: ThoughtSettings
) -> Evaluation:
    """The evaluation of a plan's systems, with an audit of those that have most thoughts.

    Each is run again under each of the `CONTROLS`, and all are compared by the evaluation's measure. Raises
    `SettingsError` where nothing was thought.
    """
    most, collection = max(plan.thoughts), evaluation.collection
    if not most:
        raise SettingsError("Nothing was thought; expected thoughts to compare.", hint="Type: -n never,3")
    again = replace(plan, thoughts=(most,))
    runs = {}
    for control in CONTROLS:
        changed = {name: controlled(each, control, collection) for name, each in embedders.items()}
        # Unguarded: the guard would drop most of what stands in for the thoughts.
        systems = again.systems(collection.corpus, changed, settings.with_changes(guard=False))
        runs[control] = evaluate(collection, systems, measures=[evaluation.measure])
    others: dict[str, dict[str, SystemResult]] = {}
    for name in (result.name for result in runs[OTHERS].results):
        alone = _alone(evaluation, name)
        others[name] = {} if alone is None else {ALONE: alone}
        others[name] |= {control: run[name] for control, run in runs.items()}
    audit = Audit(
        compared=_compared(evaluation, others),
        means={
            name: {other: result.means[evaluation.measure] for other, result in row.items()}
            for name, row in others.items()
        },
        diagnoses=diagnoses(evaluation),
    )
    return replace(evaluation, audit=audit)


def _alone(evaluation: Evaluation, name: str) -> SystemResult | None:
    """The same system without thoughts."""
    family = re.sub(r"^HyDE |, best$", "", family_of(name))
    results = (each for each in evaluation.results if family_of(each.name) == family)
    return next((each for each in results if not any(each.thoughts.values())), None)


def _compared(
    evaluation: Evaluation, others: Mapping[str, Mapping[str, SystemResult]]
) -> dict[str, dict[str, Comparison]]:
    """Each system's own thoughts against each of the others, corrected for the number of all."""
    found = {}
    for name, row in others.items():
        own = evaluation.values(evaluation[name])
        for other, result in row.items():
            found[name, other] = compare(evaluation.values(result), {name: own})[name]
    corrected = holm([each.p for each in found.values()])
    table: dict[str, dict[str, Comparison]] = {name: {} for name in others}
    for ((name, other), each), p in zip(found.items(), corrected, strict=True):
        table[name][other] = replace(each, p_corrected=p)
    return table


@dataclass(frozen=True, slots=True)
class _Words:
    """The words of a query's thoughts and of documents, by stem; the values of `said` are as written."""

    said: Mapping[str, str]
    asked: frozenset[str]
    relevant: frozenset[str]
    first: frozenset[str]

    @property
    def new(self) -> list[str]:
        """The stems of the thoughts that the query lacks."""
        return [stem for stem in self.said if stem not in self.asked]


def diagnoses(evaluation: Evaluation) -> dict[str, Diagnosis]:
    """What the thoughts brought, by query, for the pair of systems that a report shows; else empty."""
    pair = evaluation.thinking_pair()
    if pair is None:
        return {}
    collection, vocabulary = evaluation.collection, bm25_over(evaluation.collection.corpus).vocabulary
    place_of = {identity: place for place, identity in enumerate(collection.corpus.ids)}
    found = {}
    for key, query in collection.queries.items():
        right = [each for each, grade in collection.qrels[key].items() if grade > 0 and each in place_of]
        wrong = next((each for each in pair[1].run[key] if each not in right), None)
        documents = [place_of[each] for each in [*right, *([] if wrong is None else [wrong])]]
        texts = [text for place in documents for text in collection.corpus.texts(place, place + 1)]
        *stems, asked = content_words([*texts, query])
        words = _Words(
            said=_stems(thought.text for thought in pair[1].thoughts[key] if thought.usable),
            asked=frozenset(asked),
            relevant=frozenset(stem for row in stems[: len(right)] for stem in row),
            first=frozenset(stem for row in stems[len(right) :] for stem in row),
        )
        gain = pair[1].values[evaluation.measure][key] - pair[0].values[evaluation.measure][key]
        found[key] = _diagnosis(
            words, vocabulary, gain, wrong, [_first(each.run[key], right) for each in pair]
        )
    return found


def _stems(texts: Iterator[str]) -> dict[str, str]:
    words = [word for text in texts for word in re.findall(r"\w+", text)]
    found: dict[str, str] = {}
    for word, stems in zip(words, content_words(words) if words else (), strict=True):
        for stem in stems:
            found.setdefault(stem, word.lower())
    return found


def _first(run: Mapping[str, float], relevant: Sequence[str]) -> int | None:
    return next((place for place, each in enumerate(run, start=1) if each in relevant), None)


def _diagnosis(
    words: _Words, vocabulary: frozenset[str], gain: float, wrong: str | None, places: Sequence[int | None]
) -> Diagnosis:
    new = words.new
    right = [stem for stem in new if stem in words.relevant]
    known = [stem for stem in new if stem in vocabulary]
    share = 1 / max(1, len(new))
    before, after = places
    return Diagnosis(
        new=len(new) / max(1, len(words.said)),
        in_relevant=len(right) * share,
        in_corpus=len(known) * share,
        before=before,
        after=after,
        why=_why(words, right, len(known), gain, wrong),
    )


def _why(words: _Words, right: Sequence[str], known: int, gain: float, wrong: str | None) -> str:
    """One sentence on what moved the relevant documents up or down."""
    if not words.said:
        return "there was no thought"
    if not words.new:
        return "the thoughts repeat the query"
    if gain == 0:
        return "nothing moved"
    if gain > 0:
        if right:
            return f"the thoughts bring {_named(words, right)}, which a relevant document has"
        return "the thoughts bring no word of a relevant document; their meaning is nearer to it"
    astray = [stem for stem in words.new if stem in words.first and stem not in words.relevant]
    if astray and wrong is not None:
        return f"the thoughts bring {_named(words, astray)}, which the wrong document {wrong} has"
    if known * 2 < len(words.new):
        return f"no document has {len(words.new) - known} of {counted(len(words.new), 'new word')}"
    return "the thoughts bring nothing of a relevant document" if not right else "other documents gained more"


def _named(words: _Words, stems: Sequence[str]) -> str:
    return ", ".join(repr(words.said[stem]) for stem in stems[:_NAMED])


MEASURE = "nDCG@10"
_DEPTH = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the thinker is worth on the questions that were kept apart.

    `means` is the measure of every system; `own` compares each system of `PAIRS` with the same without
    thoughts, and `control` with the one that has the thoughts about another question. `fast` compares the
    corrected vector of the query alone, which costs no thought, with the encoder's own.
    """

    queries: int
    means: dict[str, float]
    own: dict[str, Comparison]
    control: dict[str, Comparison]
    fast: Comparison | None = None

    @property
    def helped(self) -> list[str]:
        """The systems that gain by what the thoughts say, beyond chance."""
        return [
            name
            for name, found in self.own.items()
            if found.p_corrected < SIGNIFICANT and found.difference > 0 and self.control[name].difference > 0
        ]

    @property
    def harmed(self) -> list[str]:
        """The systems that lose by thinking, beyond chance."""
        own = self.own.items()
        return [name for name, found in own if found.p_corrected < SIGNIFICANT and found.difference < 0]

    @property
    def is_good(self) -> bool:
        """Whether the thinker is to be installed."""
        return bool(self.helped) and not self.harmed

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """The heads of the verdict's table, and its rows."""
        heads = ["system", f"{MEASURE} without", "with thoughts", "gain", "95 %", "p", "another's thoughts"]
        rows = []
        for name, found in self.own.items():
            with_own, with_others = PAIRS[name]
            interval = f"{found.low:+.3f} to {found.high:+.3f}"
            figures = [f"{self.means[name]:.3f}", f"{self.means[with_own]:.3f}", f"{found.difference:+.3f}"]
            rows.append(
                [name, *figures, interval, f"{found.p_corrected:.3f}", f"{self.means[with_others]:.3f}"]
            )
        if self.fast is not None:
            interval = f"{self.fast.low:+.3f} to {self.fast.high:+.3f}"
            means = [f"{self.means[name]:.3f}" for name in ("dense", FAST)]
            figures = [*means, f"{self.fast.difference:+.3f}", interval, f"{self.fast.p:.3f}"]
            rows.append(["fast, no thought", *figures, ""])
        return heads, rows

    def table(self) -> str:
        """The verdict as a Markdown table."""
        return markdown_table(*self.rows())

    def sentence(self) -> str:
        """What it comes to."""
        on = f"on {counted(self.queries, 'question')} that it never saw"
        if self.is_good:
            gains = ", ".join(f"{name} {self.own[name].difference:+.3f}" for name in self.helped)
            return f"It helped {on}: {MEASURE} of {gains}."
        if self.harmed:
            return f"It did harm {on}, to {', '.join(self.harmed)}: nothing is installed."
        return f"It did not help {on}, beyond what chance explains: nothing is installed."


def judge(embedder: ThinkingEmbedder, collection: Collection, encoded: EncodedCorpus) -> Verdict:
    """What an embedder's thoughts gain on a collection, and what those about another question would."""
    systems = thinking_systems(embedder, list(collection.queries.values()), collection.corpus, encoded)
    found = evaluate(collection, systems, measures=[MEASURE], depth=_DEPTH)
    queries = list(collection.qrels)
    values = {each.name: aligned(each.values[MEASURE], queries) for each in found.results}
    return Verdict(
        queries=len(queries),
        means={each.name: each.means[MEASURE] for each in found.results},
        own=_gains(values, others=False),
        control=_gains(values, others=True),
        fast=compare(values["dense"], {FAST: values[FAST]})[FAST] if FAST in values else None,
    )


def _gains(values: Mapping[str, Values], *, others: bool) -> dict[str, Comparison]:
    """Each system with thoughts against the same without, or with the thoughts about another question."""
    raw = {}
    for name, (own, another) in PAIRS.items():
        before = values[another if others else name]
        raw[name] = compare(before, {name: values[own]})[name]
    corrected = holm([each.p for each in raw.values()])
    return {
        name: replace(each, p_corrected=p) for (name, each), p in zip(raw.items(), corrected, strict=True)
    }
