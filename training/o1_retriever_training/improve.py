"""Self-improvement: a model samples thoughts, a committee elects, the model is trained on them, again."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from o1_retriever.errors import SettingsError
from o1_retriever.reporting.text import counted
from o1_retriever_training.copies import separate_copies
from o1_retriever_training.ledger import write_whole
from o1_retriever_training.recipe import Contributor, Recipe
from o1_retriever_training.synthesize import Options, synthesize
from o1_retriever_training.vote import VoteRules, vote

if TYPE_CHECKING:
    from o1_retriever_training.joint.recipe import TrainRecipe

OWN = "own-thoughts"
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Improvement:
    """How a model improves on itself.

    `samples` thoughts are drawn for every query in each of at most `rounds`, warm enough to differ. A
    thought with more than `most_copied` of its content words in its row's positive teaches to write alone.
    """

    rounds: int = 3
    samples: int = 4
    temperature: float = 0.8
    top_p: float = 0.95
    max_tokens: int = 64
    committee: Sequence[Any] = ("bm25", "minilm")
    rules: VoteRules = field(default_factory=VoteRules)
    most_copied: float = 0.6
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rounds", "samples"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} is {getattr(self, name)}; expected at least 1.")
        if not 0 <= self.most_copied <= 1:
            raise SettingsError(f"most_copied is {self.most_copied}; expected a share from 0 to 1.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What a round came to: the model's folder, its dev figures, and how many thoughts were copies.

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
) -> list[Round]:
    """Sample, vote, train, and again while the recipe's dev figure improves; return the rounds.

    `recipe.model.base` is a model that thinks already, `pairs` are the queries and positives it thinks
    about; the recipe's own data is trained on beside them. Each round goes into a folder of its own below
    `out` and starts from the best model so far; `rounds.json` has the figures. The same call goes on where
    it was stopped. Raises `SettingsError` for a recipe without an evaluation, and what the stages raise.
    """
    if recipe.evaluation is None:
        raise SettingsError(
            "The recipe has no evaluation, so that nobody can tell whether a round was an improvement.",
            hint="Add evaluation: {collection: FOLDER, split: dev}.",
        )
    plan, options, work = plan or Improvement(), options or Options(), Path(out)
    work.mkdir(parents=True, exist_ok=True)
    figure = recipe.evaluation.figure
    best = Round(number=0, model=recipe.model.base, figures=_figures(recipe))
    say(f"{best.model}: {figure} {best.figures[figure]:.4f}")
    rounds = [best]
    for number in range(1, plan.rounds + 1):
        done = _round(recipe, pairs, work / f"round-{number}", best, plan, options)
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
    from o1_retriever_training.joint.recipe import TrainRecipe
    from o1_retriever_training.joint.run import train

    number = before.number + 1
    expert = LocalExpert.from_pretrained(before.model)
    sampling = Recipe(
        contributors=(Contributor(n=plan.samples),),
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
    fields = recipe.to_dict()
    fields["model"]["base"] = before.model
    fields["data"]["train"].insert(0, {"path": str(folder / "train.jsonl"), "name": OWN})
    fields["output"] = str(folder / "model")
    result = train(TrainRecipe.of(fields), show_progress_bar=options.show)
    return Round(number=number, model=str(result.output), figures=result.best or {}, copies=counts["copies"])


def _figures(recipe: TrainRecipe) -> dict[str, float]:
    """The dev figures of the model that a recipe begins with."""
    from o1_retriever.engine.load import LoadOptions, load_model
    from o1_retriever_training.joint.run import DevEvaluation

    assert recipe.evaluation is not None
    local = load_model(recipe.model.base, LoadOptions())
    template: Any = local.template
    found = DevEvaluation(recipe.evaluation)(local.model, template.tokenizer, template.config)
    return {name: value for name, value in found.items() if name != "seconds"}
