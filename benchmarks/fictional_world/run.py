"""What thinking is worth in the fictional world, and what each part of the training is worth.

Run from the repository's root:

    python -m benchmarks.fictional_world.run [--only two_hop|ablation] [--work FOLDER]
    python -m benchmarks.quality.pages      # then the tables and the picture of docs/ follow the figures

Two trainings by training/recipes/fictional-world.yaml are measured on held-out two-hop questions of the split
test; those of the table, smaller and without an evaluation between, on dev. One thread, about an hour in all:
what was trained before is taken from the work folder, and a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.fictional_world.measuring import MEASURE, measure_world
from benchmarks.fictional_world.variants import ABLATIONS, FULL, PROMISED, SMALL, Size, Variant
from benchmarks.fictional_world.world import WorldSettings
from benchmarks.fictional_world.writing import WorldReport, write_world
from benchmarks.record import RESULTS, ROOT, Figure, record
from o1_retriever.cache import default_cache_path
from o1_retriever.cli.models import quiet
from o1_retriever.thought import ThoughtSettings

RECIPE = ROOT / "training" / "recipes" / "fictional-world.yaml"


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, measure, record and print."""
    options = _options(arguments)
    quiet()
    _one_thread()
    for name, figures in {"two_hop": two_hop, "ablation": ablations}.items():
        if options.only in (None, name):
            for figure in figures(options.work / name):
                record(options.results, [figure], used="1 thread")
                print(f"{figure.name}: {figure.value:g} {figure.unit}", flush=True)
    return 0


def two_hop(work: Path, size: Size = FULL) -> Iterator[Figure]:
    """The three figures of the recipe, on the split test."""
    world = written(work, size)
    joint = measure_world(trained(work, world, PROMISED["joint"], size), world.collection, split="test")
    other = trained(work, world, PROMISED["no_thoughts"], size)
    alone = measure_world(other, world.collection, split="test")
    found = {
        "thinking": joint["thinking"],
        "joint_not_thinking": joint["not_thinking"],
        "no_thoughts": alone["not_thinking"],
    }
    for name, result in found.items():
        better = "higher" if name != "no_thoughts" else "lower"
        value = round(result.means[MEASURE], 4)
        yield Figure(name=f"fictional_world/two_hop/{name}", value=value, unit=MEASURE, better=better)


def ablations(work: Path, size: Size = SMALL, variants: Sequence[Variant] = ABLATIONS) -> Iterator[Figure]:
    """Every variant, not thinking, with the likeliest thought and with drawn ones, on the split dev."""
    world = written(work, size)
    voted = work / "voted.jsonl"
    yield from _elected(world, voted)
    for variant in variants:
        folder = trained(work, world, variant, size, voted=voted)
        found = measure_world(folder, world.collection, split="dev")
        yield _figure(variant, "not_thinking", found["not_thinking"].means[MEASURE])
        if variant.thinks:
            yield _figure(variant, "thinking", found["thinking"].means[MEASURE])
        for thoughts in variant.drawn:
            several = ThoughtSettings(n_thoughts=thoughts, temperature=1.0, top_p=1.0, max_new_tokens=40)
            found = measure_world(folder, world.collection, split="dev", settings=several)
            yield _figure(variant, f"n_thoughts={thoughts}", found["thinking"].means[MEASURE])


def _figure(variant: Variant, way: str, value: float) -> Figure:
    return Figure(
        name=f"fictional_world/ablation/{variant.name}/{way}", value=round(value, 4), unit=f"{MEASURE}, dev"
    )


def written(work: Path, size: Size) -> WorldReport:
    """The world of this size; the same files each time."""
    return write_world(work / "world", WorldSettings(**size.world))


def trained(
    work: Path, world: WorldReport, variant: Variant, size: Size, *, voted: Path | None = None
) -> Path:
    """The folder of the variant's model: trained now, gone on with, or taken from before."""
    from o1_retriever_training.joint.recipe import read_train_recipe
    from o1_retriever_training.joint.run import train

    rows = voted if variant.data == "voted" else world.train
    places = {
        "model.base": world.base,
        "data.train.0.path": rows,
        "evaluation.collection": world.collection,
        "output": work / variant.name,
    }
    changes = [f"{name}={json.dumps(str(path))}" for name, path in places.items()]
    recipe = read_train_recipe(RECIPE, [*changes, *variant.changes, *size.changes])
    result = train(recipe)
    print(f"{variant.name}: {result.steps} steps, {result.seconds:.0f} s", file=sys.stderr, flush=True)
    return result.output


def _elected(world: WorldReport, voted: Path) -> Iterator[Figure]:
    """The committee's choice among the candidates, and how often it is the right chain."""
    from o1_retriever_training.vote import vote

    vote(world.candidates, voted, committee=["bm25"], show=False)
    right, chosen = _rows(world.train), _rows(voted)
    both = list(zip(right, chosen, strict=True))
    shares = {
        "elected": sum(one["thought"] == other["thought"] for one, other in both),
        "first": sum(one["thought"] == other["all_thought"][0] for one, other in both),
    }
    for name, count in shares.items():
        value = round(count / len(both), 4)
        yield Figure(name=f"fictional_world/committee/{name}_is_right", value=value, unit="share of rows")


def _rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fictional_world.run", description=__doc__)
    parser.add_argument("--only", choices=("two_hop", "ablation"), default=None)
    parser.add_argument("--work", type=Path, default=default_cache_path() / "fictional_world")
    parser.add_argument("--results", type=Path, default=RESULTS / "fictional_world.jsonl")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
