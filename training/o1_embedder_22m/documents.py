"""Rows of the second stage, mostly the collections' own documents: an index knows what it holds.

No judgment and no query of a test split is opened here. What a document says becomes a row in four ways:
the document itself, its sentences posed as queries, the document that a sentence names as the thought about
that sentence, and a statement's nearest other statement as the thought about it. Thoughts are telegrams.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

import bm25s
from sources import (
    MAX_THOUGHT_WORDS,
    SENTENCE_END,
    Row,
    cut_to_sentences,
    expert_rows,
    question_rows,
    read_jsonl,
    telegram,
    textbook_rows,
)

COLLECTIONS = ("entailmentbank", "strategyqa_facts", "hotpotqa_1k", "scifact", "qasc_2hop")
STATEMENTS = ("entailmentbank", "strategyqa_facts", "qasc_2hop")  # documents of one sentence
_NAME = r"[A-Z0-9]\w*(?:['’.-]\w+)*"
NAMED = re.compile(rf"{_NAME}(?: (?:of |the |and |de |in )*{_NAME})+")
QUESTIONS = ("{}", "Who or what is {}?", "What is known about {}?", "Tell me about {}.")
SENTENCES_A_DOCUMENT = 2
QUESTIONS_ABOUT = ("entailmentbank_train", "strategyqa_train", "hotpotqa_train500", "scifact_train")
ANSWERED = {"squad_nqg_sentences": 0.4, "qamr": 0.5, "openstax_glossary": 0.2, "openstax_qa": 0.8}  # shares
REHEARSED_WORDS = 250_000  # of textbooks
NEIGHBOURS = 4  # a statement's thought is one of so many


def all_rows(data: Path, seed: int, held_out: frozenset[str]) -> list[Row]:
    """Every row of the second stage, shuffled: documents, questions about them, some plain English."""
    rng = random.Random(seed)
    rows = list(document_rows(data, rng))
    for name in QUESTIONS_ABOUT:
        rows += question_rows(data / "train" / f"{name}.jsonl.gz", rng, held_out)
    rows += expert_rows(data, held_out)
    for name, share in ANSWERED.items():
        answered = list(question_rows(data / "train" / f"{name}.jsonl.gz", rng, held_out))
        rows += rng.sample(answered, round(share * len(answered)))
    rows += textbook_rows(data, rng, REHEARSED_WORDS)
    rows = [Row(row.kind, row.text, telegram(row.thought)) for row in rows]
    rows = [row for row in rows if row.thought or row.kind != "thinking"]
    rng.shuffle(rows)
    return rows


def document_rows(data: Path, rng: random.Random) -> Iterator[Row]:
    """All rows that the documents of the five collections give."""
    seen: set[str] = set()
    for name in COLLECTIONS:
        documents = [(row.get("title") or "", row["text"]) for row in _corpus(data, name)]
        fresh = [each for each in documents if " ".join(each) not in seen]
        seen |= {" ".join(each) for each in fresh}
        yield from (Row("document", f"{title} {text}".strip()) for title, text in fresh)
        if name in STATEMENTS:
            yield from _neighbour_rows([text for _, text in fresh], rng)
        else:
            yield from _sentence_rows(fresh, rng)
            yield from _naming_rows(fresh, rng)


def corpus_texts(data: Path) -> list[str]:
    """The documents' texts with their titles: the vocabulary is to have their words."""
    rows = (row for name in COLLECTIONS for row in _corpus(data, name))
    return [f"{row.get('title') or ''} {row['text']}".strip() for row in rows]


def _corpus(data: Path, name: str) -> list[dict[str, str]]:
    return read_jsonl(data / "eval" / name / "corpus.jsonl")


def _sentences(text: str) -> list[str]:
    return [each for each in SENTENCE_END.split(" ".join(text.split())) if 5 <= len(each.split()) <= 48]


def _sentence_rows(documents: list[tuple[str, str]], rng: random.Random) -> Iterator[Row]:
    """Sentences as queries, and titles with what the document says first as the thought about them."""
    for title, text in documents:
        found = _sentences(text)
        for sentence in rng.sample(found, min(SENTENCES_A_DOCUMENT, len(found))):
            yield Row("query", sentence)
        thought = cut_to_sentences(text, MAX_THOUGHT_WORDS)
        if title and thought:
            yield Row("thinking", rng.choice(QUESTIONS).format(title), thought)


def _naming_rows(documents: list[tuple[str, str]], rng: random.Random) -> Iterator[Row]:
    """A sentence that names another document's title, and what that document says: the second hop."""
    by_name = {re.sub(r" \(.*\)$", "", title): (title, text) for title, text in documents if " " in title}
    for title, text in documents:
        for sentence in _sentences(text):
            for name in dict.fromkeys(NAMED.findall(sentence)):
                other = by_name.get(name)
                if other and other[0] != title and (thought := cut_to_sentences(other[1], MAX_THOUGHT_WORDS)):
                    about = f"{title}: {sentence}" if rng.random() < 0.5 else sentence
                    yield Row("thinking", about, thought)


def _neighbour_rows(statements: list[str], rng: random.Random) -> Iterator[Row]:
    """A statement, and one that shares rare words with it as the thought."""
    tokens = bm25s.tokenize(statements, stopwords="en", show_progress=False)
    index = bm25s.BM25()
    index.index(tokens, show_progress=False)
    nearest, _ = index.retrieve(tokens, k=NEIGHBOURS + 1, show_progress=False)
    for number, found in enumerate(nearest):
        others = [int(each) for each in found if int(each) != number]
        yield Row("thinking", statements[number], statements[rng.choice(others)])
