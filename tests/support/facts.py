"""Eight facts to make training data of."""

from __future__ import annotations

import json
from pathlib import Path

FACTS = {
    "kitchen": "Warm, damp air gives up its water as tiny drops where it meets a cold surface.",
    "lake": "Pumped storage lifts water into a high lake when power is cheap and drops it later.",
    "kettle": "Bubbles of steam collapse in the colder water above them, which is why kettles sing.",
    "bread": "Yeast eats the sugar in dough and gives off carbon dioxide, whose bubbles make bread rise.",
    "moon": "The moon always shows the same face because it turns once for every orbit.",
    "rust": "Iron turns to rust where oxygen and water reach it, and salt makes that go faster.",
    "bees": "Bees tell each other the way to flowers by a dance whose angle stands for the sun.",
    "glass": "Glass is sand that was melted with soda and lime and cooled before crystals grew.",
}


def write_facts(path: Path) -> Path:
    """Write them as a corpus."""
    path.write_text("".join(json.dumps({"_id": k, "text": v}) + "\n" for k, v in FACTS.items()))
    return path
