"""A report of `o1-retriever eval --control` on a few riddles, for those who show reports."""

from __future__ import annotations

from pathlib import Path

from o1_retriever import ThinkingEmbedder, ThoughtSettings
from o1_retriever.encoders import CallableEncoder
from o1_retriever.evaluation.collection import load_collection
from o1_retriever.evaluation.comparison import evaluate
from o1_retriever.evaluation.controls import audited
from o1_retriever.evaluation.report import write_report
from o1_retriever.evaluation.sources import write_collection
from o1_retriever.evaluation.systems import Plan
from tests.support.adapters import bag_of_words

COUNT = 12


def riddles(folder: Path, query: str = "riddle{n} please") -> Path:
    """Write a report below `folder`: questions that share no word with their answers, unlike the thoughts."""
    data = folder / "data"
    write_collection(
        data,
        documents=[
            {"_id": f"d{n}", "title": "", "text": f"answer{n} fact{n} about thing{n}"} for n in range(COUNT)
        ],
        queries=[{"_id": f"q{n}", "text": query.format(n=n)} for n in range(COUNT)],
        judgments=[(f"q{n}", f"d{n}", 1) for n in range(COUNT)],
    )
    collection, settings = load_collection(data, strict=True), ThoughtSettings(n_thoughts=1)
    thoughts = {text: [f"answer{key[1:]} fact{key[1:]}"] for key, text in collection.queries.items()}
    encoder = CallableEncoder(bag_of_words, name="bag of words")
    embedder = ThinkingEmbedder.from_parts(thoughts, encoder, settings=settings, cache=False)
    plan, embedders = Plan(thoughts=(0, 1), work=folder / "work"), {"words": embedder}
    found = evaluate(collection, plan.systems(collection.corpus, embedders, settings))
    return write_report(audited(found, plan, embedders, settings), folder)
