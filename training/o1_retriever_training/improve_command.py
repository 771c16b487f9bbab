"""`o1-retriever improve`: rounds of sampling, voting and training, as long as a dev figure improves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from o1_retriever.cli.options import with_options
from o1_retriever.cli.terminal import messages
from o1_retriever.extras import require
from o1_retriever_training.expert_options import quiet


@with_options
def improve(
    recipe: Annotated[Path, typer.Argument(help="Recipe (YAML) whose base model thinks already.")],
    *,
    pairs: Annotated[str, typer.Option("--pairs", help="Queries and positives to think about.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the rounds; the same command goes on.")],
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe.")
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", help="At most so many.")] = 3,
    samples: Annotated[int, typer.Option("--samples", help="Thoughts per query and round.")] = 4,
    temperature: Annotated[float, typer.Option("--temperature", help="How far they differ.")] = 0.8,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="The longest thought.")] = 64,
    committee: Annotated[str, typer.Option("--committee", help="Who elects: names with commas.")] = (
        "bm25,minilm"
    ),
) -> None:
    """Have a model sample thoughts, a committee elect some, and train it on them, while that helps."""
    for module in ("pydantic", "yaml"):
        require(module, extra="train", purpose="Training")
    from o1_retriever_training.improve import Improvement
    from o1_retriever_training.improve import improve as run
    from o1_retriever_training.joint.recipe import read_train_recipe

    quiet()
    # `output` is each round's own.
    said = read_train_recipe(recipe, [*(changes or []), f"output={out}"])
    plan = Improvement(
        rounds=rounds,
        samples=samples,
        temperature=temperature,
        max_tokens=max_tokens,
        committee=[name.strip() for name in committee.split(",") if name.strip()],
    )
    found = run(said, pairs, out, plan=plan, say=lambda text: messages().print(text, soft_wrap=True))
    best = [each for each in found if each.improved][-1]
    messages().print(f"Best: {best.model} (round {best.number})", soft_wrap=True)
