"""Turn the raw text and training pairs into rows: documents, queries, and queries with a thought.

Only `text/`, `train/` and `expert_thoughts/*.train.jsonl` are ever opened here: nothing of a split
named dev or test can reach the model.
"""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal["document", "query", "thinking"]

SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
MAX_THOUGHT_WORDS = 56
ANSWERS_A_QUESTION = 2
EXPERT_REPEATS = 4  # the only thoughts written without their passage, and a few thousand in all

# Share of a file's thoughts that is used; worked sums and shell commands are far from retrieval thoughts.
THOUGHT_SHARE = {"gsm8k_train": 0.25, "tldr": 0.3, "openstax_glossary": 0.7}
TEXTBOOK_WORDS, DICTIONARY_SHARE = 3_600_000, 0.6
# Share of a file's passages that is used: glossary passages repeat `text/`, tldr pages repeat each other.
PASSAGE_SHARE = {"openstax_glossary": 0.15, "openstax_qa": 0.15, "tldr": 0.15}


@dataclass(frozen=True)
class Row:
    """One training example: a document, a query, or a query with the thought it should lead to."""

    kind: Kind
    text: str
    thought: str = ""


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All objects of a JSON-lines file, gzipped or not."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write objects as JSON lines; returns how many."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def require_data(data: Path) -> None:
    """Raise with what to do when the data folder is absent or incomplete."""
    missing = [name for name in ("text", "train", "expert_thoughts") if not (data / name).is_dir()]
    if missing:
        raise SystemExit(
            f"Training data not found: {data} has no {', '.join(missing)}. "
            "Point --data at the folder that holds text/, train/, expert_thoughts/ and eval/."
        )


def cut_to_sentences(text: str, max_words: int) -> str:
    """The longest run of whole leading sentences within `max_words`; "" when the first is longer."""
    kept: list[str] = []
    words = 0
    for sentence in SENTENCE_END.split(" ".join(text.split())):
        words += len(sentence.split())
        if words > max_words:
            break
        kept.append(sentence)
    return " ".join(kept)


def chunks(text: str, rng: random.Random) -> Iterator[str]:
    """Consecutive pieces of whole sentences: mostly one or two, sometimes a paragraph, a few long ones."""

    def length() -> int:
        return rng.randint(*rng.choices(((8, 36), (36, 100), (100, 185)), weights=(0.62, 0.26, 0.12))[0])

    piece: list[str] = []
    words, wanted = 0, length()
    for sentence in SENTENCE_END.split(" ".join(text.split())):
        piece.append(sentence)
        words += len(sentence.split())
        if words >= wanted:
            yield " ".join(piece)
            piece, words, wanted = [], 0, length()
    if words >= 5:
        yield " ".join(piece)


def textbook_rows(data: Path, rng: random.Random, max_words: int) -> Iterator[Row]:
    """Pieces of textbook sections; some start with the section's title, some are posed as queries."""
    sections = read_jsonl(data / "text" / "openstax_sections.jsonl.gz")
    rng.shuffle(sections)
    words = 0
    for section in sections:
        for piece in chunks(section["text"], rng):
            length = len(piece.split())
            if length > 260:  # an unsplittable table or list
                continue
            words += length
            if length < 40 and rng.random() < 0.2:
                yield Row("query", piece)
            else:
                title = f"{section['section']} " if rng.random() < 0.35 else ""
                yield Row("document", title + piece)
        if words > max_words:
            return


def dictionary_rows(data: Path, rng: random.Random) -> Iterator[Row]:
    """Dictionary entries as documents, and nouns as "What is ...?" with the gloss as the thought."""
    for entry in read_jsonl(data / "text" / "wordnet_glosses.jsonl.gz"):
        if rng.random() > DICTIONARY_SHARE:
            continue
        word, gloss = entry["words"][0], entry["gloss"]
        noun = entry["pos"] == "n" and len(gloss.split()) >= 5
        if noun and rng.random() < 0.3:
            question = rng.choice(("What is {}?", "what is {}", "Define {}.", "{}", "What does {} mean?"))
            yield Row("thinking", question.format(word), f"{word} is {gloss}.")
        else:
            examples = ". ".join(str(e) for e in entry.get("examples", [])[:2])
            yield Row("document", f"{', '.join(entry['words'][:3])}: {gloss}. {examples}".strip())


def pair_thought(name: str, row: dict[str, Any]) -> str:
    """The row's thought, cut to whole sentences; a glossary definition gets its term in front."""
    thought = cut_to_sentences(str(row.get("thought") or ""), MAX_THOUGHT_WORDS)
    term = re.fullmatch(r"What is (.+)\?", row["query"]) if name == "openstax_glossary" else None
    return f"{term.group(1)} is {thought}." if term and thought else thought


def pair_rows(path: Path, rng: random.Random) -> Iterator[Row]:
    """Queries, thoughts and positive passages of one file of `train/`."""
    name = path.name.removesuffix(".jsonl.gz")
    seen: set[str] = set()
    for row in read_jsonl(path):
        thought = pair_thought(name, row)
        if thought and rng.random() < THOUGHT_SHARE.get(name, 1.0):
            yield Row("thinking", row["query"], thought)
        elif rng.random() < PASSAGE_SHARE.get(name, 1.0):
            yield Row("query", row["query"])
        for passage in row["pos"]:
            if passage not in seen and rng.random() < PASSAGE_SHARE.get(name, 1.0):
                seen.add(passage)
                yield Row("document", passage)


def expert_rows(data: Path, held_out: frozenset[str] = frozenset()) -> Iterator[Row]:
    """Every thought a strong model wrote for the train queries, repeated."""
    for path in sorted((data / "expert_thoughts").glob("*.train.jsonl")):
        for entry in read_jsonl(path):
            for thought in entry["thoughts"] if entry["text"] not in held_out else []:
                for _ in range(EXPERT_REPEATS):
                    yield Row("thinking", entry["text"], thought)


def english_rows(data: Path, seed: int) -> list[Row]:
    """Every row of the first stage, plain English and pairs, shuffled."""
    rng = random.Random(seed)
    rows = list(textbook_rows(data, rng, TEXTBOOK_WORDS))
    rows += dictionary_rows(data, rng)
    for path in sorted((data / "train").glob("*.jsonl.gz")):
        rows += pair_rows(path, rng)
    rows += expert_rows(data)
    rng.shuffle(rows)
    return rows


def question_rows(path: Path, rng: random.Random, held_out: frozenset[str]) -> Iterator[Row]:
    """Queries of one file with their thought, and with a part of what answers them as the thought."""
    for row in read_jsonl(path):
        if row["query"] in held_out or not row["pos"]:
            continue
        if written := cut_to_sentences(str(row.get("thought") or ""), MAX_THOUGHT_WORDS):
            yield Row("thinking", row["query"], written)
        for _ in range(ANSWERS_A_QUESTION):
            if answer := cut_to_sentences(rng.choice(row["pos"]), MAX_THOUGHT_WORDS):
                yield Row("thinking", row["query"], answer)


# Thoughts as a small model can write them: ten million parameters do not write true sentences. What a
# thought is for, the words of the passage that is looked for, they can learn, and every token that is no
# function word is one of those.
MOST_WORDS = 14
WORD = re.compile(r"[^\W_]+(?:['’.-][^\W_]+)*")
FUNCTION_WORDS = frozenset(
    WORD.findall("""
    a about above after again against all also although always among an and another any are as at be
    because become becomes been before being below between both but by came can cannot come could
    did do does doing done down due during each either else etc even ever every few for from further
    get gets given gives go goes had has have having he hence her here hers him his how however i if
    in including instead into is it its itself just kind kinds known least less let like made make
    makes many may me means might more most much must my neither no nor not now of off often on once
    one only onto or other others our out over own part per quite rather same several shall she
    should since so some something such than that the their them themselves then there therefore
    these they thing things this those though through thus to together too toward under until up
    upon us use used uses using usually very via was way we well were what when where whether which
    while who whom whose why will with within without would yet you your
    """)
)


def telegram(text: str) -> str:
    """The first `MOST_WORDS` different words of `text` that are no function words."""
    words = dict.fromkeys(word.lower() for word in WORD.findall(text))
    return " ".join([word for word in words if word not in FUNCTION_WORDS][:MOST_WORDS])
