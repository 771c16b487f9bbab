"""The rows of the joint training, and the collection that chooses among its checkpoints.

```
python training/o1_embedder_22m/pairs.py --data ../shared/data --work WORK
```

Writes into WORK:

| file | what it holds | what it trains |
| --- | --- | --- |
| `pairs.jsonl` | queries and positives: the model's own thoughts come to these | both vectors |
| `expert.jsonl` | queries, positives, and the expert's thoughts about them | both, and writing |
| `written.jsonl` | thoughts that repeat their passage | writing alone |
| `corpus.jsonl` | all positives and the documents of the collections: what a question is compared with | |
| `dev/` | 500 questions held out of the train and dev splits, among 9,000 documents | the choice |

No split named test is opened; the documents of a collection are, because an index knows its documents.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from documents import corpus_texts
from questions import MOST_COPIED
from sources import read_jsonl, require_data, telegram, write_jsonl

from o1_retriever.evaluation.sources import write_collection
from o1_retriever_training.improve import share_copied

# Questions of the same kind as the collections'; some of other kinds come to them.
THINKING = ("entailmentbank_train", "strategyqa_train", "hotpotqa_train500", "scifact_train", "openstax_qa")
PLAIN = {"squad_nqg_sentences": 1800, "qamr": 900, "pubmedqa_train": 300}
WRITTEN = {
    "entailmentbank_train": 0.32, "strategyqa_train": 0.32, "hotpotqa_train500": 0.5, "scifact_train": 0.5,
    "openstax_qa": 0.25, "squad_nqg_sentences": 0.04, "qamr": 0.05,
}  # fmt: skip
EXPERT = {
    "entailmentbank": "entailmentbank_train", "strategyqa_facts": "strategyqa_train",
    "hotpotqa_1k": "hotpotqa_train500", "scifact": "scifact_train",
}  # fmt: skip
HELD_OUT = {"strategyqa_facts": 130, "hotpotqa_1k": 100, "scifact": 83}  # beside entailmentbank's dev split
DISTRACTORS = 1800


def main() -> None:
    """Write all files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--limit", type=int, help="take so many rows of each file alone (to try the way)")
    options = parser.parse_args()
    require_data(options.data)
    options.work.mkdir(parents=True, exist_ok=True)
    held_out = _write_dev(options.data, options.work / "dev")
    train = {}
    for name in (*THINKING, *PLAIN, *WRITTEN):
        rows = read_jsonl(options.data / "train" / f"{name}.jsonl.gz")
        train[name] = [row for row in rows if row["query"] not in held_out]
    draw = random.Random(0)
    paired = [row for name in THINKING for row in train[name]]
    for name, most in PLAIN.items():
        paired += draw.sample(train[name], min(most, len(train[name])))
    files = {
        "pairs": [{"query": row["query"], "pos": row["pos"]} for row in paired if row["pos"]],
        "expert": list(_expert(options.data, train)),
        "written": list(_written(train, draw)),
    }
    for name, whole in files.items():
        found = whole[: options.limit]
        write_jsonl(options.work / f"{name}.jsonl", found)
        print(f"{name}: {len(found):,} rows")
    texts = [text for row in files["pairs"][: options.limit] for text in row["pos"]]
    every = dict.fromkeys([*texts, *corpus_texts(options.data)])
    documents = [{"_id": str(number), "text": text} for number, text in enumerate(every)]
    documents = documents[: options.limit * 20 if options.limit else None]
    write_jsonl(options.work / "corpus.jsonl", documents)
    print(f"corpus: {len(documents):,} documents; {len(held_out):,} queries held out for dev")


def _expert(data: Path, train: dict[str, list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """A row for each thought that does not copy, with the positives of its query."""
    for collection, name in EXPERT.items():
        positives = {row["query"]: row["pos"] for row in train[name]}
        for entry in read_jsonl(data / "expert_thoughts" / f"{collection}.train.jsonl"):
            known = positives.get(entry["text"])
            if not known:  # held out for dev
                continue
            thoughts = [telegram(thought) for thought in entry["thoughts"]]
            kept = [each for each in thoughts if each and share_copied(each, known) <= MOST_COPIED]
            if kept:
                yield {"query": entry["text"], "pos": known, "all_thought": kept}


def _written(train: dict[str, list[dict[str, Any]]], draw: random.Random) -> Iterator[dict[str, Any]]:
    """What a passage says as a thought about its question: good to write, not to search with."""
    for name, share in WRITTEN.items():
        for row in train[name]:
            for passage in row["pos"]:
                thought = telegram(passage)
                if thought and draw.random() < share:
                    yield {"query": row["query"], "pos": [], "thought": thought}


def _write_dev(data: Path, folder: Path) -> set[str]:
    """Write the dev collection; return the texts of its queries."""
    draw = random.Random(1)
    documents: dict[str, dict[str, str]] = {}
    queries: dict[str, str] = {}
    judged: list[tuple[str, str, int]] = []
    for name in ("entailmentbank", *HELD_OUT):
        root = data / "eval" / name
        split = "dev" if name == "entailmentbank" else "train"
        qrels = _qrels(root / "qrels" / f"{split}.tsv")
        texts = {row["_id"]: row["text"] for row in read_jsonl(root / "queries.jsonl")}
        # Queries that the expert has thought about are too few to hold some out.
        path = data / "expert_thoughts" / f"{name}.train.jsonl"
        known = {entry["text"] for entry in read_jsonl(path)} if path.is_file() else set()
        chosen = sorted(query for query in qrels if query in texts and texts[query] not in known)
        if name in HELD_OUT:
            chosen = draw.sample(chosen, min(HELD_OUT[name], len(chosen)))
        relevant = {document for query in chosen for document in qrels[query]}
        corpus = read_jsonl(root / "corpus.jsonl")
        others = [row["_id"] for row in corpus if row["_id"] not in relevant]
        kept = relevant | set(draw.sample(others, min(DISTRACTORS, len(others))))
        for row in corpus:
            if row["_id"] in kept:
                key = f"{name}-{row['_id']}"
                documents[key] = {"_id": key, "title": row.get("title", ""), "text": row["text"]}
        for query in chosen:
            queries[f"{name}-{query}"] = texts[query]
            judged += [(f"{name}-{query}", f"{name}-{each}", grade) for each, grade in qrels[query].items()]
    judged = [each for each in judged if each[1] in documents]
    rows = [{"_id": key, "text": text} for key, text in queries.items()]
    write_collection(folder, documents=documents.values(), queries=rows, judgments=judged, split="dev")
    return set(queries.values())


def _qrels(path: Path) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        query, document, grade = line.split("\t")
        if int(grade) > 0:
            found.setdefault(query, {})[document] = int(grade)
    return found


if __name__ == "__main__":
    main()
