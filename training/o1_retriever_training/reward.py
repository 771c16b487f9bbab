"""What a thought is worth: how far it brings a question's passages to the front of an index.

As LREM rewards thoughts by what retrieval does with them, here by ranks in an index whose vectors do not
change. For a question q with passages D, r(d | q) the rank of d from 0, and a thought t:

    gain(q, t)   = mean over d in D, and over vectors and BM25, of log (1 + r(d | q)) / (1 + r(d | q, t))
    reward(q, t) = gain(q, t) - max(0, gain(q, u)) - per_token * max(0, |t| - longest)

where u is a thought about another question: what any thought gains is not worth anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from o1_retriever.embedder import ThinkingEmbedder
from o1_retriever.errors import SettingsError
from o1_retriever.evaluation.collection import Corpus
from o1_retriever.evaluation.systems import bm25_over
from o1_retriever.ranking.bm25 import Reading, content_words
from o1_retriever.reporting import progress
from o1_retriever.thought import Thought, ThoughtSettings, Vector
from o1_retriever.vectors import unit
from o1_retriever_training.ledger import writing_whole

_AT_ONCE = 32  # questions that are thought about together
_FEWEST = 3  # content words of a thought that says something
_LOOPS = 0.5  # of its content words at least so many are different ones


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardRules:
    """How thoughts are rewarded, and which of a question's are learned from.

    Ranks are counted up to `depth`. A thought of more than `longest` tokens pays `per_token` for each of the
    others. Of a question's thoughts at most `kept` are learned: those with a reward of at least `least` that
    is not below the mean of its thoughts.
    """

    depth: int = 1000
    longest: int = 32
    per_token: float = 0.01
    least: float = 0.1
    kept: int = 2

    def __post_init__(self) -> None:
        for name in ("depth", "longest", "kept"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} is {getattr(self, name)}; expected at least 1.")
        if self.per_token < 0:
            raise SettingsError(f"per_token is {self.per_token}; expected 0 or more.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rated:
    """A question with what was thought about it. `rewards` has None for a thought that is refused."""

    query: str
    thoughts: tuple[str, ...]
    rewards: tuple[float | None, ...]

    def best(self, rules: RewardRules) -> list[str]:
        """The thoughts that are learned from, the best first, each text once."""
        both = zip(self.thoughts, self.rewards, strict=True)
        known = [(reward, text) for text, reward in both if reward is not None]
        least = max(rules.least, float(np.mean([reward for reward, _ in known])) if known else 0.0)
        chosen = [text for reward, text in sorted(known, reverse=True) if reward >= least]
        return list(dict.fromkeys(chosen))[: rules.kept]


class Reward:
    """Rates thoughts by an index's vectors (documents, dimension) and by BM25 over its texts."""

    def __init__(
        self, embedder: ThinkingEmbedder, corpus: Corpus, matrix: Vector, rules: RewardRules | None = None
    ) -> None:
        self._embedder, self._matrix = embedder, matrix
        self._bm25 = bm25_over(corpus)
        self._rules = rules or RewardRules()

    def rated(
        self, questions: Mapping[str, Sequence[int]], settings: ThoughtSettings, *, show: bool | None = None
    ) -> Iterator[Rated]:
        """Questions, each with the places of its passages, with the thoughts that are sampled about them."""
        settings = settings.with_changes(thinking="always")
        with progress("Rating thoughts", len(questions), show=show) as advance:
            names = list(questions)
            starts = [*range(0, len(names), _AT_ONCE)]
            if len(starts) > 1 and len(names) - starts[-1] == 1:
                starts.pop()  # nothing is another question's thought to a question that is alone
            for first, end in zip(starts, [*starts[1:], len(names)], strict=True):
                part = {name: questions[name] for name in names[first:end]}
                yield from self._part(part, settings)
                advance(len(part))

    def _part(self, questions: dict[str, Sequence[int]], settings: ThoughtSettings) -> Iterator[Rated]:
        queries = list(questions)
        never = settings.with_changes(thinking="never")
        own = [each.vector for each in self._embedder.embed_queries(queries, settings=never)]
        written = self._embedder.think(queries, settings=settings)
        for place, query in enumerate(queries):
            others = [*written[place + 1 :], *written[:place]]
            after = next((thought for row in others for thought in row if not thought.failed), None)
            thoughts = [*written[place], *([after] if after is not None else [])]
            gains = self._gains(query, questions[query], own[place], thoughts, settings.weight())
            control = max(0.0, gains.pop() or 0.0) if after is not None else 0.0
            rewards = [
                None if gain is None or refused(thought, query) else self._reward(gain - control, thought)
                for gain, thought in zip(gains, written[place], strict=True)
            ]
            texts = tuple(thought.text for thought in written[place])
            yield Rated(query=query, thoughts=texts, rewards=tuple(rewards))

    def _reward(self, advantage: float, thought: Thought) -> float:
        rules = self._rules
        return advantage - rules.per_token * max(0, (thought.completion_tokens or 0) - rules.longest)

    def _gains(
        self, query: str, relevant: Sequence[int], own: Vector, thoughts: Sequence[Thought], weight: float
    ) -> list[float | None]:
        """The gain of each thought; None for one that could not be had."""
        usable = [place for place, thought in enumerate(thoughts) if not thought.failed]
        pairs = [(query, thoughts[place]) for place in usable]
        before = [own @ self._matrix.T, self._bm25.scores(query)]
        found: list[float | None] = [None] * len(thoughts)
        for place, raw in self._embedder.backend.embed_queries(pairs, batch_size=None):
            thought = thoughts[usable[place]]
            vector = unit(weight * own + unit(raw[None]))[0]
            after = [vector @ self._matrix.T, self._bm25.scores(Reading.of(query, [thought]))]
            found[usable[place]] = float(np.mean([*map(self._moved, before, after, [relevant] * 2)]))
        return found

    def _moved(self, before: Vector, after: Vector, relevant: Sequence[int]) -> float:
        """How far the relevant documents come to the front, in natural logarithms of 1 + rank."""
        first, then = (self._ranks(scores, relevant) for scores in (before, after))
        return float(np.mean(np.log1p(first) - np.log1p(then)))

    def _ranks(self, scores: Vector, relevant: Sequence[int]) -> Vector:
        ranks = [min(int((scores > scores[place]).sum()), self._rules.depth) for place in relevant]
        return np.asarray(ranks, np.float32)


def refused(thought: Thought, query: str) -> bool:
    """Whether a thought says nothing: not ended, a loop, next to no words, or none that the query lacks."""
    words, asked = content_words([thought.text, query])
    different = {*words}
    says = len(different) >= _FEWEST and bool(different - {*asked})
    return thought.finish != "eos" or not says or len(different) < _LOOPS * len(words)


def write_rewarded(rated: Sequence[Rated], folder: Path, rules: RewardRules) -> dict[str, int]:
    """Write what was rated, and the rows that are learned from; return the counts.

    `rewards.jsonl` has every thought with its reward, `train.jsonl` a row for each that was chosen.
    """
    with writing_whole(folder / "rewards.jsonl") as file:
        for each in rated:
            line = {"query": each.query, "all_thought": each.thoughts, "rewards": each.rewards}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    rows = [(each.query, text) for each in rated for text in each.best(rules)]
    with writing_whole(folder / "train.jsonl") as file:
        for query, text in rows:
            line = {"query": query, "thought": text, "type": "reward"}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    refusals = sum(reward is None for each in rated for reward in each.rewards)
    return {"questions": len(rated), "refused": refusals, "rows": len(rows)}
