"""Self-improvement: a model samples thoughts, the best are chosen, the model is trained on them, again.

A committee elects those of a model that thinks and embeds; those of a thinker beside an encoder are rewarded
by what they do for retrieval (`reward.py`). Thoughts that only repeat their document are good to learn to
write by, and bad to learn to search by: they are kept from the thinking vector.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from o1_retriever.embedder import ThinkingEmbedder
from o1_retriever.encoders import as_encoder
from o1_retriever.errors import SettingsError
from o1_retriever.evaluation.collection import (
    Collection,
    CollectionReport,
    encode_corpus,
    load_collection,
    read_qrels,
    read_queries,
    splits_of,
)
from o1_retriever.ranking.bm25 import content_words
from o1_retriever.reporting import counted
from o1_retriever.thinkers import LocalThinker
from o1_retriever_training.ledger import write_whole, writing_whole
from o1_retriever_training.recipe import Contributor, Recipe
from o1_retriever_training.reward import Reward, RewardRules, write_rewarded
from o1_retriever_training.rows import DataError, TrainingRow, plain_text, read_rows
from o1_retriever_training.synthesize import Options, synthesize
from o1_retriever_training.vote import VoteRules, vote

if TYPE_CHECKING:
    from o1_retriever_training.joint.recipe import TrainRecipe
    from o1_retriever_training.joint.run import TrainResult

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
