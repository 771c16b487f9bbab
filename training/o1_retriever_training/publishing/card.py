"""The model card: what the Hub shows of a model, and the metadata by which it is found.

Its figures are those of `o1-retriever eval`, or the dev figures of the run; its recipe is the run's.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from o1_retriever.engine.checkpoint import is_adapter
from o1_retriever.engine.template import CONFIG_NAME, TemplateConfig
from o1_retriever.errors import InputError, SettingsError
from o1_retriever.reporting import markdown_table
from o1_retriever.thinkers.config import ThinkerConfig
from o1_retriever_training.publishing.contents import CARD, NF4, SUMMARY, Contents
from o1_retriever_training.recipe import read_yaml
from o1_retriever_training.rows import HUB

_PATHS = ("fast", "thinking")
_SHOWN = ("nDCG@10", "Recall@100", "MRR@10", "Success@1")
_NOT_OURS = ("BM25", "HyDE")
_TAGS = ("o1-retriever", "sentence-transformers", "retrieval", "text-generation")
_THINKER_TAGS = ("o1-retriever", "retrieval", "text-generation")
_HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")
_TUNING = {"full": "all weights", "lora": "LoRA, merged", "qlora": "QLoRA, merged into the dequantised base"}
_SETTINGS = {
    "n_thoughts": "thoughts",
    "temperature": "temperature",
    "top_p": "top-p",
    "max_new_tokens": "tokens at most",
}

Measure = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class Control(BaseModel):
    """What a system came to with thoughts that say nothing about the query, and what its own gain over it."""

    model_config = ConfigDict(frozen=True)

    mean: Measure
    difference: Measure
    p_corrected: Measure
    effect: Measure


class Figure(BaseModel):
    """One system on one collection: its measures, what a query costs, the audit of its thoughts."""

    model_config = ConfigDict(frozen=True)

    collection: str = Field(min_length=1)
    split: str | None = None
    system: str = Field(min_length=1)
    measures: dict[str, Measure] = Field(min_length=1)
    queries: int | None = None
    cost: dict[str, Any] = Field(default_factory=dict)
    compared_by: str | None = None
    controls: dict[str, Control] = Field(default_factory=dict)
    verdict: str | None = None


class Run(BaseModel):
    """The summary that a training leaves: its recipe, its steps, its rows in words, its best dev figures."""

    recipe: dict[str, Any]
    fingerprint: str | None = None
    steps: int | None = None
    data: str | None = None
    best: dict[str, Any] | None = None

    @property
    def figures(self) -> list[Figure]:
        """The dev figures of the weights that were chosen, fast and thinking."""
        evaluation = self.recipe.get("evaluation") or {}
        metric, best = str(evaluation.get("metric")), self.best or {}
        tokens = best.get("tokens per thought")
        return [
            Figure(
                collection=Path(evaluation["collection"]).name,
                split=evaluation.get("split") or "dev",
                system=f"this model, {path}",
                measures={metric: value},
                queries=evaluation.get("queries"),
                cost={"thought_tokens": tokens if path == "thinking" else None},
            )
            for path in _PATHS
            if (value := best.get(f"{metric} {path}")) is not None
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What is known of a training: its recipe, as values and as it is published in YAML, and its run.

    Without a recipe, `content` is None; without a run, `run` is an empty one.
    """

    content: bytes | None
    recipe: dict[str, Any]
    run: Run

    def at(self, section: str, name: str) -> Any:
        """A value of a section of the recipe, None where it is not there."""
        part = self.recipe.get(section)
        return part.get(name) if isinstance(part, dict) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class CardFacts:
    """What a card says that no file of the model knows. None and empty: unknown.

    `base_model` and `datasets` are Hub ids, `license` is an identifier of the Hub such as apache-2.0.
    """

    repo: str
    license: str | None = None
    base_model: str | None = None
    datasets: tuple[str, ...] = ()
    language: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()


def write_card(
    folder: Path, *, facts: CardFacts, base: str | None, known: Provenance, source: Path
) -> list[str]:
    """Write the card into a folder that is otherwise ready; return what a reader of it will miss.

    `source` is the training's folder: a base that lies near it is a folder, not a model of the Hub.
    A card that is there keeps its text and its metadata: sections that it lacks are added. Raises
    `InputError` for metadata that is no YAML.
    """
    path = folder / CARD
    metadata, body = _split(path)
    figures = facts.figures or tuple(known.run.figures)
    hub_id = _hub_id(base or known.at("model", "base"), source)
    thinker = ThinkerConfig.beside(folder)
    if thinker is not None:
        metadata = _of_thinker(folder) | metadata
    data = _metadata(metadata, facts, base=hub_id, known=known, figures=figures)
    opening, *sections = re.split(r"^## ", _text(folder, data, facts, figures, known), flags=re.MULTILINE)
    body = body or opening
    for section in sections:
        title = section.partition("\n")[0]
        if not re.search(rf"^#+\s+{re.escape(title)}\s*$", body, re.MULTILINE):
            body = f"{body.rstrip()}\n\n## {section}"
    path.write_text(f"---\n{data.to_yaml()}\n---\n\n{body.strip()}\n", encoding="utf-8")
    return _missing(data, figures, known)


def _split(path: Path) -> tuple[dict[str, Any], str]:
    if not path.is_file():
        return {}, ""
    from huggingface_hub import ModelCard

    try:
        card = ModelCard(path.read_text(encoding="utf-8"))
    except Exception as error:  # YAML's errors and the Hub's own
        reason = " ".join(str(error).split())
        raise InputError(f"{path.name} opens with metadata that cannot be read: {reason}.") from None
    return dict(card.data.__dict__), str(card.text).strip()


def _metadata(
    metadata: dict[str, Any],
    facts: CardFacts,
    *,
    base: str | None,
    known: Provenance,
    figures: Sequence[Figure],
) -> Any:
    from huggingface_hub import ModelCardData

    values = {name: value for name, value in metadata.items() if value is not None}
    if facts.base_model or "base_model" not in values:
        values["base_model"] = facts.base_model or base
    sources = known.at("data", "train") or ()
    paths = [each.get("path") if isinstance(each, dict) else each for each in sources]
    hub = [path.removeprefix(HUB) for path in paths if isinstance(path, str) and path.startswith(HUB)]
    values["datasets"] = list(facts.datasets) or values.get("datasets") or hub or None
    values["license"] = facts.license or values.get("license")
    values["language"] = list(facts.language) or values.get("language")
    values.setdefault("library_name", "sentence-transformers")
    values.setdefault("pipeline_tag", "feature-extraction")
    tags = values.get("tags") or []
    ours = _TAGS if values["pipeline_tag"] == "feature-extraction" else _THINKER_TAGS
    values["tags"] = list(dict.fromkeys([*([tags] if isinstance(tags, str) else tags), *ours]))
    if figures:
        values["eval_results"] = as_eval_results(figures)
    if values.get("eval_results"):
        values["model_name"] = facts.repo.rpartition("/")[2]
    else:
        values.pop("eval_results", None)
        values.pop("model_name", None)
    return ModelCardData(**values)


def _of_thinker(folder: Path) -> dict[str, Any]:
    library = "peft" if is_adapter(folder) else "transformers"
    return {"library_name": library, "pipeline_tag": "text-generation"}


def _hub_id(name: Any, source: Path) -> str | None:
    # A folder on somebody's disk says nothing to a reader of the card.
    if not isinstance(name, str) or not _HUB_ID.fullmatch(name):
        return None
    near = (Path.cwd(), *source.resolve().parents)
    return None if any((place / name).exists() for place in near) else name


def _text(folder: Path, data: Any, facts: CardFacts, figures: Sequence[Figure], known: Provenance) -> str:
    """The text of a card that is new, by the template beside this file."""
    from huggingface_hub import ModelCard

    thinker = ThinkerConfig.beside(folder)
    config = thinker or TemplateConfig.from_file(folder / CONFIG_NAME)
    path = folder / "config.json"
    model = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    settings = [f"{word} {config.settings[key]}" for key, word in _SETTINGS.items() if key in config.settings]
    run = known.run
    card = ModelCard.from_template(
        data,
        template_path=str(Path(__file__).with_name("card.jinja")),
        name=facts.repo.rpartition("/")[2],
        repo=facts.repo,
        base_model=data.base_model if isinstance(data.base_model, str) else None,
        nf4=(folder / NF4).is_dir(),
        thinker=thinker is not None,
        adapter=is_adapter(folder),
        released=isinstance(config, TemplateConfig) and config.layout == "released",
        config=config,
        dimension=(model.get("text_config") or model).get("hidden_size"),
        settings=", ".join(settings),
        table=as_table(figures) if figures else None,
        audit=as_audit(figures),
        dev=not facts.figures,
        sha256=None if known.content is None else hashlib.sha256(known.content).hexdigest(),
        facts={
            "tuning": "LoRA" if is_adapter(folder) else _TUNING.get(str(known.at("model", "tuning"))),
            "steps": None if run.steps is None else f"{run.steps:,}",
            "data": run.data,
            "fingerprint of the run": run.fingerprint if known.recipe is run.recipe else None,
        }.items(),
    )
    return str(card.text)


def _missing(data: Any, figures: Sequence[Figure], known: Provenance) -> list[str]:
    found = []
    if not data.get("license"):
        found.append("The card names no licence; --license apache-2.0, for example, says it.")
    if not data.get("base_model"):
        found.append("The card names no base model; --base-model user/name says it.")
    if not figures and not data.get("eval_results"):
        found.append(
            "The card's metadata has no measured results; --results FILE adds what o1-retriever eval wrote."
        )
    if known.content is None:
        found.append("There is no recipe of the training; --recipe FILE adds it.")
    return found


def provenance(found: Contents, given: Path | None) -> Provenance:
    """Read the recipe that is given, else the run's summary in the folder, else a recipe in the folder.

    Raises `InputError` for a file that cannot be read as what it should be.
    """
    summary, run = found.folder / SUMMARY, Run(recipe={})
    path = given
    if summary.is_file():
        try:
            run = Run.model_validate_json(summary.read_bytes())
        except OSError as error:
            raise InputError(f"{summary} cannot be read: {error}.") from None
        except ValidationError:
            raise InputError(
                f"{summary} is not what o1-retriever train writes; expected an object with a recipe."
            ) from None
    elif given is None and found.recipe:
        path = found.folder / found.recipe
    if path is not None:
        recipe = read_yaml(path)
        if not isinstance(recipe, dict):
            raise SettingsError(f"The recipe {path} is no mapping; expected sections such as model and data.")
        return Provenance(content=path.read_bytes(), recipe=recipe, run=run)
    if not summary.is_file():
        return Provenance(content=None, recipe={}, run=run)
    content = yaml.safe_dump(run.recipe, sort_keys=False, allow_unicode=True, width=110)
    return Provenance(content=content.encode(), recipe=run.recipe, run=run)


def read_figures(paths: Sequence[str | Path]) -> list[Figure]:
    """Read result files: `results.jsonl` of a report, what `eval --json` prints, or a report's folder.

    A line is an object with `collection`, `split`, `system` and `measures`; others may follow. Raises
    `InputError` naming the file and line of what cannot be used.
    """
    found: list[Figure] = []
    for path in map(Path, paths):
        files = sorted(path.rglob("results.jsonl")) if path.is_dir() else [path]
        if not files:
            raise InputError(
                f"{path} holds no results.jsonl; expected a report of o1-retriever eval.",
                hint="Type: o1-retriever eval --model FOLDER --data COLLECTION --report report",
            )
        found += [figure for file in files for figure in _in_results(file)]
    return found


def as_table(figures: Sequence[Figure]) -> str:
    """A Markdown table of all systems, one line each; a column that nobody fills is left out."""
    names = list(dict.fromkeys(name for figure in figures for name in figure.measures))
    shown = [name for name in names if name in _SHOWN] or names[:3]
    heads = ["collection", "queries", "system", *shown, "thought tokens", "ms/query"]
    rows = [_cells(figure, shown) for figure in figures]
    kept = [place for place in range(len(heads)) if any(row[place] for row in rows)]
    return markdown_table(
        [heads[place] for place in kept],
        [[row[place] for place in kept] for row in rows],
        texts=[place for place, column in enumerate(kept) if heads[column] in ("collection", "system")],
    )


def as_audit(figures: Sequence[Figure]) -> str:
    """Own thoughts against the query alone and each control as a table, and the verdicts; or ""."""
    audited = [figure for figure in figures if figure.controls]
    others = list(dict.fromkeys(name for figure in audited for name in figure.controls))
    if not audited:
        return ""
    rows = [
        [
            figure.collection,
            figure.system,
            f"{figure.measures.get(figure.compared_by or '', math.nan):.3f}",
            *(_against(figure.controls.get(name)) for name in others),
        ]
        for figure in audited
    ]
    table = markdown_table(["collection", "system", "own thoughts", *others], rows, texts=(0, 1))
    verdicts = [
        f"- {figure.collection}, {figure.system}: {figure.verdict}" for figure in audited if figure.verdict
    ]
    return "\n".join([table, "", *verdicts])


def _against(found: Control | None) -> str:
    return "" if found is None else f"{found.mean:.3f} (p {found.p_corrected:.4f}, d {found.effect:+.2f})"


def as_eval_results(figures: Sequence[Figure]) -> list[Any]:
    """`huggingface_hub.EvalResult`s of the model's own systems, not of what it was compared with."""
    from huggingface_hub import EvalResult

    # The first model measured is the one that is published; its name ends at the first comma or space.
    dense = [
        (re.split(r"[ ,]", each.system)[0], each) for each in figures if not each.system.startswith(_NOT_OURS)
    ]
    return [
        EvalResult(
            task_type="information-retrieval",
            task_name="Information Retrieval",
            dataset_type=figure.collection.removeprefix(HUB),
            dataset_name=figure.collection,
            dataset_split=figure.split,
            metric_type=re.sub(r"[^a-z0-9]+", "_", name.lower().replace("@", "_at_")).strip("_"),
            metric_name=f"{name}, {figure.system}",
            metric_value=round(value, 4),
        )
        for model, figure in dense
        if model == dense[0][0] and "BM25" not in figure.system
        for name, value in figure.measures.items()
    ]


def _cells(figure: Figure, shown: Sequence[str]) -> list[str]:
    tokens = figure.cost.get("thought_tokens")
    spent = figure.cost.get("ms_per_query")
    return [
        f"{figure.collection}, {figure.split}" if figure.split else figure.collection,
        "" if figure.queries is None else str(figure.queries),
        figure.system,
        *(f"{figure.measures[name]:.3f}" if name in figure.measures else "" for name in shown),
        f"{tokens:.0f}" if isinstance(tokens, int | float) and tokens else "",
        f"{spent:.1f}" if isinstance(spent, int | float) else "",
    ]


def _in_results(path: Path) -> list[Figure]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"The results {path} cannot be read: {reason}.") from None
    figures: list[Figure] = []
    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line) if line.strip() else []
            figures += [Figure.model_validate(row) for row in (value if isinstance(value, list) else [value])]
        except ValidationError:
            raise InputError(
                f"{path}, line {number} is no result; expected an object with collection, split, system and "
                "measures.",
                hint="Pass the results.jsonl of: o1-retriever eval --report FOLDER",
            ) from None
        except ValueError as error:
            raise InputError(f"{path}, line {number} is not JSON: {error}.") from None
    if not figures:
        raise InputError(
            f"{path} is empty; expected the figures of o1-retriever eval, one JSON object a line."
        )
    return figures
