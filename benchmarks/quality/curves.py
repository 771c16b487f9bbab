"""Curves on dev and train splits: nDCG@10 by the number and by the length of the thoughts.

Run from the repository's root:

    python -m benchmarks.quality.curves [DATA] [--model models/o1-embedder-22m] [--sets NAME,...]

Recorded thoughts are cut after a number of words, those of the model by `max_new_tokens`. Only queries with
recorded thoughts take part. No test split is read, so that defaults may follow these curves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.quality.bench import MEASURE, Bench, open_bench
from benchmarks.record import Figure
from o1_retriever import ThinkingEmbedder, ThoughtSettings
from o1_retriever.evaluation.collection import Collection, EncodedCorpus, encode_corpus
from o1_retriever.evaluation.comparison import evaluate
from o1_retriever.evaluation.systems import NEVER, Dense
from o1_retriever.thinkers import RecordedThinker

SETS = ("entailmentbank/dev", "strategyqa_facts/train", "hotpotqa_1k/train")
RECORDED_COUNTS = (1, 2, 3)
WORDS = (4, 8, 16, 32, 64)
OWN_COUNTS = (1, 2, 3, 5)
TOKENS = (8, 16, 32, 64)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the figures and print them."""
    bench = open_bench("benchmarks.quality.curves", __doc__, arguments, sets=SETS, results="curves.jsonl")
    for name in bench.sets:
        figures = list(measure(bench, name))
        bench.record(figures)
        for figure in figures:
            print(f"{figure.name}: {figure.value:.4f}")
    return 0


def measure(bench: Bench, name: str) -> Iterator[Figure]:
    """All points of one set, written `SET/SPLIT`."""
    collection, thoughts = bench.with_thoughts(name)
    if name.endswith("/test"):
        raise SystemExit(f"{name} is a test split: nothing is chosen there.")
    yield from _recorded(bench, name, collection, thoughts)
    if bench.model is not None:
        own = encode_corpus(bench.model, collection.corpus, bench.work / "corpora")
        yield from _own(name, collection, bench.model, own)


def _recorded(
    bench: Bench, name: str, collection: Collection, thoughts: dict[str, list[str]]
) -> Iterator[Figure]:
    embedder = ThinkingEmbedder.from_parts(RecordedThinker(thoughts), bench.minilm, cache=False)
    encoded = encode_corpus(embedder, collection.corpus, bench.work / "corpora")
    yield Figure(name=f"{name}/minilm/never", value=_ndcg(collection, embedder, encoded, NEVER), unit=MEASURE)
    for count in RECORDED_COUNTS:
        value = _ndcg(collection, embedder, encoded, ThoughtSettings(n_thoughts=count))
        yield Figure(name=f"{name}/minilm/n_thoughts={count}", value=value, unit=MEASURE)
    for words in WORDS:
        cut = {query: [_first(words, thought) for thought in said] for query, said in thoughts.items()}
        shorter = ThinkingEmbedder.from_parts(RecordedThinker(cut), bench.minilm, cache=False)
        value = _ndcg(collection, shorter, encoded, ThoughtSettings(n_thoughts=3))
        yield Figure(name=f"{name}/minilm/n_thoughts=3/words={words}", value=value, unit=MEASURE)


def _own(
    name: str, collection: Collection, model: ThinkingEmbedder, encoded: EncodedCorpus
) -> Iterator[Figure]:
    yield Figure(
        name=f"{name}/o1_embedder_22m/never", value=_ndcg(collection, model, encoded, NEVER), unit=MEASURE
    )
    for count in OWN_COUNTS:
        value = _ndcg(
            collection, model, encoded, model.settings.with_changes(n_thoughts=count, thinking="always")
        )
        yield Figure(name=f"{name}/o1_embedder_22m/n_thoughts={count}", value=value, unit=MEASURE)
    for tokens in TOKENS:
        settings = model.settings.with_changes(n_thoughts=3, max_new_tokens=tokens, thinking="always")
        value = _ndcg(collection, model, encoded, settings)
        yield Figure(name=f"{name}/o1_embedder_22m/n_thoughts=3/tokens={tokens}", value=value, unit=MEASURE)


def _first(words: int, thought: str) -> str:
    return " ".join(thought.split()[:words])


def _ndcg(
    collection: Collection, embedder: ThinkingEmbedder, encoded: EncodedCorpus, settings: ThoughtSettings
) -> float:
    system = Dense(
        name="dense", embedder=embedder, corpus=collection.corpus, encoded=encoded, settings=settings
    )
    done = evaluate(collection, [system], measures=[MEASURE], depth=10)
    return round(done.results[0].means[MEASURE], 4)


if __name__ == "__main__":
    raise SystemExit(main())
