"""Small faults put into the code that everything stands on, and the fast tests that have to notice them.

The faults are those of cosmic-ray's operators (another comparison, another number, `not`, `and` for `or`, no
turn of a loop, ...), inside of functions. Each is put into a fork of one process that has imported everything,
where the code of the function is exchanged before the tests run. A fault that no test
notices has to stand in `EXPLAINED`, with why it changes nothing that anybody could see.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import inspect
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, TypeVar

from benchmarks.record import ROOT, Figure, note, read

Key = TypeVar("Key")

# Of the many pairs of operators, one is drawn for each place; these say nothing about logic.
_LEFT_OUT = ("RemoveDecorator", "Variable")


@dataclass(frozen=True)
class Target:
    """Functions of a module (all without `functions`), by the ends of their names, and who tests them."""

    module: str
    tests: tuple[str, ...]
    functions: tuple[str, ...] = ()


_FILTERS = (
    "filter passes asked_for _holds _in_text weaker _refuse _at _entry _field _every _list _members _scalar _equal "
    "_one_of _compared _contains _contains_text _any _all _is _negated"
)
TARGETS = {
    "template": (
        Target(
            "o1_retriever.engine.template",
            ("tests/core/test_template.py", "tests/core/test_chat_templates.py"),
        ),
    ),
    "pooling": (
        Target(
            "o1_retriever.thinking",
            ("tests/core/test_thinking.py", "tests/core/test_guard.py"),
            ("pool", "without", "_dropped"),
        ),
        Target("o1_retriever.vectors", ("tests/core/test_thinking.py",), ("unit",)),
    ),
    "cache_keys": (
        Target(
            "o1_retriever.cache.store",
            ("tests/core/test_cache.py", "tests/core/test_cache_damage.py"),
            ("cache_key", "row_id", "_checksum", "_values", "_thought", "_select"),
        ),
        Target("o1_retriever.thinking", ("tests/core/test_cache.py",), ("_thought_key", "vector_key")),
        Target("o1_retriever.thought", ("tests/core/test_cache.py",), ("sampling",)),
    ),
    "guard": (Target("o1_retriever.guard", ("tests/core/test_guard.py",)),),
    "losses": (Target("o1_retriever_training.joint.losses", ("tests/training/joint/test_losses.py",)),),
    "vote": (Target("o1_retriever_training.vote", ("tests/training/test_vote.py",)),),
    "filters": (
        Target("o1_retriever.index.filters", ("tests/core/test_filters.py",), tuple(_FILTERS.split())),
    ),
}
# Why a fault may survive, with those of which it is true: module, function, the line before and after.
_WHY = {
    "There are two layouts, and the name of the other is the greater word.": (
        'o1_retriever.engine.template:Template.__init__: self.fast_offset = -2 if config.layout == "paper" else None -> self.fast_offset = -2 if config.layout <= "paper" else None',
        'o1_retriever.engine.template:Template.document: opening = [self._marker["<doc>"]] if self.config.layout == "paper" else [] -> opening = [self._marker["<doc>"]] if self.config.layout <= "paper" else []',
        'o1_retriever.engine.template:Template.fast_query: if self.config.layout == "paper": -> if self.config.layout <= "paper":',
        'o1_retriever.engine.template:Template.max_document: return self.max_length - (2 if self.config.layout == "paper" else 1) -> return self.max_length - (2 if self.config.layout <= "paper" else 1)',
        'o1_retriever.engine.template:Template.prompt: closing = self._marker["<emb>" if self.config.layout == "paper" else "</query>"] -> closing = self._marker["<emb>" if self.config.layout <= "paper" else "</query>"]',
    ),
    "The pieces hold no whole token any more.": (
        'o1_retriever.engine.template:PlainText._spelled_out: rows = self.tokenizer(pieces, add_special_tokens=False, split_special_tokens=True)["input_ids"] -> rows = self.tokenizer(pieces, add_special_tokens=False, split_special_tokens=False)["input_ids"]',
    ),
    "Special tokens are left out afterwards.": (
        'o1_retriever.engine.template:PlainText._spelled_out: rows = self.tokenizer(pieces, add_special_tokens=False, split_special_tokens=True)["input_ids"] -> rows = self.tokenizer(pieces, add_special_tokens=True, split_special_tokens=True)["input_ids"]',
    ),
    "The default of a number that is not given is any that is allowed.": (
        "o1_retriever.engine.template:TemplateConfig.from_file: value = values.get(name, 8) -> value = values.get(name, 9)",
    ),
    "One text has one row of ids.": (
        'o1_retriever.engine.template:ChatTemplate._chat: ids += self.text_ids([messages[int(piece)]["content"]])[0] -> ids += self.text_ids([messages[int(piece)]["content"]])[ -1]',
        'o1_retriever.engine.template:ChatTemplate._plain: self.text_ids(["Answer:"])[0] -> self.text_ids(["Answer:"])[ -1]',
        'o1_retriever.engine.template:ChatTemplate._ends_of_turn: return tuple({self.text_ids(["a\\n"])[0][-1], self.text_ids(["a\\n\\n"])[0][-1]}) -> return tuple({self.text_ids(["a\\n"])[0][-1], self.text_ids(["a\\n\\n"])[ -1][-1]})',
        'o1_retriever.engine.template:ChatTemplate._ends_of_turn: return tuple({self.text_ids(["a\\n"])[0][-1], self.text_ids(["a\\n\\n"])[0][-1]}) -> return tuple({self.text_ids(["a\\n"])[ -1][-1], self.text_ids(["a\\n\\n"])[0][-1]})',
        "o1_retriever.engine.template:Template.__init__: self._instruction = self.text_ids([self.instruction])[0] if self.instruction.strip() else [] -> self._instruction = self.text_ids([self.instruction])[ -1] if self.instruction.strip() else []",
    ),
    "A softmax does not change where all are shifted.": (
        "o1_retriever.guard:features: shares = np.exp(standard - standard[0]) -> shares = np.exp(standard - standard[ -1])",
    ),
    "A run grows by one, and meets the number before it passes it.": (
        "o1_retriever.guard:_loops: if run >= least: -> if run == least:",
    ),
    "A longer piece does not come four times in so many; it is looked for in vain.": (
        "o1_retriever.guard:_loops: for period in range(1, count // _LOOPS + 1): -> for period in range(1, count // _LOOPS + 2):",
        "o1_retriever.guard:_loops: for period in range(1, count // _LOOPS + 1): -> for period in range(1, count ^ _LOOPS + 1):",
    ),
    "The empty name is the answer, whatever its count.": (
        'o1_retriever.guard:_script: ((script, count),) = letters.most_common(1) or [("", 0)] -> ((script, count),) = letters.most_common(1) or [("", 1)]',
        'o1_retriever.guard:_script: ((script, count),) = letters.most_common(1) or [("", 0)] -> ((script, count),) = letters.most_common(1) or [("", -1)]',
    ),
    "No run of ten words stands in a question of the prompt and in its answer.": (
        "o1_retriever.guard:_prompt: return [(set(_words(each)), _runs(_words(each)) | _runs(_words(said))) for each, said in parts] -> return [(set(_words(each)), _runs(_words(each)) ^ _runs(_words(said))) for each, said in parts]",
    ),
    "The list has one member, and is not empty.": (
        "o1_retriever.index.filters:weaker: return (kept[0] if len(kept) == 1 else Every(tuple(kept))) if kept else None -> return (kept[0] if len(kept) <= 1 else Every(tuple(kept))) if kept else None",
        "o1_retriever.index.filters:weaker: return (kept[0] if len(kept) == 1 else Every(tuple(kept))) if kept else None -> return (kept[ -1] if len(kept) == 1 else Every(tuple(kept))) if kept else None",
        "o1_retriever.index.filters:_every: return kept[0] if len(kept) == 1 else Every(kept) -> return kept[ -1] if len(kept) == 1 else Every(kept)",
    ),
    "The key is $and or $or here.": (
        'o1_retriever.index.filters:_entry: return _every(parts) if key == "$and" else Some(tuple(parts)) -> return _every(parts) if key <= "$and" else Some(tuple(parts))',
    ),
    "Whether two scores are equal is the same both ways round.": (
        "o1_retriever_training.vote:elect: equal = (table[:, None, :] == table[:, :, None]).sum(axis=2) -> equal = (table[:, None, :] == table[:, :, None]).sum(axis= 1)",
    ),
    "All mean ranks are shifted alike.": (
        "o1_retriever_training.vote:elect: mean_rank = share @ (better + (equal + 1) / 2) / share.sum() -> mean_rank = share @ (better + (equal - 1) / 2) / share.sum()",
        "o1_retriever_training.vote:elect: mean_rank = share @ (better + (equal + 1) / 2) / share.sum() -> mean_rank = share @ (better + (equal + 0) / 2) / share.sum()",
        "o1_retriever_training.vote:elect: mean_rank = share @ (better + (equal + 1) / 2) / share.sum() -> mean_rank = share @ (better + (equal + 2) / 2) / share.sum()",
    ),
    "A place that nobody votes for has nothing, whether it is listed or not.": (
        "o1_retriever_training.vote:elect: goodness = np.bincount(table.argmax(axis=1), weights=share, minlength=table.shape[1]) -> goodness = np.bincount(table.argmax(axis=1), weights=share, minlength=table.shape[ 0])",
    ),
    "Both are of one length, as they are made of one another a few lines before.": (
        "o1_retriever_training.joint.losses:_sum_of_blocks: for part, own in zip(torch.split(queries, size), torch.split(rows, size), strict=True) -> for part, own in zip(torch.split(queries, size), torch.split(rows, size), strict=False)",
        "o1_retriever_training.vote:_count_all: given = {name: own for name, (_, own) in zip(files, entries, strict=True) if own is not None} -> given = {name: own for name, (_, own) in zip(files, entries, strict=False) if own is not None}",
        "o1_retriever_training.vote:_count_all: scored = zip(*map(_verdicts, files.values()), strict=True) -> scored = zip(*map(_verdicts, files.values()), strict=False)",
        "o1_retriever_training.vote:_score_all: found = {place: asdict(verdict) for place, verdict in zip(cases, own, strict=True)} -> found = {place: asdict(verdict) for place, verdict in zip(cases, own, strict=False)}",
        "o1_retriever_training.vote:_with_vote: by_place = {name: dict(zip(row.usable, own, strict=True)) for name, own in scores.items()} -> by_place = {name: dict(zip(row.usable, own, strict=False)) for name, own in scores.items()}",
        "o1_retriever_training.vote:verdicts: for case, own, more in zip(cases, scores[: len(cases)], scores[len(cases) :], strict=True): -> for case, own, more in zip(cases, scores[: len(cases)], scores[len(cases) :], strict=False):",
    ),
    "The name of a file that is gone when the vote is over.": (
        "o1_retriever_training.vote:_score_all: name = hashlib.blake2b(member.name.encode(), digest_size=6).hexdigest() -> name = hashlib.blake2b(member.name.encode(), digest_size= 5).hexdigest()",
        "o1_retriever_training.vote:_score_all: name = hashlib.blake2b(member.name.encode(), digest_size=6).hexdigest() -> name = hashlib.blake2b(member.name.encode(), digest_size= 7).hexdigest()",
    ),
    "How far a bar on the screen has come.": (
        "o1_retriever_training.vote:_score_all: rows = Input(source, ledger, RowProblems(str(source), strict=strict)).fresh(lambda: advance(1)) -> rows = Input(source, ledger, RowProblems(str(source), strict=strict)).fresh(lambda: advance( 2))",
        "o1_retriever_training.vote:_score_all: rows = Input(source, ledger, RowProblems(str(source), strict=strict)).fresh(lambda: advance(1)) -> rows = Input(source, ledger, RowProblems(str(source), strict=strict)).fresh(lambda: advance( 0))",
    ),
    "All files of scores are made of the same rows.": (
        "o1_retriever_training.vote:_count_all: if entries[0][0] != row.identity: -> if entries[ -1][0] != row.identity:",
    ),
    "What is taken for a query without another is not looked at.": (
        "o1_retriever_training.joint.losses:corrected_queries: joined = normalize(own[alone.clamp(min=0)] + own, dim=-1) -> joined = normalize(own[alone.clamp(min= -1)] + own, dim=-1)",
    ),
    "The teacher's share of what is absent is 0, and 0 times any number too.": (
        "o1_retriever_training.joint.losses:distillation_loss.<locals>.distance: found = scores.masked_fill(absent, -torch.inf).log_softmax(dim=1).masked_fill(absent, 0.0) -> found = scores.masked_fill(absent, -torch.inf).log_softmax(dim=1).masked_fill(absent, 1.0)",
        "o1_retriever_training.joint.losses:distillation_loss.<locals>.distance: found = scores.masked_fill(absent, -torch.inf).log_softmax(dim=1).masked_fill(absent, 0.0) -> found = scores.masked_fill(absent, -torch.inf).log_softmax(dim=1).masked_fill(absent, -1.0)",
    ),
    "e to either power is 0 beside a similarity over any temperature that trains.": (
        "o1_retriever_training.joint.losses:relation_loss: (_similarity(each, each) / temperature).masked_fill(itself, -1e4).log_softmax(dim=1) -> (_similarity(each, each) / temperature).masked_fill(itself, - 10001.0).log_softmax(dim=1)",
        "o1_retriever_training.joint.losses:relation_loss: (_similarity(each, each) / temperature).masked_fill(itself, -1e4).log_softmax(dim=1) -> (_similarity(each, each) / temperature).masked_fill(itself, - 9999.0).log_softmax(dim=1)",
    ),
    "A sort of the CPU keeps equal keys in order unasked; that of a GPU does not.": (
        "o1_retriever_training.joint.losses:_copies: ordered, places = column.sort(stable=True) -> ordered, places = column.sort(stable=False)",
    ),
    "Nothing random is drawn in a loss.": (
        "o1_retriever_training.joint.losses:_sum_of_blocks: checkpoint(loss, part, documents, own, use_reentrant=False, preserve_rng_state=False) -> checkpoint(loss, part, documents, own, use_reentrant=False, preserve_rng_state=True)",
    ),
    "The columns behind the documents are cut off.": (
        "o1_retriever_training.joint.losses:_members: found = torch.zeros(len(groups), documents + 1, dtype=torch.bool, device=groups.device) -> found = torch.zeros(len(groups), documents + 2, dtype=torch.bool, device=groups.device)",
    ),
    "The product of two truth values is true where both are.": (
        "o1_retriever_training.joint.losses:distillation_loss: scored = (candidates >= 0) & torch.isfinite(teacher) -> scored = (candidates >= 0) * torch.isfinite(teacher)",
        "o1_retriever_training.joint.losses:allowed_negatives: same |= (own[:, None] == other[None, :]) & (own != 0)[:, None] -> same |= (own[:, None] == other[None, :]) * (own != 0)[:, None]",
        "o1_retriever_training.joint.losses:allowed_negatives: allowed = compared & ~same -> allowed = compared * ~same",
        "o1_retriever_training.joint.losses:_copies: found[places[1:][(ordered[1:] == ordered[:-1]) & (ordered[1:] != 0)]] = True -> found[places[1:][(ordered[1:] == ordered[:-1]) * (ordered[1:] != 0)]] = True",
    ),
    "One block, by the way of many, has the same loss.": (
        "o1_retriever_training.joint.losses:_sum_of_blocks: if len(queries) <= size: -> if len(queries) == size:",
    ),
    "The last of two dimensions is the second.": (
        "o1_retriever_training.joint.losses:corrected_queries: joined = normalize(own[alone.clamp(min=0)] + own, dim=-1) -> joined = normalize(own[alone.clamp(min=0)] + own, dim=+1)",
        "o1_retriever_training.joint.losses:corrected_queries: own = normalize(encoded + corrections.masked_fill(thinks, 0.0), dim=-1) -> own = normalize(encoded + corrections.masked_fill(thinks, 0.0), dim=+1)",
        "o1_retriever_training.joint.losses:cosine_loss: return (1 - (_wide(vectors) * _wide(teacher)).sum(dim=-1)).sum() / count -> return (1 - (_wide(vectors) * _wide(teacher)).sum(dim=+1)).sum() / count",
    ),
    "Prompts of different words differ before either ends.": (
        "o1_retriever.engine.template:ChatTemplate.__init__: same = takewhile(lambda pair: pair[0] == pair[1], zip(*prompts, strict=False)) -> same = takewhile(lambda pair: pair[0] == pair[1], zip(*prompts, strict=True))",
    ),
    "The guard gives a reason, or None, for each usable thought.": (
        "o1_retriever.thinking:Pooling.without: kept = [row for row, reason in zip(embedding.vectors, reasons, strict=True) if reason is None] -> kept = [row for row, reason in zip(embedding.vectors, reasons, strict=False) if reason is None]",
    ),
    "NumPy takes any negative size for the one that is left.": (
        "o1_retriever.vectors:unit: place = int(np.argmax(bad.reshape(-1))) -> place = int(np.argmax(bad.reshape(- 2)))",
        'o1_retriever.vectors:unit: f"Vector {place} has length {float(lengths.reshape(-1)[place])}; expected a direction." -> f"Vector {place} has length {float(lengths.reshape(- 2)[place])}; expected a direction."',
    ),
    "A length is not negative.": (
        "o1_retriever.vectors:unit: bad = ~(np.isfinite(lengths) & (lengths > 0)) -> bad = ~(np.isfinite(lengths) & (lengths != 0))",
    ),
    "Of two vectors each has one other, whose share is 1 for both.": (
        "o1_retriever_training.joint.losses:relation_loss: if len(vectors) < 2: -> if len(vectors) < 3:",
    ),
    "The similarities of vectors to each other are the same both ways round, and all are summed.": (
        "o1_retriever_training.joint.losses:relation_loss: (_similarity(each, each) / temperature).masked_fill(itself, -1e4).log_softmax(dim=1) -> (_similarity(each, each) / temperature).masked_fill(itself, -1e4).log_softmax(dim= 0)",
    ),
    "In order, what is not greater than the one before it is the same.": (
        "o1_retriever_training.joint.losses:_copies: found[places[1:][(ordered[1:] == ordered[:-1]) & (ordered[1:] != 0)]] = True -> found[places[1:][(ordered[1:] <= ordered[:-1]) & (ordered[1:] != 0)]] = True",
    ),
    "What is left of the tests that have operands is greater in the alphabet.": (
        'o1_retriever.index.filters:_holds: if condition.test == "contains": -> if condition.test <= "contains":',
    ),
}
EXPLAINED = {place: why for why, places in _WHY.items() for place in places}


@dataclass(frozen=True)
class Mutant:
    """A module's source with one fault in it. `place` is what `EXPLAINED` knows it by."""

    place: str
    source: str


@dataclass(eq=False)
class Suite:
    """A plugin of pytest: how the tests of a target go. `seconds` are those of each that passes."""

    failed: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def pytest_collectreport(self, report: Any) -> None:
        """A file that cannot be imported."""
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """A part of a test: its fixtures before, itself, its fixtures after."""
        if report.failed:
            self.failed.append(report.nodeid)
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration


@dataclass(eq=False)
class _Chosen:
    """A plugin of pytest: the tests that pass without a fault, and no others."""

    names: Collection[str]

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Leave out those that do not."""
        items[:] = [item for item in items if item.nodeid in self.names]


def measure(
    *, count: int = 10_000, only: Sequence[str] = tuple(TARGETS), jobs: int = 1, outcomes: Path | None = None
) -> Iterator[Figure]:
    """`mutants/<what>/...`: how many faults were put in, and how many no test notices and nobody explains.

    `count` is the most for each, drawn at random where there are more; `jobs` are processes. A file of
    `outcomes` keeps what came of each, and of those that it has only survivors that nobody explains are tried
    again.
    """
    _prepare(only)
    suites = _suites([target for name in only for target in TARGETS[name]], jobs)
    known = {row["place"]: row["survives"] for row in read(outcomes)} if outcomes else {}
    for name in only:
        targets = [target for target in TARGETS[name] if target in suites]
        made = _forked(((each, partial(_sources, each)) for each in targets), jobs)
        pairs = [(target, Mutant(*one)) for target, found in made for one in sorted(found.items())]
        tried = random.Random(name).sample(pairs, min(count, len(pairs)))
        works = (
            (mutant.place, partial(_survives, target, mutant, suites[target]))
            for target, mutant in tried
            if known.get(mutant.place, True) and not (mutant.place in known and mutant.place in EXPLAINED)
        )
        for place, survived in _forked(works, jobs):
            known[place] = survives = bool(survived)
            if survives:
                print(f"   {place}: {EXPLAINED.get(place, 'NOT NOTICED')}", flush=True)
            if outcomes is not None:
                note(outcomes, {"place": place, "survives": survives})
        left = [mutant.place for _, mutant in tried if known[mutant.place]]
        lonely = [place for place in left if place not in EXPLAINED]
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
    import torch
    from hypothesis import HealthCheck, Phase, settings

    torch.set_num_threads(1)
    settings.register_profile(
        "mutants", derandomize=True, database=None, deadline=None, max_examples=40,
        phases=(Phase.explicit, Phase.generate), suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    os.chdir(ROOT)
    targets = [target for name in names for target in TARGETS[name]]
    for target in targets:
        importlib.import_module(target.module)
    # What the tests import is here before the forks, which import the tests alone.
    with contextlib.redirect_stdout(io.StringIO()):
        _tested(sorted({test for target in targets for test in target.tests}), "--collect-only")


def _suites(targets: Sequence[Target], jobs: int) -> dict[Target, dict[str, float]]:
    """The tests of each target that pass where its code is exchanged for itself, with their seconds."""
    suites: dict[Target, dict[str, float]] = {}
    for target, found in _forked(((each, partial(_unharmed, each)) for each in targets), jobs):
        failed, suites[target] = found or (target.tests, {})
        for file, number in Counter(test.partition("::")[0] for test in failed).items():
            print(f"   {file}: {number} left out, which fail without a fault", flush=True)
    again = ((each, partial(_survives, each, _unchanged(each), suites[each])) for each in targets)
    for target, survives in _forked(again, jobs):
        if not survives:
            print(f"   {target.module} is left out: its tests fail without a fault", flush=True)
            del suites[target]
    return suites


def _unchanged(target: Target) -> Mutant:
    return Mutant("nothing", inspect.getsource(importlib.import_module(target.module)))


def _unharmed(target: Target) -> tuple[list[str], dict[str, float]]:
    suite = Suite()
    _exchange(importlib.import_module(target.module), _unchanged(target).source)
    _tested(target.tests, plugin=suite)
    failed = list(dict.fromkeys(suite.failed))
    return failed, {test: spent for test, spent in suite.seconds.items() if test not in failed}


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
            if not _compiles(changed):
                continue
            old, new = _changed(source, changed)
            key = f"{target.module}:{function}: {old} -> {new}"
            seen[key] = seen.get(key, 0) + 1
            yield Mutant(key if seen[key] == 1 else f"{key} ({seen[key]})", changed)


def _changed(source: str, changed: str) -> tuple[str, str]:
    """The first line that differs, before and after."""
    pairs = zip(source.splitlines(), changed.splitlines(), strict=False)
    return next(((old.strip(), new.strip()) for old, new in pairs if old != new), ("", ""))


def _sources(target: Target) -> dict[str, str]:
    return {mutant.place: mutant.source for mutant in mutants(target)}


def _compiles(source: str) -> bool:
    try:
        compile(source, "fault", "exec")
    except SyntaxError:
        return False
    return True


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


def _survives(target: Target, mutant: Mutant, seconds: dict[str, float]) -> bool:
    """Whether all tests pass with the fault, none of them very slowly."""
    signal.alarm(20 + 10 * int(sum(seconds.values())))
    module, files = importlib.import_module(target.module), {test.partition("::")[0] for test in seconds}
    if not _exchange(module, mutant.source):
        return False
    return (
        bool(files)
        and _tested([test for test in target.tests if test in files], plugin=_Chosen(seconds)) == 0
    )


def _tested(tests: Sequence[str], *options: str, plugin: object = None) -> int:
    import pytest

    # pytest-timeout takes the alarm of the process for itself.
    quiet = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:timeout", "--no-header")
    until = "-x" if isinstance(plugin, _Chosen) else "--continue-on-collection-errors"
    return int(
        pytest.main(
            [*quiet, until, "--hypothesis-profile=mutants", *options, *tests],
            plugins=[plugin] if plugin else [],
        )
    )


def _exchange(module: ModuleType, source: str) -> bool:
    """Give the functions of a module the code that they have in the source; False where none is another."""
    new = dict(_functions(compile(source, module.__file__ or "", "exec")))
    changed = False
    gc.unfreeze()  # what somebody has frozen is not listed
    for each in gc.get_objects():
        if type(each) is FunctionType and each.__module__ == module.__name__:
            code = new.get(each.__code__.co_qualname)
            if code is not None and code.co_freevars == each.__code__.co_freevars:
                each.__code__ = code
                changed = True
    return changed


def _forked(works: Iterable[tuple[Key, Callable[[], Any]]], jobs: int) -> Iterator[tuple[Key, Any]]:
    """What each work returns in a fork that says nothing, several at a time; None where it does not end well."""
    running: dict[int, Key] = {}
    with tempfile.TemporaryDirectory() as folder:

        def ended() -> tuple[Key, Any]:
            while (child := os.wait()[0]) not in running:
                pass
            answer = Path(folder, f"{child}.json")
            shutil.rmtree(Path(folder, str(child)), ignore_errors=True)
            return running.pop(child), json.loads(answer.read_text()) if answer.exists() else None

        for key, work in works:
            if len(running) == jobs:
                yield ended()
            running[_fork(work, folder)] = key
        while running:
            yield ended()


def _fork(work: Callable[[], Any], folder: str) -> int:
    """A child that does the work, with a folder of its own for temporary files."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        own = Path(folder, str(os.getpid()))
        own.mkdir()
        os.environ["TMPDIR"] = tempfile.tempdir = str(own)
        try:
            answer = json.dumps(work())
            own.with_suffix(".json").write_text(answer)
        finally:
            os._exit(0)
    return child
