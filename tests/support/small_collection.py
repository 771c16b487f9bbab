"""A small collection: six facts and four questions."""

from __future__ import annotations

from pathlib import Path

from o1_retriever.evaluation.sources import write_collection

DOCUMENTS = {
    "rust": "Rust forms when iron meets oxygen and water.",
    "salt": "Salt lowers the freezing point of water.",
    "leaf": "Leaves turn red as chlorophyll breaks down.",
    "moon": "The moon pulls the ocean into tides.",
    "glass": "Glass is molten sand that cooled quickly.",
    "yeast": "Yeast makes carbon dioxide that lifts dough.",
}
QUERIES = {
    "q1": "Why do old nails become brown?",
    "q2": "What keeps winter roads clear?",
    "q3": "Why does bread rise?",
    "q4": "What is molten sand?",
}
QRELS = [("q1", "rust", 1), ("q2", "salt", 1), ("q3", "yeast", 1), ("q4", "glass", 1)]


def write_small(folder: Path) -> Path:
    """Write it in BEIR format."""
    write_collection(
        folder,
        documents=[{"_id": key, "title": "", "text": text} for key, text in DOCUMENTS.items()],
        queries=[{"_id": key, "text": text} for key, text in QUERIES.items()],
        judgments=QRELS,
    )
    return folder
