"""Exploration: an expert writes several thoughts about every query, and none is lost or paid for twice."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from o1_retriever.endpoint.chat import ChatPrompt, ChatRequest
from o1_retriever.endpoint.exchange import Answer, Problem, cost_of
from o1_retriever.errors import SettingsError
from o1_retriever.query import Query
from o1_retriever.reporting import Advance, counted, progress
from o1_retriever_training.experts import Expert, as_experts
from o1_retriever_training.ledger import Input, Ledger, written_rows
from o1_retriever_training.recipe import INSTRUCTIONS, Recipe
from o1_retriever_training.rows import (
    Failure,
    RowProblems,
    TrainingRow,
    count_rows,
    key_of,
    plain_text,
    read_rows,
)

logger = logging.getLogger(__name__)

Experts = Mapping[str, Any] | Any
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a stage is run, none of which changes a row: what to retry, to refuse and to show.

    `retry_failed` asks again for what could not be written before. `strict` raises the first problem of the
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

    `failures` counts candidates that could not be written, `without` rows without any candidate. Tokens are
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
    writers = _writers(recipe, as_experts(experts))
    source = pairs if examples is None else examples
    # RowProblems are told when the rows themselves are read.
    rows = read_rows(source) if isinstance(source, str | Path) else iter(source)
    pool = Examples(list(islice(rows, recipe.example_pool)) if recipe.examples else [])
    manifest = {
        **recipe.to_dict(),
        "experts": [writer.expert.identity for writer in writers],
        "examples drawn from": key_of(json.dumps(pool.content)),
        "hash": recipe.fingerprint,
    }
    with Ledger(out, stage="synthesize", recipe=manifest) as ledger:
        return _to_the_end(_Run(pairs, ledger, recipe, options, writers, pool).work())


def _to_the_end(steps: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine; in a thread of its own where this one has an event loop already, as a notebook has."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(steps)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, steps).result()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Writer:
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
        writers: Sequence[_Writer],
        examples: Examples,
    ) -> None:
        self.ledger, self.recipe, self.options = ledger, recipe, options
        self.writers, self.examples = writers, examples
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
        return list({id(writer.expert): writer.expert for writer in self.writers}.values())

    async def _all(self, advance: Advance) -> None:
        """Keep as many batches of rows going as the experts take, and stop at the first error."""
        experts = self._experts()
        size, most = max(each.batch for each in experts), max(each.at_once for each in experts)

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
                writer = self.writers[candidate]
                wanted.setdefault(id(writer.expert), []).append((place, candidate, request))
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
        for candidate, writer in enumerate(self.writers):
            if known is not None and known.all_thought[candidate] is not None:
                continue
            if writer.instruction not in prompts:
                prompts[writer.instruction] = prompt_for(row, self.recipe, self.examples, writer.instruction)
            prompt, sampling = prompts[writer.instruction], self.recipe.sampling
            query = Query(row.query)
            yield candidate, ChatRequest(query=query, prompt=prompt, index=writer.index, settings=sampling)

    def _with_thoughts(self, row: TrainingRow, answers: Mapping[int, Answer]) -> TrainingRow:
        """The row with its candidates; the tokens are those of the thoughts that it holds."""
        known = self.known.get(row.identity)
        thoughts: list[str | None] = list(known.all_thought) if known else [None] * len(self.writers)
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
                "writers": [writer.expert.identity for writer in self.writers],
                "failures": failures,
                "tokens": (prompt, completion),
            }
        )


def _writers(recipe: Recipe, experts: Mapping[str, Expert]) -> list[_Writer]:
    writers: list[_Writer] = []
    for contributor in recipe.contributors:
        name = contributor.expert or next(iter(experts))
        if name not in experts:
            raise SettingsError(f"The recipe asks the expert {name!r}; expected one of {sorted(experts)}.")
        expert = experts[name]
        first = sum(writer.expert is expert for writer in writers)
        indices = range(first, first + contributor.n)
        writers += [
            _Writer(expert=expert, index=index, instruction=contributor.instruction) for index in indices
        ]
    return writers


def _summarise(path: Path) -> dict[str, int]:
    """What the rows of an output hold, whoever has written them and when."""
    names = ("rows", "candidates", "failures", "without", "prompt_tokens", "completion_tokens")
    counts = dict.fromkeys(names, 0)
    for row in written_rows(path):
        usable = sum(thought is not None for thought in row["all_thought"])
        own = (1, usable, len(row["all_thought"]) - usable, not usable, *(row.get("tokens") or (0, 0)))
        for name, count in zip(names, own, strict=True):
            counts[name] += count
    return counts


_TRIES = 20  # draws per example that is wanted, before a small pool counts as used up


class Examples:
    """Rows to draw in-context examples from: other queries, each with its first positive as the response."""

    def __init__(self, pool: Sequence[TrainingRow]) -> None:
        self._pool = [(row.query, row.pos[0]) for row in pool if row.pos]
        self._plain = [(plain_text(query), plain_text(passage)) for query, passage in self._pool]

    def __len__(self) -> int:
        return len(self._pool)

    @property
    def content(self) -> list[tuple[str, str]]:
        """What may be drawn, in order."""
        return list(self._pool)

    def draw(self, row: TrainingRow, recipe: Recipe) -> list[tuple[str, str]]:
        """Examples for a row: never its query, never a passage that is or contains one of its documents.

        What is drawn depends on the row, the seed and the pool alone.
        """
        if not self._pool or not recipe.examples:
            return []
        forbidden = {plain_text(document) for document in row.pos}
        queries = {plain_text(row.query)}
        generator = random.Random(f"{recipe.seed}:{row.identity}")
        chosen: list[tuple[str, str]] = []
        for _ in range(_TRIES * recipe.examples):
            place = generator.randrange(len(self._pool))
            plain_query, plain_passage = self._plain[place]
            overlaps = any(own in plain_passage or plain_passage in own for own in forbidden)
            if plain_query in queries or overlaps:
                continue
            queries.add(plain_query)
            query, passage = self._pool[place]
            chosen.append((query, _cut(passage, recipe.example_characters)))
            if len(chosen) == recipe.examples:
                break
        return chosen


def prompt_for(
    row: TrainingRow, recipe: Recipe, examples: Examples, instruction: str | None = None
) -> ChatPrompt:
    """The chat that asks for a thought about a row; its `{query}` is to be filled in.

    The examples stand in the one message of the user, which servers without roles understand too.
    """
    known = INSTRUCTIONS | recipe.instructions
    system = instruction or row.prompt or known.get(row.type or "default", known["default"])
    query, response = recipe.labels
    shown = [f"{query}: {text}\n{response}: {passage}" for text, passage in examples.draw(row, recipe)]
    # A `{query}` inside an example would be filled in as well.
    parts = [part.replace("{query}", "{ query }") for part in shown]
    last = f"{query}: {{query}}\n{response}:" if shown else "{query}"
    return ChatPrompt("\n\n".join([*parts, last]), system=system)


def _cut(text: str, most: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 2].rsplit(" ", 1)[0] + " …"
