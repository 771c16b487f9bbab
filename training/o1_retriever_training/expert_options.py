"""The options of every command that asks an expert."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
        bool, _expert("--retry-failed", help="Ask again for what could not be had before.")
    ] = False
    recipe: Annotated[Path | None, _recipe(help="YAML or JSON with the fields of a recipe.")] = None
    thoughts: Annotated[int | None, _recipe("-n", "--n-thoughts", help="Candidates per query.")] = None
    seed: Annotated[int | None, _recipe(help="Another seed, other thoughts.")] = None
    temperature: Annotated[float | None, _recipe(help="Variety.")] = None
    max_tokens: Annotated[int | None, _recipe(help="How long a thought may get, in tokens.")] = None
    strict: Annotated[bool, typer.Option("--strict", help="Refuse the first malformed row.")] = False

    def open(self) -> Any:
        """The expert that the options name, or several by name. Raises what `as_expert` raises."""
        from o1_retriever.errors import SettingsError

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
        from o1_retriever.endpoint.limits import RateLimit, RequestPolicy
        from o1_retriever_training.experts import as_expert

        if not value.startswith(("http://", "https://")) and not value.endswith((".jsonl", ".jsonl.gz")):
            from o1_retriever.cli.models import quiet

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
        from o1_retriever.errors import SettingsError
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
                said = f"--prices is {self.prices!r}; expected two numbers: 0.5,1.5"
                raise typer.BadParameter(said) from None
            prices = prompt, completion
        return Options(retry_failed=self.retry_failed, strict=self.strict, prices=prices)


def _by_name(values: list[str]) -> dict[str, str]:
    """Values of `NAME=...` by name; one without a name has the empty one."""
    matches = [(value, _NAMED.fullmatch(value)) for value in values]
    return dict((found[1], found[2]) if found else ("", value) for value, found in matches)
