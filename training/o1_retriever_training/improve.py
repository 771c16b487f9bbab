"""Self-improvement: a model samples thoughts, the best are chosen, the model is trained on them, again.

A committee elects those of a model that thinks and embeds; those of a thinker beside an encoder are rewarded
by what they do for retrieval. Thoughts that only repeat their document are good to learn to write by, and
bad to learn to search by: they are kept from the thinking vector.

As LREM rewards thoughts by what retrieval does with them, here a thought is worth how far it brings a
question's passages to the front of an index whose vectors do not change. For a question q with passages D,
r(d | q) the rank of d from 0, and a thought t:

    gain(q, t)   = mean over d in D, and over vectors and BM25, of log (1 + r(d | q)) / (1 + r(d | q, t))
    reward(q, t) = gain(q, t) - max(0, gain(q, u)) - per_token * max(0, |t| - longest)

where u is a thought about another question: what any thought gains is not worth anything.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from o1_retriever.embedder import ThinkingEmbedder
from o1_retriever.encoders import as_encoder
from o1_retriever.errors import SettingsError
from o1_retriever.evaluation.collection import (
    Collection,
    CollectionReport,
    Corpus,
    encode_corpus,
    load_collection,
    read_qrels,
    read_queries,
    splits_of,
)
from o1_retriever.evaluation.systems import bm25_over
from o1_retriever.ranking.bm25 import Reading, content_words
from o1_retriever.reporting import counted, progress
from o1_retriever.thinkers import LocalThinker
from o1_retriever.thought import Thought, ThoughtSettings, Vector
from o1_retriever.vectors import unit
from o1_retriever_training.ledger import write_whole, writing_whole
from o1_retriever_training.recipe import Contributor, Recipe
from o1_retriever_training.rows import DataError, TrainingRow, plain_text, read_rows
from o1_retriever_training.synthesize import Options, synthesize
from o1_retriever_training.vote import VoteRules, vote

if TYPE_CHECKING:
    from o1_retriever_training.joint.recipe import TrainRecipe
    from o1_retriever_training.joint.run import TrainResult

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
        rewards = [reward for reward, _ in known]
        # The mean of equal rewards may be rounded up.
        least = max(rules.least, min(float(np.mean(rewards)), max(rewards)) if known else 0.0)
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


OWN = "own-thoughts"
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Improvement:
    """How a model improves on itself.

    `samples` thoughts (None: 4, of a thinker 8) are drawn for every query in each of at most `rounds`, warm
    enough to differ. A thought with more than `most_copied` of its content words in its row's positive
    teaches to write alone. A thinker's are rewarded by `rewards`.
    """

    rounds: int = 3
    samples: int | None = None
    temperature: float = 0.8
    top_p: float = 0.95
    max_tokens: int = 64
    committee: Sequence[Any] = ("bm25", "minilm")
    rules: VoteRules = field(default_factory=VoteRules)
    most_copied: float = 0.6
    rewards: RewardRules = field(default_factory=RewardRules)
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rounds", "samples"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise SettingsError(f"{name} is {count}; expected at least 1.")
        if not 0 <= self.most_copied <= 1:
            raise SettingsError(f"most_copied is {self.most_copied}; expected a share from 0 to 1.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What a round came to: the model's folder, its dev figures, and how many thoughts were copies.

    A thinker's `copies` are 0: its thoughts are embedded by an encoder that does not learn.

    Round 0 is the model that it began with.
    """

    number: int
    model: str
    figures: dict[str, float]
    copies: int = 0
    improved: bool = True


def improve(
    recipe: TrainRecipe,
    pairs: str | Path,
    out: str | Path,
    *,
    plan: Improvement | None = None,
    options: Options | None = None,
    say: Say = lambda text: None,
    encoder: Any = None,
) -> list[Round]:
    """Sample, vote or reward, train, and again while the recipe's dev figure improves; return the rounds.

    `recipe.model.base` is a model that thinks already, `pairs` are the queries and positives it thinks
    about; the recipe's own data is trained on beside them. Each round goes into a folder of its own below
    `out` and starts from the best model so far; `rounds.json` has the figures. The same call goes on where
    it was stopped.

    A thinker (layout chat) is rewarded on the evaluation's collection by ranks of the pairs' positives, for
    queries that it was not trained on: those in the recipe's own data and in the rounds before are left out,
    and so are the collection's own queries, but for those of its split `train`. `encoder` stands for the one
    that the evaluation names. The rounds end where nothing is left to think about. Raises `SettingsError` for
    a recipe without an evaluation, `DataError` where there is nothing to begin with, and what the stages
    raise.
    """
    if recipe.evaluation is None:
        raise SettingsError(
            "The recipe has no evaluation, so that nobody can tell whether a round was an improvement.",
            hint="Add evaluation: {collection: FOLDER, split: dev}.",
        )
    plan, options, work = plan or Improvement(), options or Options(), Path(out)
    work.mkdir(parents=True, exist_ok=True)
    figure = recipe.evaluation.figure
    best = Round(number=0, model=recipe.model.base, figures=_figures(recipe, encoder))
    say(f"{best.model}: {figure} {best.figures[figure]:.4f}")
    rounds = [best]
    for number in range(1, plan.rounds + 1):
        folder = work / f"round-{number}"
        if recipe.model.layout == "chat":
            counts = _reward(recipe, pairs, folder, best, plan, options, encoder)
            asked = counted(counts["questions"], "query", "queries")
            say(f"{counted(counts['rows'], 'thought')} about {asked} are worth learning")
            if not counts["rows"]:
                break
            result = _trained(recipe, best, folder, options, encoder)
            done = Round(number=number, model=str(result.output), figures=result.best or {})
        else:
            done = _round(recipe, pairs, folder, best, plan, options)
        improved = done.figures[figure] > best.figures[figure]
        rounds.append(replace(done, improved=improved))
        write_whole(work / "rounds.json", json.dumps([asdict(each) for each in rounds], indent=1) + "\n")
        copies = counted(done.copies, "copy", "copies")
        say(f"{done.model}: {figure} {done.figures[figure]:.4f}, {copies} set apart")
        if not improved:
            break
        best = rounds[-1]
    return rounds


def _round(
    recipe: TrainRecipe,
    pairs: str | Path,
    folder: Path,
    before: Round,
    plan: Improvement,
    options: Options,
) -> Round:
    from o1_retriever_training.experts import LocalExpert

    number = before.number + 1
    expert = LocalExpert.from_pretrained(before.model)
    sampling = Recipe(
        contributors=(Contributor(n=plan.samples or 4),),
        seed=plan.seed + number,
        temperature=plan.temperature,
        top_p=plan.top_p,
        max_tokens=plan.max_tokens,
        examples=0,
    )
    thoughts, voted = folder / "thoughts.jsonl", folder / "voted.jsonl"
    synthesize(pairs, thoughts, experts=expert, recipe=sampling, options=options)
    del expert  # its memory is the next stage's
    vote(thoughts, voted, committee=plan.committee, rules=plan.rules, show=options.show)
    counts = separate_copies(voted, folder / "train.jsonl", most=plan.most_copied)
    result = _trained(recipe, before, folder, options)
    return Round(number=number, model=str(result.output), figures=result.best or {}, copies=counts["copies"])


def _trained(
    recipe: TrainRecipe, before: Round, folder: Path, options: Options, encoder: Any = None
) -> TrainResult:
    """Train on a round's thoughts beside the recipe's own data."""
    from o1_retriever_training.joint.recipe import TrainRecipe
    from o1_retriever_training.joint.run import train

    fields = recipe.to_dict()
    fields["model"]["base"] = before.model
    fields["data"]["train"].insert(0, {"path": str(folder / "train.jsonl"), "name": OWN})
    fields["output"] = str(folder / "model")
    return train(TrainRecipe.of(fields), show_progress_bar=options.show, teacher=encoder)


def _reward(
    recipe: TrainRecipe,
    pairs: str | Path,
    folder: Path,
    before: Round,
    plan: Improvement,
    options: Options,
    encoder: Any,
) -> dict[str, int]:
    """Rate a thinker's thoughts about queries that it was not trained on, write the best, and count them."""
    counts = folder / "counts.json"
    if not counts.is_file():
        section: Any = recipe.evaluation
        collection = load_collection(section.collection, split=section.split)
        earlier = [
            folder.parent / f"round-{number}" / "train.jsonl" for number in range(1, before.number + 1)
        ]
        questions = _unseen(recipe, pairs, collection, earlier)
        if not questions:
            return {"questions": 0, "refused": 0, "rows": 0}
        folder.mkdir(parents=True, exist_ok=True)
        embedder = ThinkingEmbedder.from_parts(
            LocalThinker(before.model), as_encoder(encoder or section.encoder), cache=folder / "thoughts"
        )
        encoded = encode_corpus(embedder, collection.corpus, folder.parent / "vectors")
        sampling = embedder.settings.with_changes(
            n_thoughts=plan.samples or 8,
            temperature=plan.temperature,
            top_p=plan.top_p,
            max_new_tokens=plan.max_tokens,
            seed=plan.seed + before.number + 1,
        )
        reward = Reward(embedder, collection.corpus, encoded.matrix, plan.rewards)
        rated = list(reward.rated(questions, sampling, show=options.show))
        write_whole(counts, json.dumps(write_rewarded(rated, folder, plan.rewards)) + "\n")
    found: dict[str, int] = json.loads(counts.read_text(encoding="utf-8"))
    return found


def _unseen(
    recipe: TrainRecipe, pairs: str | Path, collection: Collection, earlier: Sequence[Path] = ()
) -> dict[str, list[int]]:
    """The pairs' queries with the places of their positives; not what is trained on, nor measured by.

    `earlier` are the rows of the rounds before. Raises `DataError` where nothing is left for the first.
    """
    trained: list[str | Path] = [*(source.path for source in recipe.data.train), *earlier]
    seen = {plain_text(row.query) for path in trained for row in read_rows(path)}
    seen |= {plain_text(text) for text in [*collection.queries.values(), *_measuring(collection)]}
    texts = collection.corpus.texts(0, len(collection.corpus.ids))
    places = {plain_text(text): place for place, text in enumerate(texts)}
    found: dict[str, list[int]] = {}
    for row in read_rows(pairs):
        known = sorted({places[key] for key in map(plain_text, row.pos) if key in places})
        if known and plain_text(row.query) not in seen:
            found.setdefault(row.query, known)
    if not found and not earlier:
        raise DataError(
            f"Found no query in {pairs} that has a passage of {collection.corpus.path}, was not trained on "
            "and is not kept for measuring there.",
            hint="Keep pairs for the reward out of data.train: a thinker remembers what it was trained on.",
        )
    return found


def _measuring(collection: Collection) -> list[str]:
    """The collection's queries of every split, but those that are judged in its split `train` alone."""
    folder, report = collection.corpus.path.parent, CollectionReport(collection.name)
    judged = {split: {*read_qrels(folder / "qrels" / f"{split}.tsv", report)} for split in splits_of(folder)}
    to_train = judged.pop("train", set()).difference(*judged.values())
    queries = read_queries(folder / "queries.jsonl", report)
    return [text for name, text in queries.items() if name not in to_train]


def _figures(recipe: TrainRecipe, encoder: Any = None) -> dict[str, float]:
    """The dev figures of the model that a recipe begins with."""
    from o1_retriever_training.joint.run import DevEvaluation

    assert recipe.evaluation is not None
    evaluation, base = DevEvaluation(recipe.evaluation, encoder), recipe.model.base
    if evaluation.encoder is not None:
        thinker = LocalThinker(base)
        found = evaluation.of(ThinkingEmbedder.from_parts(thinker, evaluation.encoder, cache=False))
    else:
        found = evaluation.of(ThinkingEmbedder.from_pretrained(base, cache=False))
    return {name: value for name, value in found.items() if name != "seconds"}


def share_copied(thought: str, documents: list[str]) -> float:
    """The share of a thought's different content words (stems) that stand in one of the documents, 0 to 1.

    The document that has most of them counts; 0 for a thought without a content word.
    """
    words, *others = [set(row) for row in content_words([thought, *documents])]
    if not words:
        return 0.0
    return max((len(words & other) / len(words) for other in others), default=0.0)


def split_copies(row: TrainingRow, most: float) -> list[TrainingRow]:
    """The row; or, where its thought copies more than `most` of a positive, one for each of the losses.

    The first then trains the vectors without a thought, the second the writing of the thought alone.
    """
    if not row.thought or not row.pos or share_copied(row.thought, row.pos) <= most:
        return [row]
    bare = row.model_copy(update={"thought": None, "all_thought": [], "key": None})
    written = row.model_copy(
        update={"pos": [], "neg": [], "pos_scores": None, "neg_scores": None, "key": None}
    )
    return [bare, written]


def separate_copies(source: str | Path, out: str | Path, *, most: float = 0.6) -> dict[str, int]:
    """Write the rows of `source` with copying thoughts kept from the thinking vector; return the counts."""
    counts = {"rows": 0, "copies": 0}

    def lines() -> Iterator[str]:
        for row in read_rows(source):
            parts = split_copies(row, most)
            counts["rows"] += 1
            counts["copies"] += len(parts) > 1
            yield from (part.line() for part in parts)

    with writing_whole(Path(out)) as file:
        file.writelines(lines())
    return counts
