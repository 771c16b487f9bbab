"""Real processes that gather their vectors, against one process that has the whole batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from o1_retriever_training.joint.steps import VectorBatch, gather_vectors, processes, total
from tests.support import gathering
from tests.support.forks import Forks, ran_well


@pytest.fixture(scope="module")
def found(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Any]]:
    """What each process of two, and of three, found in every case."""
    folder, everything = tmp_path_factory.mktemp("gather"), {}
    for count in (2, 3):
        out, log = folder / f"found{count}", folder / f"log{count}"
        codes = forks.run("tests.support.gathering:gather_all", processes=count, log=log, out=out)
        ran_well(codes, log)
        everything[count] = [torch.load(f"{out}.{rank}") for rank in range(count)]
    return everything


@pytest.mark.parametrize("cached", [False, True], ids=["one backward", "gradient caching"])
@pytest.mark.parametrize("own_groups", [False, True], ids=["in batch", "own groups"])
@pytest.mark.parametrize("case", gathering.CASES)
def test_processes_find_what_one_finds(
    found: dict[int, list[Any]], case: str, own_groups: bool, cached: bool
) -> None:
    model = gathering.Model()
    one = gathering.losses(model, gathering.whole(case), own_groups=own_groups, cached=cached)
    gradients = [parameter.grad for parameter in model.parameters()]
    several = [of_rank[case, own_groups, cached] for of_rank in found[len(gathering.CASES[case])]]
    for name in ("contrastive", "distillation"):
        for values, _ in several:
            assert values[name] == pytest.approx(one[name], abs=1e-12), name
    assert sum(values["generation"] for values, _ in several) == pytest.approx(one["generation"], abs=1e-12)
    for _, averaged in several:
        for expected, gradient in zip(gradients, averaged, strict=True):
            assert torch.allclose(gradient, expected, rtol=1e-10, atol=1e-12)
    if case != "nothing":
        assert all(bool(gradient.any()) for gradient in gradients if gradient is not None)


@pytest.mark.parametrize("case", gathering.CASES)
def test_everybody_has_the_whole_batch(found: dict[int, list[Any]], case: str) -> None:
    expected = gathering.vectors_of(gathering.whole(case))
    padding = {"positive_keys": 0, "groups": -1, "teacher": torch.nan}
    for of_rank in found[len(gathering.CASES[case])]:
        for name, rows in expected.items():
            field = of_rank[case][name]
            if name == "teacher" and case == "no teacher":
                assert field.isnan().all()
            if name in padding:
                # A process may have brought wider rows than any that are there.
                wide = rows.new_full(field.shape, padding[name])
                wide[:, : rows.shape[1]] = rows
                rows = wide
            assert torch.allclose(field, rows, rtol=0, atol=0, equal_nan=True), name


def test_counts_are_summed(found: dict[int, list[Any]]) -> None:
    assert [of_rank["total"] for of_rank in found[2]] == [11, 11]
    assert [of_rank["total"] for of_rank in found[3]] == [18, 18, 18]


def test_alone_a_batch_is_itself() -> None:
    batch = VectorBatch(**gathering.vectors_of(gathering.part("even", 0)))
    assert gather_vectors(batch) is batch
    assert processes() == 1
    assert total(torch.tensor(4)) == total(4) == 4
