"""What other thoughts bring: keywords, entities, a simpler question, and a second round that has read hits.

Run from the repository's root:

    python -m benchmarks.quality.kinds [DATA] [--thinker NAME] [--sets NAME,...] [--rounds-sets NAME,...]
        [--first 150]

MiniLM embeds, BM25 reads, and both are fused, guarded as in a search. The thinker writes three thoughts of
each kind about each query, with a prompt for each; `all` are together what each kind is for: passages,
entities and simpler questions for the vectors, passages, keywords and entities for BM25. On `--rounds-sets`
it writes three more with the first three hits of the fused ranking before it, or three more without. No test
split is read.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from benchmarks.quality.bench import MEASURE, Bench, open_bench
from benchmarks.record import Figure
from o1_retriever import ThinkingEmbedder
from o1_retriever.endpoint.chat import DEFAULT_PROMPT, ChatPrompt
from o1_retriever.evaluation.collection import Collection, encode_corpus
from o1_retriever.evaluation.comparison import Values, evaluate, randomisation_test
from o1_retriever.evaluation.metrics import aligned
from o1_retriever.evaluation.systems import (
    NEVER,
    Answer,
    Dense,
    Hybrid,
    Lexical,
    bm25_over,
)
from o1_retriever.query import Query
from o1_retriever.ranking.ranking import FUSION_DEPTH
from o1_retriever.search.result import Pooling, SearchSettings
from o1_retriever.thinkers import RecordedThinker, Thinker, as_thinker
from o1_retriever.thinkers.local import LocalThinker
from o1_retriever.thought import ThoughtSettings

SETS = ("entailmentbank/dev", "strategyqa_facts/train", "hotpotqa_1k/train", "scifact/train")
ROUNDS_SETS = ("entailmentbank/dev", "hotpotqa_1k/train")
THINKER = "HuggingFaceTB/SmolLM2-135M-Instruct"
THOUGHTS = 3


def _prompt(system: str, *answers: str) -> ChatPrompt:
    """The product's examples with other answers."""
    questions = (question for question, _ in DEFAULT_PROMPT.examples)
    return ChatPrompt(system=system, examples=tuple(zip(questions, answers, strict=True)))


KINDS = {
    "keywords": _prompt(
        "Write the keywords that a passage answering the question contains, separated by commas.",
        "yeast, fungus, sugar, dough, carbon dioxide, gas",
        "Madrid, Moscow, northern hemisphere, full moon, night",
        "penicillin, Alexander Fleming, Scottish, bacteriologist, microbes",
        "balance, scale, mass, weight, grams, kilograms",
    ),
    "entities": _prompt(
        "Name the things, people and places that the question is about, separated by commas.",
        "bread, yeast, dough, baking",
        "Madrid, Moscow, full moon",
        "penicillin, Alexander Fleming",
        "stone, weight, balance",
    ),
    "subquestion": _prompt(
        "Write one simpler question that must be answered first.",
        "What gas does yeast make in dough?",
        "In which hemisphere are Madrid and Moscow?",
        "Who discovered penicillin?",
        "Which tools measure mass?",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """The kinds of thoughts that the vectors are made of and that BM25 reads, and how vectors are pooled."""

    near: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    pooling: Pooling = "mean"


def _both(*kinds: str, pooling: Pooling = "mean") -> Way:
    return Way(near=kinds, words=kinds, pooling=pooling)


NONE, PASSAGE = "never", "passage"
WAYS = {
    NONE: Way(),
    PASSAGE: _both(PASSAGE),
    "keywords": _both("keywords"),
    "entities": _both("entities"),
    "subquestion": _both("subquestion", pooling="best"),
    "passage_and_keywords": Way(near=(PASSAGE,), words=("keywords",)),
    "passage_and_entities": _both(PASSAGE, "entities"),
    "passage_and_subquestion": _both(PASSAGE, "subquestion", pooling="best"),
    "all": Way(near=(PASSAGE, "entities", "subquestion"), words=(PASSAGE, "keywords", "entities")),
}
ROUNDS = {
    NONE: Way(),
    "one_round": _both("first"),
    "six_in_one": _both("first", "more"),
    "two_rounds": _both("first", "read"),
    "second_alone": _both("read"),
}

# Texts by query, for each kind.
Said = dict[str, dict[str, list[str]]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the figures and print them."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--thinker", default=THINKER)
    parser.add_argument("--first", type=int, default=150, help="Queries of each set.")
    parser.add_argument(
        "--rounds-sets", type=lambda text: text.split(",") if text else [], default=ROUNDS_SETS
    )
    own, others = parser.parse_known_args(arguments)
    bench = open_bench(
        "benchmarks.quality.kinds", __doc__, [*others, "--model", "none"], sets=SETS, results="kinds.jsonl"
    )
    writer = _embedder(bench, as_thinker(own.thinker))
    writers = {kind: _embedder(bench, LocalThinker(own.thinker, prompt=KINDS[kind])) for kind in KINDS}
    for group, sets in (("kinds", bench.sets), ("rounds", own.rounds_sets)):
        pooled: list[dict[str, Values]] = []
        for name in sets:
            if name.endswith("/test"):
                raise SystemExit(f"{name} is a test split: nothing is chosen there.")
            whole = bench.collection(name)
            asked = whole.with_queries(dict(islice(whole.queries.items(), own.first)))
            measure = by_kind if group == "kinds" else by_round
            pooled.append(measure(bench, asked, writer, writers))
            _tell(bench, figures(f"{group}/{name}", pooled[-1]))
        if len(pooled) > 1:
            together = {way: np.concatenate([each[way] for each in pooled]) for way in pooled[0]}
            _tell(bench, figures(f"{group}/pooled", together))
    return 0


def _tell(bench: Bench, found: Iterator[Figure]) -> None:
    bench.record(told := list(found))
    for figure in told:
        print(f"{figure.name}: {figure.value:g} {figure.unit}", flush=True)


def _embedder(bench: Bench, thinker: Thinker) -> ThinkingEmbedder:
    return ThinkingEmbedder.from_parts(thinker, bench.minilm, cache=bench.work / "thoughts")


def _written(embedder: ThinkingEmbedder, asked: Sequence[str | Query], count: int) -> list[list[str]]:
    """The texts of `count` thoughts about each query; those that could not be written are left out."""
    rows = embedder.think(asked, n_thoughts=count)
    return [[each.text for each in row if not each.failed] for row in rows]


def by_kind(
    bench: Bench,
    collection: Collection,
    writer: ThinkingEmbedder,
    writers: Mapping[str, ThinkingEmbedder],
) -> dict[str, Values]:
    """The measure of every query by each of the `WAYS`."""
    queries = list(collection.queries.values())
    said: Said = {
        kind: dict(zip(queries, _written(each, queries, THOUGHTS), strict=True))
        for kind, each in {PASSAGE: writer, **writers}.items()
    }
    return measured(bench, collection, writer, said, WAYS)


def by_round(
    bench: Bench, collection: Collection, writer: ThinkingEmbedder, _: Mapping[str, ThinkingEmbedder]
) -> dict[str, Values]:
    """The measure of every query by each of the `ROUNDS`."""
    queries = list(collection.queries.values())
    six = _written(writer, queries, 2 * THOUGHTS)
    said: Said = {
        "first": {query: row[:THOUGHTS] for query, row in zip(queries, six, strict=True)},
        "more": {query: row[THOUGHTS:] for query, row in zip(queries, six, strict=True)},
    }
    first = system("first", bench, collection, writer, said, ROUNDS["one_round"])
    run = evaluate(collection, [first], measures=[MEASURE])["first"].run
    asked = [Query(text, passages=_read(collection, run[key])) for key, text in collection.queries.items()]
    said["read"] = dict(zip(queries, _written(writer, asked, THOUGHTS), strict=True))
    return measured(bench, collection, writer, said, ROUNDS)


def _read(collection: Collection, ranking: Mapping[str, float]) -> tuple[str, ...]:
    """The passages that a ranking has first, as a search reads them."""
    places = {identity: place for place, identity in enumerate(collection.corpus.ids)}
    found = islice(ranking, SearchSettings().rounds_read)
    return tuple(text for each in found for text in collection.corpus.texts(places[each], places[each] + 1))


def measured(
    bench: Bench, collection: Collection, writer: ThinkingEmbedder, said: Said, ways: Mapping[str, Way]
) -> dict[str, Values]:
    """nDCG@10 of every query, vectors fused with BM25, by each way."""
    systems = [system(name, bench, collection, writer, said, way) for name, way in ways.items()]
    found = evaluate(collection, systems, measures=[MEASURE])
    return {each.name: aligned(each.values[MEASURE], list(collection.qrels)) for each in found.results}


@dataclass(kw_only=True, eq=False)
class Apart(Hybrid):
    """Vectors and BM25 that read thoughts of different kinds."""

    def search(self, queries: Sequence[str], depth: int) -> Answer:
        """As any fused search, but that what the guard leaves out of one is not left out of the other."""
        deep = max(depth, FUSION_DEPTH)
        near, words = (part.search(queries, deep) for part in self.parts)
        pairs = zip(near.rankings, words.rankings, strict=True)
        return replace(near, rankings=[self._fused(one, other, deep, depth) for one, other in pairs])


def system(
    name: str, bench: Bench, collection: Collection, writer: ThinkingEmbedder, said: Said, way: Way
) -> Hybrid:
    """Vectors fused with BM25, each with its kinds of thoughts, which count as the writer's do."""
    corpus = collection.corpus
    near, how = _with(bench, writer, said, way.near)
    dense = Dense(
        name="vectors",
        corpus=corpus,
        embedder=near,
        encoded=encode_corpus(writer, corpus, bench.work / "corpora"),
        settings=how,
        pooling=way.pooling,
    )
    words, how = _with(bench, writer, said, way.words)
    lexical = Lexical(name="words", corpus=corpus, index=bm25_over(corpus), embedder=words, settings=how)
    made = Hybrid if way.near == way.words else Apart
    return made(name=name, corpus=corpus, parts=(dense, lexical))


def _with(
    bench: Bench, writer: ThinkingEmbedder, said: Said, kinds: Sequence[str]
) -> tuple[ThinkingEmbedder, ThoughtSettings]:
    """An embedder with the thoughts of these kinds, each once, and the settings to use all of them."""
    if not kinds:
        return writer, NEVER
    queries = list(said[kinds[0]])
    texts = {
        query: list(dict.fromkeys(each for kind in kinds for each in said[kind][query])) for query in queries
    }
    most = max(map(len, texts.values()))
    return _embedder(bench, RecordedThinker(texts)), writer.settings.with_changes(n_thoughts=most)


def figures(name: str, found: Mapping[str, Values]) -> Iterator[Figure]:
    """nDCG@10 of each way, and p against no thoughts, and against the second of them (the usual thoughts)."""
    none, usual, *_ = found
    count = len(found[none])
    for way, values in found.items():
        unit = f"{MEASURE}, {count} queries"
        yield Figure(name=f"{name}/{way}", value=round(float(values.mean()), 4), unit=unit)
        for other in (none, usual, "six_in_one"):
            if other in found and other != way and way != none:
                p = round(randomisation_test(found[other], values), 4)
                yield Figure(name=f"{name}/{way}/p_against_{other}", value=p, unit="p", better="lower")


if __name__ == "__main__":
    raise SystemExit(main())
