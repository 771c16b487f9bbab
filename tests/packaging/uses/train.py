"""Extra `train`: pairs become voted rows with negatives, and a page about them."""

import json
import sys
from pathlib import Path

from o1_retriever_training.negatives import MiningRules, mine_negatives
from o1_retriever_training.pages import write_page
from o1_retriever_training.recipe import Contributor, Recipe
from o1_retriever_training.synthesize import synthesize
from o1_retriever_training.vote import vote

FACTS = ["Yeast makes dough rise.", "Tides follow the moon.", "Salt melts ice.", "Iron rusts in wet air."]


def think(queries: list[str], k: int) -> list[list[str]]:
    return [["Nobody knows.", query.replace("What", "It")] for query in queries]


pairs = [{"query": f"What: {fact.lower()}", "pos": [fact]} for fact in FACTS]
Path("pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
Path("corpus.jsonl").write_text("".join(json.dumps({"text": fact}) + "\n" for fact in FACTS))

synthesize("pairs.jsonl", "thoughts.jsonl", experts=think, recipe=Recipe(contributors=(Contributor(n=2),)))
figures = vote("thoughts.jsonl", "voted.jsonl", committee=["bm25", sys.argv[1]])
mined = mine_negatives("voted.jsonl", "train.jsonl", corpus="corpus.jsonl", by=sys.argv[1],
                       rules=MiningRules(count=2, skip=0))  # fmt: skip
page = write_page("train.jsonl", "report.html")
print(figures["voted"], mined["rows"], "<svg" in page.read_text())
