"""`o1-retriever synthesize | vote | negatives | make-data`, which the command line finds by entry points."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from o1_retriever.cli.options import with_options
from o1_retriever.cli.terminal import messages, warn

if TYPE_CHECKING:
    from o1_retriever_training.recipe import Recipe
    from o1_retriever_training.synthesize import Options

_EXPERT = "The expert: URL of an OpenAI-compatible endpoint, recorded .jsonl, or a model's folder or Hub id."
_COMMITTEE = "Members: bm25, bm25-corpus, minilm, or models' folders or Hub ids, with commas between."


@dataclass(frozen=True, kw_only=True)
class ExpertOptions:
    """Who writes, and how."""

    expert: Annotated[str, typer.Option("--expert", help=_EXPERT)]
    expert_model: Annotated[
        str | None, typer.Option("--expert-model", help="The name by which the endpoint knows its model.")
    ] = None
    recipe: Annotated[
        Path | None, typer.Option("--recipe", help="YAML or JSON with the fields of a recipe.")
    ] = None
    thoughts: Annotated[int | None, typer.Option("-n", "--thoughts", help="Candidates per query.")] = None
    seed: Annotated[int | None, typer.Option("--seed", help="Another seed, other thoughts.")] = None
    temperature: Annotated[float | None, typer.Option("--temperature", help="Variety.")] = None
    concurrency: Annotated[int, typer.Option("--concurrency", help="Requests in flight.")] = 64
    requests: Annotated[
        float | None, typer.Option("--requests-per-minute", help="Limit of the endpoint.")
    ] = None
    tokens: Annotated[float | None, typer.Option("--tokens-per-minute", help="Limit of the endpoint.")] = None
    prices: Annotated[
        str | None, typer.Option("--prices", help="Dollars per million tokens: PROMPT,COMPLETION.")
    ] = None
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Ask again for what could not be had before.")
    ] = False
    strict: Annotated[bool, typer.Option("--strict", help="Refuse the first malformed row.")] = False

    def open(self) -> Any:
        """The expert that the options name. Raises what `as_expert` raises."""
        from o1_retriever.endpoint import RequestPolicy
        from o1_retriever_training.endpoint_expert import EndpointExpert
        from o1_retriever_training.experts import as_expert
        from o1_retriever_training.pacing import RateLimit

        if not (self.expert.startswith(("http://", "https://")) and self.expert_model):
            return as_expert(self.expert, model=self.expert_model)
        policy = RequestPolicy(concurrency=self.concurrency, retries=5, deadline=600.0, timeout=300.0)
        limit = RateLimit(requests=self.requests, tokens=self.tokens)
        return EndpointExpert(self.expert_model, base_url=self.expert, policy=policy, limit=limit)

    def as_recipe(self) -> Recipe:
        """The recipe of the file, with what was typed instead of its fields."""
        from o1_retriever.errors import SettingsError
        from o1_retriever_training.recipe import Recipe, as_recipe, read_recipe

        found = Recipe() if self.recipe is None else read_recipe(self.recipe)
        fields = found.model_dump(mode="json")
        named = {"seed": self.seed, "temperature": self.temperature}
        fields |= {name: value for name, value in named.items() if value is not None}
        if self.thoughts is not None:
            if len(found.contributors) > 1:
                raise SettingsError("Found -n beside a recipe of several contributors, each with its own n.")
            fields["contributors"][0]["n"] = self.thoughts
        return as_recipe(fields, where="The options")

    def options(self) -> Options:
        """How the stages run."""
        from o1_retriever_training.synthesize import Options

        return Options(retry_failed=self.retry_failed, strict=self.strict, prices=self._prices())

    def _prices(self) -> tuple[float, float] | None:
        if self.prices is None:
            return None
        try:
            prompt, completion = (float(part) for part in self.prices.split(","))
        except ValueError:
            raise typer.BadParameter(f"--prices is {self.prices!r}; expected two numbers: 0.5,1.5") from None
        return prompt, completion


@with_options
def synthesize(
    *,
    pairs: Annotated[str, typer.Option("--pairs", help="Rows: .jsonl(.gz|.zst), .parquet, hub:OWNER/NAME.")],
    out: Annotated[Path, typer.Option("--out", help="JSON lines; the same command goes on with them.")],
    expert: ExpertOptions,
) -> None:
    """Have an expert write several thoughts about every query of a file."""
    from o1_retriever_training import synthesize as stage

    options = expert.options()
    tally, problems = stage.synthesize(
        pairs, out, experts=expert.open(), recipe=expert.as_recipe(), options=options
    )
    _warn(str(problems) if problems else "")
    if tally.failures:
        warn(f"{tally.failures} thoughts could not be had; --retry-failed asks for them again.")
    kept = f", {tally.kept:,} were there" if tally.kept else ""
    _say(f"{out}: {tally.written:,} rows written{kept}; {tally.note(options.prices)}")


@with_options
def vote(
    *,
    thoughts: Annotated[str, typer.Option("--in", help="Rows with candidates.")],
    out: Annotated[Path, typer.Option("--out", help="JSON lines; the same command goes on with them.")],
    committee: Annotated[str, typer.Option("--committee", help=_COMMITTEE)] = "bm25,minilm",
    rule: Annotated[str, typer.Option("--rule", help="majority, soft or mean-rank.")] = "majority",
    read: Annotated[
        str, typer.Option("--read", help="What members see: thought or query+thought.")
    ] = "thought",
    corpus: Annotated[Path | None, typer.Option("--corpus", help="Documents for bm25-corpus.")] = None,
    drop_useless: Annotated[
        bool, typer.Option("--drop-useless", help="Leave out rows whose thought is no better than the query.")
    ] = False,
    report: Annotated[Path | None, typer.Option("--report", help="Write a quality page (HTML).")] = None,
) -> None:
    """Have a committee of retrievers elect one thought for every row."""
    from o1_retriever_training import vote as stage
    from o1_retriever_training.quality_page import write_page

    rules = stage.VoteRules(rule=rule, read=read, drop_useless=drop_useless)  # type: ignore[arg-type]
    figures = stage.vote(thoughts, out, committee=_members(committee, corpus), rules=rules)
    _warn(figures["problems"])
    kappa = figures["fleiss_kappa"]
    said = "" if kappa is None else f", Fleiss' kappa {kappa:.2f}"
    _say(f"{out}: {figures['voted']:,} of {figures['rows']:,} rows voted, {figures['unanimous']:.0%} "
         f"unanimous{said}")  # fmt: skip
    left = {name: figures[name] for name in ("without_candidates", "without_positive", "dropped")}
    if any(left.values()):
        _say(", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in left.items() if count))
    for name, share in figures["win_rate"].items():
        _say(
            f"  {name}: with the winner in {share:.0%}, gain over the query {figures['mean_gain'][name]:+.2f}"
        )
    if report is not None:
        _say(f"Written: {write_page(out, report)}")


@with_options
def negatives(
    *,
    rows: Annotated[str, typer.Option("--in", help="Rows with positives.")],
    out: Annotated[Path, typer.Option("--out", help="JSON lines; the same command goes on with them.")],
    corpus: Annotated[Path, typer.Option("--corpus", help="Documents: _id, title, text a line.")],
    by: Annotated[str, typer.Option("--by", help="Who searches: bm25, minilm, or a model.")] = "bm25",
    teacher: Annotated[
        str | None, typer.Option("--teacher", help="A model that scores for distillation.")
    ] = None,
    count: Annotated[int, typer.Option("--count", help="Negatives per row.")] = 15,
    skip: Annotated[int, typer.Option("--skip", help="How many of the best to pass over.")] = 3,
    margin: Annotated[float, typer.Option("--margin", help="How far above the positive, as a share.")] = 0.0,
) -> None:
    """Add hard negatives from a corpus to every row."""
    from o1_retriever_training.negatives import MiningRules, mine_negatives

    rules = MiningRules(count=count, skip=skip, margin=margin, depth=max(100, count + skip))
    found = mine_negatives(rows, out, corpus=corpus, by=by, teacher=teacher, rules=rules)
    _warn(found["problems"])
    fewer = f"{found['fewer_than_wanted']:,} rows have fewer than {count}"
    _say(f"{out}: {found['rows']:,} rows, {found['negatives']:,} negatives; {fewer}")


@with_options
def make_data(
    folder: Annotated[Path, typer.Argument(help="Folder of documents.")],
    *,
    out: Annotated[
        Path, typer.Option("--out", help="Folder for the training file, the report and the stages.")
    ],
    expert: ExpertOptions,
    per_passage: Annotated[int, typer.Option("--queries", help="Queries per passage.")] = 2,
    committee: Annotated[str, typer.Option("--committee", help=_COMMITTEE)] = "bm25,minilm",
    by: Annotated[str, typer.Option("--by", help="Who searches: bm25, minilm, or a model.")] = "bm25",
    within: Annotated[int, typer.Option("--within", help="How high a query must find its passage.")] = 1,
    most: Annotated[int | None, typer.Option("--most", help="At most so many passages.")] = None,
) -> None:
    """Make a training file of a folder: queries, thoughts, votes and negatives, each kept as it is done."""
    from o1_retriever_training import make_data as stage

    plan = stage.DataPlan(
        queries_per_passage=per_passage,
        by=by,
        within=within,
        committee=_members(committee, None),
        most=most,
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


def _members(names: str, corpus: Path | None) -> list[Any]:
    from o1_retriever_training.committee import as_member
    from o1_retriever_training.corpus import read_corpus

    texts = None if corpus is None else read_corpus(corpus).texts
    return [as_member(name.strip(), corpus=texts) for name in names.split(",") if name.strip()]


def _warn(problems: str) -> None:
    if problems:
        warn(problems)


def _say(text: str) -> None:
    messages().print(text, soft_wrap=True)
