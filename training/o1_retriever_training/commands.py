"""`o1-retriever synthesize | vote | negatives | make-data | adapt | improve`."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from o1_retriever.cli.models import THINKER, encoder_name, quiet
from o1_retriever.cli.options import ModelOptions, with_options
from o1_retriever.cli.terminal import messages, output, show_log, warn
from o1_retriever.errors import SettingsError, require
from o1_retriever.reporting import counted

if TYPE_CHECKING:
    from o1_retriever_training.recipe import Recipe
    from o1_retriever_training.synthesize import Options

_NAMED = re.compile(r"([A-Za-z_][\w-]*)=(.+)")
_expert = functools.partial(typer.Option, rich_help_panel="Expert")
_recipe = functools.partial(typer.Option, rich_help_panel="Recipe")


@dataclass(frozen=True, kw_only=True)
class ExpertOptions:
    """Who writes, and how."""

    expert: Annotated[
        list[str],
        _expert(
            help="URL of an OpenAI-compatible endpoint, recorded .jsonl, or a model's folder or Hub id. "
            "Several for an ensemble, as NAME=..., with the names that the recipe has for them."
        ),
    ]
    expert_model: Annotated[
        list[str] | None, _expert(help="The name by which the endpoint knows its model (or NAME=...).")
    ] = None
    concurrency: Annotated[int, _expert(help="Requests in flight.")] = 64
    timeout: Annotated[float, _expert(help="Seconds a request may take.")] = 300.0
    requests: Annotated[float | None, _expert("--requests-per-minute", help="Limit of the endpoint.")] = None
    tokens: Annotated[float | None, _expert("--tokens-per-minute", help="Limit of the endpoint.")] = None
    prices: Annotated[str | None, _expert(help="Dollars per million tokens: PROMPT,COMPLETION.")] = None
    device: Annotated[str | None, _expert(help="Where a model of --expert runs: cpu, cuda or cuda:N.")] = None
    four_bit: Annotated[bool, _expert("--4bit", help="Load a model of --expert in 4 bits (NF4).")] = False
    retry_failed: Annotated[
        bool, _expert("--retry-failed", help="Ask again for what could not be written before.")
    ] = False
    recipe: Annotated[Path | None, _recipe(help="YAML or JSON with the fields of a recipe.")] = None
    thoughts: Annotated[int | None, _recipe("-n", "--n-thoughts", help="Candidates per query.")] = None
    seed: Annotated[int | None, _recipe(help="Another seed, other thoughts.")] = None
    temperature: Annotated[float | None, _recipe(help="Variety.")] = None
    max_tokens: Annotated[int | None, _recipe(help="How long a thought may get, in tokens.")] = None
    strict: Annotated[bool, typer.Option("--strict", help="Refuse the first malformed row.")] = False

    def open(self) -> Any:
        """The expert that the options name, or several by name. Raises what `as_expert` raises."""
        values, models = _by_name(self.expert), _by_name(self.expert_model or [])
        if len(values) < len(self.expert) or (len(values) > 1 and "" in values):
            raise SettingsError(
                f"Found the experts {self.expert}; expected one, or several with a name of its own each.",
                hint="Type: --expert big=http://HOST/v1 --expert-model big=NAME --expert book=thoughts.jsonl",
            )
        if strangers := sorted(set(models) - set(values)):
            raise SettingsError(f"There is a model for {strangers}; expected some of {sorted(values)}.")
        opened = {name: self._one(value, models.get(name)) for name, value in values.items()}
        return opened.get("", opened)

    def _one(self, value: str, model: str | None) -> Any:
        from o1_retriever.endpoint.exchange import RateLimit, RequestPolicy
        from o1_retriever.thinkers import is_elsewhere
        from o1_retriever_training.experts import as_expert

        if not is_elsewhere(value):
            quiet()
        return as_expert(
            value,
            model=model,
            policy=RequestPolicy(
                concurrency=self.concurrency, retries=5, deadline=2 * self.timeout, timeout=self.timeout
            ),
            limit=RateLimit(requests=self.requests, tokens=self.tokens),
            device=self.device,
            load_in_4bit=self.four_bit,
        )

    def as_recipe(self) -> Recipe:
        """The recipe of the file, with what was typed instead of its fields."""
        from o1_retriever_training.recipe import Recipe, read_yaml

        read = {} if self.recipe is None else read_yaml(self.recipe)
        recipe = Recipe.of(read, where=str(self.recipe))
        fields = recipe.model_dump(mode="json")
        named = {"seed": self.seed, "temperature": self.temperature, "max_tokens": self.max_tokens}
        fields |= {name: value for name, value in named.items() if value is not None}
        if self.thoughts is not None:
            if len(recipe.contributors) > 1:
                raise SettingsError("Found -n beside a recipe of several contributors, each with its own n.")
            fields["contributors"][0]["n"] = self.thoughts
        return Recipe.of(fields, where="The options")

    def options(self) -> Options:
        """How the stages run."""
        from o1_retriever_training.synthesize import Options

        prices = None
        if self.prices is not None:
            try:
                prompt, completion = (float(part) for part in self.prices.split(","))
            except ValueError:
                raise typer.BadParameter(
                    f"--prices is {self.prices!r}; expected two numbers: 0.5,1.5"
                ) from None
            prices = prompt, completion
        return Options(retry_failed=self.retry_failed, strict=self.strict, prices=prices)


def _by_name(values: list[str]) -> dict[str, str]:
    """Values of `NAME=...` by name; one without a name has the empty one."""
    matches = [(value, _NAMED.fullmatch(value)) for value in values]
    return dict((found[1], found[2]) if found else ("", value) for value, found in matches)


_COMMITTEE = "Members: bm25, bm25-corpus, minilm, or models' folders or Hub ids, with commas between."
Out = Annotated[Path, typer.Option("--out", help="JSON lines; the same command goes on with them.")]
Report = Annotated[Path | None, typer.Option("--report", help="Write a quality page (HTML).")]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse the first malformed row.")]
Committee = Annotated[str, typer.Option("--committee", help=_COMMITTEE)]
By = Annotated[str, typer.Option("--by", help="Who searches: bm25, minilm, or a model.")]
DropUseless = Annotated[
    bool, typer.Option("--drop-useless", help="Leave out rows whose thought is no better than the query.")
]


@with_options
def synthesize(
    *,
    pairs: Annotated[str, typer.Option(help="Rows: .jsonl(.gz|.zst), .parquet, hub:OWNER/NAME.")],
    out: Out,
    examples: Annotated[
        str | None, typer.Option(help="Rows to draw in-context examples from, if not --pairs.")
    ] = None,
    report: Report = None,
    expert: ExpertOptions,
) -> None:
    """Have an expert write several thoughts about every query of a file."""
    from o1_retriever_training import synthesize as stage

    options = expert.options()
    tally, problems = stage.synthesize(
        pairs, out, experts=expert.open(), recipe=expert.as_recipe(), options=options, examples=examples
    )
    _warn(str(problems) if problems else "")
    _check_some(tally.written + tally.kept, pairs, "a query")
    if tally.failures:
        warn(f"{counted(tally.failures, 'thought')} failed; --retry-failed asks again.")
    were = "was" if tally.kept == 1 else "were"
    kept = f", {tally.kept:,} {were} there" if tally.kept else ""
    _say(f"{out}: {counted(tally.written, 'row')} written{kept}; {tally.note(options.prices)}")
    _report(out, report)


@with_options
def vote(
    *,
    thoughts: Annotated[str, typer.Option("--in", help="Rows with candidates.")],
    out: Out,
    committee: Committee = "bm25,minilm",
    rule: Annotated[
        Literal["majority", "soft", "mean-rank"], typer.Option(help="How votes are counted.")
    ] = "majority",
    read: Annotated[Literal["thought", "query+thought"], typer.Option(help="What members see.")] = "thought",
    corpus: Annotated[Path | None, typer.Option(help="Documents for bm25-corpus.")] = None,
    drop_useless: DropUseless = False,
    weight: Annotated[
        list[str] | None, typer.Option(help="MEMBER=NUMBER: how much its vote counts (1).")
    ] = None,
    strict: Strict = False,
    report: Report = None,
) -> None:
    """Have a committee of retrievers elect one thought for every row."""
    from o1_retriever_training import vote as stage

    quiet()
    weights = {}
    for each in weight or []:
        name, _, number = each.rpartition("=")
        try:
            weights[name] = float(number)
        except ValueError:
            raise typer.BadParameter(f"--weight is {each!r}; expected MEMBER=NUMBER") from None
    rules = stage.VoteRules(rule=rule, weights=weights, read=read, drop_useless=drop_useless)
    figures = stage.vote(thoughts, out, committee=_members(committee, corpus), rules=rules, strict=strict)
    _warn(figures["problems"])
    _check_some(figures["rows"], thoughts, "thoughts (all_thought)")
    kappa = figures["fleiss_kappa"]
    agreement = "" if kappa is None else f", Fleiss' kappa {kappa:.2f}"
    voted = f"{figures['voted']:,} of {counted(figures['rows'], 'row')} voted"
    _say(f"{out}: {voted}, {figures['unanimous']:.0%} unanimous{agreement}")
    remarks = {
        "without_candidates": "without a usable candidate",
        "without_positive": "without a positive",
        "several_positives": "with several positives, judged by the first",
        "dropped": "left out: no better than the query",
    }
    for name, remark in remarks.items():
        if figures[name]:
            _say(f"  {counted(figures[name], 'row')} {remark}")
    for name, share in figures["win_rate"].items():
        _say(
            f"  {name}: with the winner in {share:.0%}, gain over the query {figures['mean_gain'][name]:+.2f}"
        )
    _report(out, report)


@with_options
def negatives(
    *,
    rows: Annotated[str, typer.Option("--in", help="Rows with positives.")],
    out: Out,
    corpus: Annotated[Path, typer.Option(help="Documents: _id, title, text a line.")],
    by: By = "bm25",
    teacher: Annotated[
        str | None, typer.Option(help="Who scores for distillation: a model, minilm, cross-encoder:MODEL.")
    ] = None,
    count: Annotated[int, typer.Option(help="Negatives per row.")] = 15,
    skip: Annotated[int, typer.Option(help="How many of the best to pass over.")] = 3,
    margin: Annotated[float, typer.Option(help="How far above the positive, as a share.")] = 0.0,
    strict: Strict = False,
    report: Report = None,
) -> None:
    """Add hard negatives from a corpus to every row."""
    from o1_retriever_training.negatives import MiningRules, mine_negatives
    from o1_retriever_training.synthesize import Options

    quiet()
    rules = MiningRules(count=count, skip=skip, margin=margin, depth=max(100, count + skip))
    figures = mine_negatives(
        rows, out, corpus=corpus, by=by, teacher=teacher, rules=rules, options=Options(strict=strict)
    )
    _warn(figures["problems"])
    _check_some(figures["rows"], rows, "a query and a positive")
    written = f"{counted(figures['rows'], 'row')}, {counted(figures['negatives'], 'negative')}"
    _say(f"{out}: {written}; {counted(figures['fewer_than_wanted'], 'row')} with fewer than {count}")
    _report(out, report)


@with_options
def make_data(
    folder: Annotated[Path, typer.Argument(help="Folder of documents.")],
    *,
    out: Annotated[
        Path, typer.Option(help="Folder for the training file, the report and the stages.")
    ] = Path("training-data"),
    expert: ExpertOptions,
    per_passage: Annotated[int, typer.Option("--queries", help="Queries per passage.")] = 2,
    committee: Committee = "bm25,minilm",
    by: By = "bm25",
    within: Annotated[int, typer.Option(help="How high a query must find its passage.")] = 1,
    most: Annotated[int | None, typer.Option(help="At most so many passages.")] = None,
    drop_useless: DropUseless = False,
    examples: Annotated[
        Path | None, typer.Option("--query-examples", help="Pairs that show what questions people ask.")
    ] = None,
) -> None:
    """Make a training file of a folder: queries, thoughts, votes and negatives, each kept as it is done."""
    from o1_retriever_training import make_data as stage
    from o1_retriever_training.vote import VoteRules

    quiet()
    plan = stage.DataPlan(
        queries_per_passage=per_passage,
        by=by,
        within=within,
        committee=_members(committee, None),
        rules=VoteRules(drop_useless=drop_useless),
        most=most,
        examples=examples,
    )
    stage.make_data(
        folder,
        out,
        expert=expert.open(),
        recipe=expert.as_recipe(),
        plan=plan,
        options=expert.options(),
        say=_say,
    )
    _say(f"Written: {out / 'train.jsonl'} and {out / 'report.html'}")


@with_options
def adapt(
    index: Annotated[Path, typer.Argument(help="Folder of the index.", show_default=False)],
    *,
    out: Annotated[Path, typer.Option("--out", help="Folder of the work; the same command goes on.")] = Path(
        "my-thinker"
    ),
    questions: Annotated[
        Path | None,
        typer.Option("--questions", help="Rows with `query` and `pos` (texts) or `pos_ids` of the index."),
    ] = None,
    hours: Annotated[float, typer.Option("--hours", help="How long to train.")] = 1.0,
    encoder: Annotated[
        str | None, typer.Option("--encoder", help="What embedded the index (default: as `search` has it).")
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", help="The language model that becomes the thinker.")
    ] = None,
    passages: Annotated[
        int, typer.Option("--ask-about", help="Without --questions: passages that some are written about.")
    ] = 600,
    seed: Annotated[int, typer.Option("--seed", help="Another seed, other rows and another choice.")] = 0,
    rounds: Annotated[
        int, typer.Option("--rounds", help="Rounds in which its own best thoughts are learned.")
    ] = 0,
    correct: Annotated[
        bool,
        typer.Option("--correct", help="Also learn to correct the vectors of queries; needs --questions."),
    ] = False,
    prepare: Annotated[
        bool, typer.Option("--prepare", help="Write the rows and the recipe for `train`, and end.")
    ] = False,
) -> None:
    """Train a small model to think for the INDEX that you have, and keep it if it helps.

    The index's vectors stay as they are. Questions are kept apart to judge by; stopped, it goes on.
    """
    _require_packages()
    from o1_retriever.encoders import SentenceTransformerEncoder
    from o1_retriever.index.index import Index
    from o1_retriever_training import adapt as stages

    quiet()
    show_log("o1_retriever_training")
    named = encoder_name(ModelOptions(encoder=encoder))
    how: dict[str, Any] = {"rounds": rounds, "correct": correct, "seed": seed}
    plan = stages.AdaptPlan(base=base or THINKER, hours=hours, asked=passages, **how)
    embeds = SentenceTransformerEncoder(named)
    with Index(index, stages.only_embeds(embeds), create=False) as opened:
        work = stages.Workplace(folder=out, index=opened, encoder=embeds, plan=plan, say=_say)
        if prepare:
            stages.prepare(work, questions)
            stages.schedule(work)
            _say(f"Next: o1-retriever train {out / 'recipe.yaml'}, then this command without --prepare")
            return
        verdict = stages.adapt(work, questions=questions)
    output().print(verdict.table(), soft_wrap=True, markup=False)
    _say(verdict.sentence())
    if verdict.is_good:
        _say(f'Next: o1-retriever search "question" --index {index} --thinker {out / stages.THINKER}')


@with_options
def improve(
    recipe: Annotated[Path, typer.Argument(help="Recipe (YAML) whose base model thinks already.")],
    *,
    pairs: Annotated[str, typer.Option(help="Queries and positives to think about.")],
    out: Annotated[Path, typer.Option(help="Folder of the rounds; the same command goes on.")],
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="At most so many.")] = 3,
    samples: Annotated[
        int | None, typer.Option(help="Thoughts per query and round (default: 4, of a thinker 8).")
    ] = None,
    temperature: Annotated[float, typer.Option(help="How far they differ.")] = 0.8,
    max_tokens: Annotated[int, typer.Option(help="The longest thought.")] = 64,
    committee: Committee = "bm25,minilm",
) -> None:
    """Have a model sample thoughts, choose the best, and train it on them, while that helps.

    A committee elects; of a thinker beside an encoder those are chosen that lift a query's passages.
    """
    _require_packages()
    from o1_retriever_training.improve import Improvement
    from o1_retriever_training.improve import improve as run
    from o1_retriever_training.joint.recipe import read_train_recipe

    quiet()
    # `output` is each round's own.
    base = read_train_recipe(recipe, [*(changes or []), f"output={out}"])
    plan = Improvement(
        rounds=rounds,
        samples=samples,
        temperature=temperature,
        max_tokens=max_tokens,
        committee=_members(committee, None),
    )
    done = run(base, pairs, out, plan=plan, say=_say)
    best = [each for each in done if each.improved][-1]
    _say(f"Best: {best.model} (round {best.number})")


def _require_packages() -> None:
    """Raise `MissingExtraError` where training cannot be begun."""
    for module in ("pydantic", "yaml"):
        require(module, extra="train", purpose="Training")


def _check_some(rows: int, source: str, what: str) -> None:
    from o1_retriever_training.rows import DataError

    if not rows:
        raise DataError(f"{source} has no usable row; expected rows with {what}.")


def _members(names: str, corpus: Path | None) -> list[Any]:
    from o1_retriever_training.rows import read_corpus
    from o1_retriever_training.scorers import as_scorer

    texts = None if corpus is None else read_corpus(corpus).texts
    return [as_scorer(name.strip(), corpus=texts) for name in names.split(",") if name.strip()]


def _report(rows: Path, page: Path | None) -> None:
    from o1_retriever_training.pages import write_page

    if page is not None:
        _say(f"Written: {write_page(rows, page)}")


def _warn(problems: str) -> None:
    if problems:
        warn(problems)


def _say(text: str) -> None:
    messages().print(text, soft_wrap=True)
