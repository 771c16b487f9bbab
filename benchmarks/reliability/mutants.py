"""Small faults put into the code that everything stands on, and the fast tests that have to notice them.

The faults are those of cosmic-ray's operators (another comparison, another number, `not`, `and` for `or`, no
turn of a loop, ...), inside of functions. Each is put into a fork of one process that has imported everything,
where the code of the function is exchanged before the tests run. A fault that no test notices has to stand in
`EXPLAINED`, with why it changes nothing that anybody could see.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import inspect
import io
import os
import random
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType
from typing import Any

from benchmarks.record import ROOT, Figure

_SLOWEST_S = 120
# Of the many pairs of operators, one is drawn for each place; these say nothing about logic.
_LEFT_OUT = ("RemoveDecorator", "Variable")


@dataclass(frozen=True)
class Target:
    """Functions of a module (all without `functions`), by the ends of their names, and who tests them."""

    module: str
    tests: tuple[str, ...]
    functions: tuple[str, ...] = ()


TARGETS = {
    "template": (Target("o1_retriever.engine.template", ("tests/core/test_template.py",)),),
    "pooling": (
        Target("o1_retriever.thinking", ("tests/core/test_thinking.py",), ("pool", "without", "_dropped")),
        Target("o1_retriever.vectors", ("tests/core/test_thinking.py",), ("unit",)),
    ),
    "cache_keys": (
        Target(
            "o1_retriever.cache.store",
            ("tests/core/test_cache.py",),
            ("cache_key", "row_id", "_checksum", "_values", "_thought", "_select"),
        ),
        Target(
            "o1_retriever.thinking",
            ("tests/core/test_thinking.py", "tests/core/test_rounds.py", "tests/core/test_conversation.py"),
            ("_thought_key", "vector_key"),
        ),
        Target("o1_retriever.thought", ("tests/core/test_thinking.py",), ("sampling",)),
    ),
    "guard": (Target("o1_retriever.guard", ("tests/core/test_guard.py",)),),
    "losses": (Target("o1_retriever_training.joint.losses", ("tests/training/joint/test_losses.py",)),),
    "vote": (Target("o1_retriever_training.vote", ("tests/training/test_vote.py",)),),
    "filters": (Target("o1_retriever.index.filters", ("tests/core/test_filters.py",)),),
}
# What survives, by module, function, operator and source line, and why it may.
EXPLAINED: dict[str, str] = {}


@dataclass(frozen=True)
class Mutant:
    """A module's source with one fault in it. `place` is what `EXPLAINED` knows it by."""

    place: str
    source: str


def measure(*, count: int = 10_000, only: Sequence[str] = tuple(TARGETS)) -> Iterator[Figure]:
    """`mutants/<what>/...`: how many faults were put in, and how many no test notices and nobody explains.

    `count` is the most for each, drawn at random where there are more.
    """
    _prepare(only)
    for name in only:
        for target in TARGETS[name]:
            whole = inspect.getsource(importlib.import_module(target.module))
            if not _survives(target, Mutant("nothing", whole)):
                raise SystemExit(
                    f"The tests of {target.module} fail where its own code is exchanged for itself."
                )
        pairs = [(target, mutant) for target in TARGETS[name] for mutant in mutants(target)]
        tried = random.Random(name).sample(pairs, min(count, len(pairs)))
        began, left = time.monotonic(), []
        for target, mutant in tried:
            if _survives(target, mutant):
                left.append(mutant.place)
                print(f"   {mutant.place}: {EXPLAINED.get(mutant.place, 'NOT NOTICED')}", flush=True)
        lonely = [place for place in left if place not in EXPLAINED]
        print(f"   {name}: {len(pairs)} faults, {time.monotonic() - began:.0f} s", flush=True)
        yield Figure(name=f"mutants/{name}/tried", value=len(tried), unit="faults")
        yield Figure(name=f"mutants/{name}/of", value=len(pairs), unit="faults")
        yield Figure(name=f"mutants/{name}/explained", value=len(left) - len(lonely), unit="faults")
        yield Figure(name=f"mutants/{name}/unexplained", value=len(lonely), unit="faults", better="lower")


def _prepare(names: Sequence[str]) -> None:
    """Import what all children need, and have hypothesis draw the same examples in each."""
    try:
        import cosmic_ray  # noqa: F401
    except ImportError:
        raise SystemExit(
            "Found no cosmic-ray, which makes the faults. Type: pip install cosmic-ray"
        ) from None
    import pytest
    import torch
    from hypothesis import settings

    torch.set_num_threads(1)
    settings.register_profile("mutants", derandomize=True, database=None, deadline=None, max_examples=40)
    settings.load_profile("mutants")
    os.chdir(ROOT)
    targets = [target for name in names for target in TARGETS[name]]
    for target in targets:
        importlib.import_module(target.module)
    tests = sorted({test for target in targets for test in target.tests})
    # What the tests import is here before the forks, which import the tests alone.
    with contextlib.redirect_stdout(io.StringIO()):
        pytest.main(["-q", "--collect-only", "-p", "no:cacheprovider", *tests])
    if _child(lambda: _tested(tests)):
        raise SystemExit(f"The tests fail without any fault. Type: pytest {' '.join(tests)}")


def mutants(target: Target) -> Iterator[Mutant]:
    """Every fault of a target's functions."""
    from cosmic_ray.ast import get_ast
    from cosmic_ray.mutating import MutationVisitor
    from cosmic_ray.operators.provider import OperatorProvider
    from cosmic_ray.plugins import get_operator

    source = inspect.getsource(importlib.import_module(target.module))
    places = dict(_functions(compile(source, target.module, "exec")))
    seen: dict[str, int] = {}
    for name in _one_of_each(list(OperatorProvider()), target.module):
        operator = get_operator(f"core/{name}")()
        found = _positions(get_ast(source), operator)
        for number, (line, _) in enumerate(found):
            function = next((each for each, code in places.items() if line in _lines(code)), None)
            if function is None or not _is_chosen(function, target.functions):
                continue
            changed = MutationVisitor.mutate_code(source, operator, number)
            text = source.splitlines()[line - 1].strip()
            key = f"{target.module}:{function} {name} {text!r}"
            seen[key] = seen.get(key, 0) + 1
            yield Mutant(f"{key} {seen[key]}", changed)


def _one_of_each(names: list[str], seed: str) -> list[str]:
    """The operators, with one replacement of each binary operator and comparison by another."""
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        if not name.startswith(_LEFT_OUT):
            groups.setdefault(name.rsplit("_", 1)[0] if name.startswith("Replace") else name, []).append(name)
    chance = random.Random(seed)
    return [chance.choice(each) for each in groups.values()]


def _positions(tree: Any, operator: Any) -> list[tuple[int, int]]:
    """Where an operator finds something to change, in the order in which it is counted."""
    from cosmic_ray.ast import ast_nodes

    return [start for node in ast_nodes(tree) for start, _ in operator.mutation_positions(node)]


def _functions(code: CodeType) -> Iterator[tuple[str, CodeType]]:
    """The code of every function, the innermost first."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _functions(constant)
            if constant.co_flags & inspect.CO_NEWLOCALS and not constant.co_name.startswith("<"):
                yield constant.co_qualname, constant


def _lines(code: CodeType) -> range:
    """The lines of a function's body, without those of its signature."""
    lines = {line for _, _, line in code.co_lines() if line and line > code.co_firstlineno}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            lines |= set(_lines(constant))
    return range(min(lines, default=1), max(lines, default=0) + 1)


def _is_chosen(function: str, chosen: Sequence[str]) -> bool:
    return not chosen or any(function == each or function.endswith(f".{each}") for each in chosen)


def _survives(target: Target, mutant: Mutant) -> bool:
    """Whether all tests pass with the fault."""

    def work() -> int:
        module = importlib.import_module(target.module)
        if not _exchange(module, mutant.source):
            return 1
        return _tested(target.tests)

    return _child(work) == 0


def _tested(tests: Sequence[str]) -> int:
    import pytest

    return int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header", *tests]))


def _exchange(module: ModuleType, source: str) -> bool:
    """Give the functions of a module the code that they have in the source; False where none is another."""
    new = dict(_functions(compile(source, module.__file__ or "", "exec")))
    changed = False
    gc.unfreeze()  # what somebody has frozen is not listed
    for each in gc.get_objects():
        if isinstance(each, FunctionType) and each.__module__ == module.__name__:
            code = new.get(each.__code__.co_qualname)
            if code is not None and code.co_freevars == each.__code__.co_freevars:
                each.__code__ = code
                changed = True
    return changed


def _child(work: Any) -> int:
    """How a fork ends that does the work without a word: 0 for well."""
    child = os.fork()
    if not child:
        signal.alarm(_SLOWEST_S)
        quiet = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        try:
            code = work()
        except BaseException:
            code = 1
        os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)
