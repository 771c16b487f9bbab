"""Curves on dev and train splits: nDCG@10 by number and length of the thoughts, and under other wordings.

Run from the repository's root:

    python -m benchmarks.quality.curves [DATA] [--model models/o1-mini] [--sets entailmentbank/dev,...]

Recorded thoughts are cut after a number of words, those of the model by `max_new_tokens`. Only queries with
recorded thoughts take part. No test split is read, so that defaults may follow these curves.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.quality.run import MEASURE, Bench, load_bench, options_of
from benchmarks.record import Figure, record
from o1_retriever import ThinkingEmbedder, ThoughtSettings
from o1_retriever.evaluation.collection import Collection, load_collection
from o1_retriever.evaluation.comparison import evaluate
from o1_retriever.evaluation.corpus import EncodedCorpus, encode_corpus
from o1_retriever.evaluation.robustness import follow_wording, variants
from o1_retriever.evaluation.systems import NEVER, Dense
from o1_retriever.thinkers import RecordedThinker

SETS = ("entailmentbank/dev", "strategyqa_facts/train", "hotpotqa_1k/train")
RECORDED_K = (1, 2, 3)
WORDS = (4, 8, 16, 32, 64)
OWN_K = (1, 2, 3, 5)
TOKENS = (8, 16, 32, 64)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the figures and print them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality.curves", description=__doc__)
    options = options_of(parser, arguments, sets=SETS, results="curves.jsonl")
    if not (options.data / "eval").is_dir():
        print(f"There is no folder {options.data / 'eval'}: nothing is measured.", file=sys.stderr)
        return 1
    bench = load_bench(options)
    for name in options.sets:
        figures = list(measure(bench, name))
        record(options.results, figures)
        for figure in figures:
            print(f"{figure.name}: {figure.value:.4f}")
    return 0


def measure(bench: Bench, name: str) -> Iterator[Figure]:
    """All points of one set, written `SET/SPLIT`."""
    folder, split = name.split("/")
    path = bench.data / "expert_thoughts" / f"{folder}.{split}.jsonl"
    thoughts = recorded(path)
    whole = load_collection(bench.data / "eval" / folder, split=split)
    known = {key: text for key, text in whole.queries.items() if text in thoughts}
    collection = whole.with_queries(known)
    encoder = ThinkingEmbedder.from_parts(path, bench.minilm, cache=False)
    encoded = encode_corpus(encoder, collection.corpus, bench.work / "corpora")
    yield Figure(name=f"{name}/minilm/never", value=_ndcg(collection, encoder, encoded, NEVER), unit=MEASURE)
    for k in RECORDED_K:
        value = _ndcg(collection, encoder, encoded, ThoughtSettings(k=k))
        yield Figure(name=f"{name}/minilm/k={k}", value=value, unit=MEASURE)
    for words in WORDS:
        cut = {query: [_first(words, thought) for thought in said] for query, said in thoughts.items()}
        shorter = ThinkingEmbedder.from_parts(RecordedThinker(cut), bench.minilm, cache=False)
        value = _ndcg(collection, shorter, encoded, ThoughtSettings(k=3))
        yield Figure(name=f"{name}/minilm/k=3/words={words}", value=value, unit=MEASURE)
    yield from _wordings(name, collection, encoder, encoded)
    if bench.model is not None:
        own = encode_corpus(bench.model, collection.corpus, bench.work / "corpora")
        yield from _own(name, collection, bench.model, own)


def _own(
    name: str, collection: Collection, model: ThinkingEmbedder, encoded: EncodedCorpus
) -> Iterator[Figure]:
    yield Figure(name=f"{name}/o1_mini/never", value=_ndcg(collection, model, encoded, NEVER), unit=MEASURE)
    for k in OWN_K:
        value = _ndcg(collection, model, encoded, model.settings.with_changes(k=k, mode="always"))
        yield Figure(name=f"{name}/o1_mini/k={k}", value=value, unit=MEASURE)
    for tokens in TOKENS:
        settings = model.settings.with_changes(k=3, max_new_tokens=tokens, mode="always")
        value = _ndcg(collection, model, encoded, settings)
        yield Figure(name=f"{name}/o1_mini/k=3/tokens={tokens}", value=value, unit=MEASURE)


def _wordings(
    name: str, collection: Collection, embedder: ThinkingEmbedder, encoded: EncodedCorpus
) -> Iterator[Figure]:
    """The gain of thinking under each other wording of the queries, thoughts kept as they are."""
    for variant in variants(collection)[1:]:
        wording = variant.name.partition(" (")[2].rstrip(")").replace(" ", "_")
        follower = follow_wording(embedder, collection, variant)
        plain = _ndcg(variant, follower, encoded, NEVER)
        thinking = _ndcg(variant, follower, encoded, ThoughtSettings(k=3))
        where = f"{name}/{wording}/minilm"
        yield Figure(name=f"{where}/never", value=plain, unit=MEASURE)
        yield Figure(name=f"{where}/gain_of_k=3", value=round(thinking - plain, 4), unit=MEASURE)


def recorded(path: Path) -> dict[str, list[str]]:
    """Recorded thoughts by the text of their query."""
    rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return {row["text"].strip(): row["thoughts"] for row in rows}


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
