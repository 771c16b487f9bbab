"""Exploration: an expert writes several thoughts about every query, and none is lost or paid for twice."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from o1_retriever.endpoint.prompt import ChatRequest
from o1_retriever.endpoint.reply import Answer, Problem, cost_of
from o1_retriever.errors import SettingsError
from o1_retriever.progress import Advance, progress
from o1_retriever.query import Query
from o1_retriever.reporting.text import counted
from o1_retriever_training.experts import Expert, as_experts
from o1_retriever_training.ledger import Input, Ledger
from o1_retriever_training.prompts import Examples, prompt_for
from o1_retriever_training.reading import RowProblems, count_rows, read_rows
from o1_retriever_training.recipe import Recipe
from o1_retriever_training.rows import Failure, TrainingRow, key_of

logger = logging.getLogger(__name__)

Experts = Mapping[str, Any] | Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a stage is run, none of which changes a row: what to retry, to refuse and to show.

    `retry_failed` asks again for what could not be had before. `strict` raises the first problem of the
    input. `show` is the progress bar (None: only on a terminal), with the cost at `prices`: dollars per
    million tokens of the prompt and of the completion.
    """

    retry_failed: bool = False
    strict: bool = False
    show: bool | None = None
    prices: tuple[float, float] | None = None


@dataclass(slots=True, kw_only=True)
class Tally:
    """Counts of one run: rows of the input, those `kept` from before, and what was written now.

    `failures` counts candidates that could not be had, `without` rows without any candidate. Tokens are
    all that were spent, those of answers that could not be used included.
    """

    rows: int = 0
    kept: int = 0
    written: int = 0
    failures: int = 0
    without: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def note(self, prices: tuple[float, float] | None = None) -> str:
        """What a progress bar says beside the count."""
        tokens = self.prompt_tokens + self.completion_tokens
        cost = "" if prices is None else f", ${self.cost(prices):.2f}"
        return f"{counted(tokens, 'token')}{cost}, {self.failures:,} failed"

    def cost(self, prices: tuple[float, float]) -> float:
        """What the tokens cost at (prompt, completion) prices per million."""
        return (self.prompt_tokens * prices[0] + self.completion_tokens * prices[1]) / 1e6


def synthesize(
    pairs: str | Path,
    out: str | Path,
    *,
    experts: Experts,
    recipe: Recipe | None = None,
    options: Options | None = None,
    examples: str | Path | Sequence[TrainingRow] | None = None,
) -> tuple[Tally, RowProblems]:
    """Write `recipe.candidates` thoughts about every row of `pairs` into `out`, or go on with that.

    `experts` is one, or several by the names that the recipe's contributors have for them; each is what
    `as_expert` takes. `examples` are the rows to draw in-context examples from (None: those of `pairs`).
    The rows of a finished `out` are in the order of `pairs`.

    Raises `DataError`, `LedgerError`, `SettingsError`, and `ThinkerError` when no expert can go on; what was
    written stays, and the same call goes on.
    """
    recipe, options = recipe or Recipe(), options or Options()
    voices = _voices(recipe, as_experts(experts))
    source = pairs if examples is None else examples
    # RowProblems are told when the rows themselves are read.
    rows = read_rows(source) if isinstance(source, str | Path) else iter(source)
    pool = Examples(list(islice(rows, recipe.example_pool)) if recipe.examples else [])
    manifest = {
        **recipe.to_dict(),
        "experts": [voice.expert.identity for voice in voices],
        "examples drawn from": key_of(json.dumps(pool.content)),
        "hash": recipe.fingerprint,
    }
    with Ledger(out, stage="synthesize", recipe=manifest) as ledger:
        return asyncio.run(_Run(pairs, ledger, recipe, options, voices, pool).work())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Voice:
    """One candidate of a row: who writes it, which of that expert's it is, and what it is told."""

    expert: Expert
    index: int
    instruction: str | None


class _Run:
    """One call of `synthesize`."""

    def __init__(
        self,
        pairs: str | Path,
        ledger: Ledger,
        recipe: Recipe,
        options: Options,
        voices: Sequence[_Voice],
        examples: Examples,
    ) -> None:
        self.ledger, self.recipe, self.options = ledger, recipe, options
        self.voices, self.examples = voices, examples
        self.problems = RowProblems(str(pairs), strict=options.strict)
        self.input = Input(pairs, ledger, self.problems)
        self.tally = Tally()
        self.aside = ledger.path.with_name(f"{ledger.path.name}.retry")
        self.known: dict[str, TrainingRow] = {}

    async def work(self) -> tuple[Tally, RowProblems]:
        """Write all rows that are not there yet."""
        if self.options.retry_failed:
            self.ledger.forget(lambda row: not row.get("failures"))
        if self.aside.is_file():
            # What `Ledger.forget` has put aside; a last line that was cut short is left out.
            lines = self.aside.read_bytes().splitlines(keepends=True)
            rows = (TrainingRow.model_validate_json(line) for line in lines if line.endswith(b"\n"))
            self.known = {row.identity: row for row in rows}
        finished = False
        try:
            total = count_rows(self.input.source, show=self.options.show)
            with progress("Thinking", total, show=self.options.show) as advance:
                await self._all(advance)
            finished = True
        finally:
            for expert in self._experts():
                await expert.close()
            counts = _summarise(self.ledger.path) if finished else asdict(self.tally)
            self.ledger.finish(counts, finished=finished)
        self.aside.unlink(missing_ok=True)
        return self.tally, self.problems

    def _experts(self) -> list[Expert]:
        return list({id(voice.expert): voice.expert for voice in self.voices}.values())

    async def _all(self, advance: Advance) -> None:
        """Keep as many batches of rows going as the experts take, and stop at the first error."""
        experts = self._experts()
        size, most = max(one.batch for one in experts), max(one.at_once for one in experts)

        def kept() -> None:
            self.tally.kept += 1
            advance(1)

        rows, free = self.input.fresh(kept), asyncio.Semaphore(most)
        try:
            async with asyncio.TaskGroup() as group:
                while batch := list(islice(rows, size)):
                    await free.acquire()
                    task = group.create_task(self._finish(batch, advance))
                    task.add_done_callback(lambda _: free.release())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors.exceptions[0].__cause__
        self.tally.rows = self.input.rows

    async def _finish(self, batch: list[tuple[int, TrainingRow]], advance: Advance) -> None:
        rows = [row for _, row in batch]
        answers = await self._ask(rows)
        for (number, row), own in zip(batch, answers, strict=True):
            done = self._with_thoughts(row, own)
            self.ledger.append(done.identity, done.line())
            self.ledger.index.place(done.identity, number)
            self.tally.written += 1
            self.tally.without += not done.usable
            self.tally.failures += len(done.failures)
            advance(1, self.tally.note(self.options.prices))

    async def _ask(self, rows: Sequence[TrainingRow]) -> list[dict[int, Answer]]:
        """For each row the answers of this run by candidate; what is known from before is not asked."""
        found: list[dict[int, Answer]] = [{} for _ in rows]
        wanted: dict[int, list[tuple[int, int, ChatRequest]]] = {}
        for place, row in enumerate(rows):
            for candidate, request in self._requests(row):
                voice = self.voices[candidate]
                wanted.setdefault(id(voice.expert), []).append((place, candidate, request))
        experts = {id(expert): expert for expert in self._experts()}
        calls = [experts[key].write([request for _, _, request in asked]) for key, asked in wanted.items()]
        for asked, answers in zip(wanted.values(), await asyncio.gather(*calls), strict=True):
            for (place, candidate, _), answer in zip(asked, answers, strict=True):
                found[place][candidate] = answer
                prompt, completion = cost_of(answer)
                self.tally.prompt_tokens += prompt
                self.tally.completion_tokens += completion
        return found

    def _requests(self, row: TrainingRow) -> Iterator[tuple[int, ChatRequest]]:
        known = self.known.get(row.identity)
        prompts: dict[str | None, Any] = {}
        for candidate, voice in enumerate(self.voices):
            if known is not None and known.all_thought[candidate] is not None:
                continue
            if voice.instruction not in prompts:
                prompts[voice.instruction] = prompt_for(row, self.recipe, self.examples, voice.instruction)
            prompt, sampling = prompts[voice.instruction], self.recipe.sampling
            query = Query(row.query)
            yield candidate, ChatRequest(query=query, prompt=prompt, index=voice.index, settings=sampling)

    def _with_thoughts(self, row: TrainingRow, answers: Mapping[int, Answer]) -> TrainingRow:
        """The row with its candidates; the tokens are those of the thoughts that it holds."""
        known = self.known.get(row.identity)
        thoughts: list[str | None] = list(known.all_thought) if known else [None] * len(self.voices)
        prompt, completion = (known and known.tokens) or (0, 0)
        failures = []
        for candidate, answer in sorted(answers.items()):
            if isinstance(answer, Problem):
                failures.append(Failure(candidate=candidate, reason=answer.reason))
                continue
            thoughts[candidate] = answer.text
            prompt, completion = prompt + answer.prompt_tokens, completion + answer.completion_tokens
        return row.model_copy(
            update={
                "key": row.identity,
                "all_thought": thoughts,
                "thought": None,
                "writers": [voice.expert.identity for voice in self.voices],
                "failures": failures,
                "tokens": (prompt, completion),
            }
        )


def _voices(recipe: Recipe, experts: Mapping[str, Expert]) -> list[_Voice]:
    voices: list[_Voice] = []
    for contributor in recipe.contributors:
        name = contributor.expert or next(iter(experts))
        if name not in experts:
            raise SettingsError(f"The recipe asks the expert {name!r}; expected one of {sorted(experts)}.")
        expert, said = experts[name], contributor.instruction
        first = sum(voice.expert is expert for voice in voices)
        indices = range(first, first + contributor.n)
        voices += [_Voice(expert=expert, index=index, instruction=said) for index in indices]
    return voices


def _summarise(path: Path) -> dict[str, int]:
    """What the rows of an output hold, whoever has written them and when."""
    names = ("rows", "candidates", "failures", "without", "prompt_tokens", "completion_tokens")
    counts = dict.fromkeys(names, 0)
    with path.open("rb") as lines:
        for line in lines:
            row = json.loads(line)
            usable = sum(thought is not None for thought in row["all_thought"])
            own = (1, usable, len(row["all_thought"]) - usable, not usable, *(row.get("tokens") or (0, 0)))
            for name, count in zip(names, own, strict=True):
                counts[name] += count
    return counts
