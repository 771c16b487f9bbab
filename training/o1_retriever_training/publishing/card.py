"""The model card: what the Hub shows of a model, and the metadata by which it is found.

Its figures are those of `o1-retriever eval`, or the dev figures of the run; its recipe is the run's.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from o1_retriever.engine.template import CONFIG_NAME, Layout, TemplateConfig
from o1_retriever.errors import InputError, SettingsError
from o1_retriever.reporting.table import markdown_table
from o1_retriever_training.publishing.contents import CARD, NF4, SUMMARY, Contents

RECIPE_FILE = "training_recipe.yaml"
_PATHS = ("fast", "thinking")
_TASK = "information-retrieval"
_SHOWN = ("nDCG@10", "Recall@100", "MRR@10", "Success@1")
_NOT_OURS = ("BM25", "HyDE")
_TAGS = ("o1-retriever", "sentence-transformers", "retrieval", "text-generation")
_HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")
_READS: dict[Layout, tuple[str, str, str]] = {
    "paper": ("<query> q <emb>", "<query> q <emb> <thought> t eos <emb>", "<doc> d <emb>"),
    "released": (
        "<query> q </query> <thought> eos <emb>",
        "<query> q </query> <thought> t eos <emb>",
        "d <emb>",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One system on one collection: its measures by name, and what a query costs."""

    collection: str
    split: str
    system: str
    measures: dict[str, float]
    queries: int | None = None
    cost: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The recipe of a training as it is published, in YAML; `fingerprint` is the run's, where it is known."""

    content: bytes
    values: dict[str, Any]
    fingerprint: str | None = None

    @property
    def sha256(self) -> str:
        """Hash of the file, in hexadecimal digits."""
        return hashlib.sha256(self.content).hexdigest()

    def at(self, section: str, name: str) -> Any:
        """A value of a section, None where it is not there."""
        part = self.values.get(section)
        return part.get(name) if isinstance(part, dict) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What is known of a training: its recipe, its steps, its rows in words, and its dev figures."""

    recipe: Recipe | None = None
    steps: int | None = None
    data: str | None = None
    figures: tuple[Figure, ...] = field(default=())


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
    figures = facts.figures or known.figures
    trained_on = base or (known.recipe.at("model", "base") if known.recipe else None)
    data = _metadata(metadata, facts, base=_hub_id(trained_on, source), known=known, figures=figures)
    body = body or _opening(facts, data)
    for title, section in _sections(folder, facts, figures, known):
        if not re.search(rf"^#+\s+{re.escape(title)}\s*$", body, re.MULTILINE):
            body = f"{body.rstrip()}\n\n## {title}\n\n{section}"
    path.write_text(f"---\n{data.to_yaml()}\n---\n\n{body.strip()}\n", encoding="utf-8")
    return _missing(data, figures, known)


def _split(path: Path) -> tuple[dict[str, Any], str]:
    if not path.is_file():
        return {}, ""
    from huggingface_hub import ModelCard

    try:
        card = ModelCard(path.read_text(encoding="utf-8"))
    except Exception as error:  # YAML's errors and the Hub's own
        said = " ".join(str(error).split())
        raise InputError(f"{path.name} opens with metadata that cannot be read: {said}.") from None
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
    values["datasets"] = list(facts.datasets) or values.get("datasets") or _datasets(known.recipe) or None
    values["license"] = facts.license or values.get("license")
    values["language"] = list(facts.language) or values.get("language")
    values.setdefault("library_name", "sentence-transformers")
    values.setdefault("pipeline_tag", "feature-extraction")
    tags = values.get("tags") or []
    values["tags"] = list(dict.fromkeys([*([tags] if isinstance(tags, str) else tags), *_TAGS]))
    if figures:
        values["eval_results"] = as_eval_results(figures)
    if values.get("eval_results"):
        values["model_name"] = facts.repo.rpartition("/")[2]
    else:
        values.pop("eval_results", None)
        values.pop("model_name", None)
    return ModelCardData(**values)


def _hub_id(name: Any, source: Path) -> str | None:
    # A folder on somebody's disk says nothing to a reader of the card.
    if not isinstance(name, str) or not _HUB_ID.fullmatch(name):
        return None
    near = (Path.cwd(), *source.resolve().parents)
    return None if any((place / name).exists() for place in near) else name


def _datasets(recipe: Recipe | None) -> list[str]:
    sources = recipe.at("data", "train") if recipe else None
    paths = [each.get("path") if isinstance(each, dict) else each for each in sources or ()]
    return [path.removeprefix("hub:") for path in paths if isinstance(path, str) and path.startswith("hub:")]


def _opening(facts: CardFacts, data: Any) -> str:
    base = f" It was trained from [{data.base_model}](https://huggingface.co/{data.base_model})." if (
        isinstance(data.base_model, str)) else ""  # fmt: skip
    return (
        f"# {facts.repo.rpartition('/')[2]}\n\n"
        "A language model that thinks before it retrieves: it writes short thoughts about a query and embeds "
        f"the query with them; documents are embedded as they are.{base}\n"
    )


def _sections(
    folder: Path, facts: CardFacts, figures: Sequence[Figure], known: Provenance
) -> list[tuple[str, str]]:
    config = TemplateConfig.from_file(folder / CONFIG_NAME)
    found = [("Use it", _usage(facts.repo, config, nf4=(folder / NF4).is_dir()))]
    found.append(("How it reads", _reading(folder, config)))
    if figures:
        found.append(("Measured", _measured(figures, known)))
    if known.recipe is not None:
        found.append(("Training recipe", _recipe(known.recipe, known)))
    return found


def _usage(repo: str, config: TemplateConfig, *, nf4: bool) -> str:
    queries = config.layout == "paper"
    texts = '["Chlorophyll absorbs light.", "Tigers hunt at night."]'
    fast = 'queries = model.encode_query(["How do plants live on light?"])\n' if queries else ""
    note = "" if queries else " Queries of this layout need o1-retriever."
    four = (
        f'\nQuantised to 4 bits (NF4; needs `pip install "o1-retriever[4bit]"`):\n\n'
        f'```python\nembedder = ThinkingEmbedder.from_pretrained("{repo}/{NF4}")\n```\n'
        if nf4
        else ""
    )
    return f"""\
With o1-retriever (`pip install o1-retriever`):

```python
from o1_retriever import ThinkingEmbedder

embedder = ThinkingEmbedder.from_pretrained("{repo}")
result = embedder.embed_query("How do plants live on light?")
print([thought.text for thought in result.thoughts])
documents = embedder.encode_documents({texts})
print(documents @ result.vector)
```
{four}
With LangChain (`pip install "o1-retriever[langchain]"`):

```python
from langchain_o1_retriever import O1Embeddings

embeddings = O1Embeddings("{repo}")
vector = embeddings.embed_query("How do plants live on light?")
```

With LlamaIndex (`pip install "o1-retriever[llama-index]"`):

```python
from llama_index_o1_retriever import O1Embedding

embedding = O1Embedding("{repo}")
vector = embedding.get_query_embedding("How do plants live on light?")
```

With plain sentence-transformers, without thoughts and without any remote code:{note}

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{repo}")
documents = model.encode_document({texts})
{fast}```
"""


def _reading(folder: Path, config: TemplateConfig) -> str:
    fast, thinking, document = _READS[config.layout]
    model = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    size = (model.get("text_config") or model).get("hidden_size")
    kept = {
        "n_thoughts": "thoughts",
        "temperature": "temperature",
        "top_p": "top-p",
        "max_new_tokens": "tokens at most",
    }
    said = [f"{said} {config.settings[name]}" for name, said in kept.items() if name in config.settings]
    told = (
        f"\nBefore every query stands: `{config.instruction.strip()}`" if config.instruction.strip() else ""
    )
    settings = f"\nIts preferred settings: {', '.join(said)}." if said else ""
    cut = f"documents and queries with thoughts at {config.max_length}"
    return f"""\
| text | as the model reads it |
| --- | --- |
| query, fast | `{fast}` |
| query with a thought | `{thinking}` |
| document | `{document}` |

The embedding is the last hidden state at the last `<emb>`, {size} numbers of unit length. Queries are cut
at {config.max_query_tokens} tokens, {cut}.{told}{settings}
"""


def _measured(figures: Sequence[Figure], known: Provenance) -> str:
    dev = bool(known.figures) and tuple(figures) == known.figures
    chosen = (
        "\nMeasured on the dev split by which the weights were chosen, so the figures flatter a little.\n"
    )
    return f"{as_table(figures)}\n{chosen if dev else ''}"


def _recipe(recipe: Recipe, known: Provenance) -> str:
    tuning = {
        "full": "all weights",
        "lora": "LoRA, merged",
        "qlora": "QLoRA, merged into the dequantised base",
    }
    facts = [
        ("tuning", tuning.get(str(recipe.at("model", "tuning") or ""))),
        ("steps", None if known.steps is None else f"{known.steps:,}"),
        ("data", known.data),
        ("fingerprint of the run", recipe.fingerprint),
    ]
    lines = [f"- {name}: {value}" for name, value in facts if value]
    stated = "\n".join([f"[`{RECIPE_FILE}`]({RECIPE_FILE}), SHA-256 `{recipe.sha256}`.", "", *lines])
    return f"{stated.strip()}\n\nThe same training: `o1-retriever train {RECIPE_FILE}`.\n"


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
    if known.recipe is None:
        found.append("There is no recipe of the training; --recipe FILE adds it.")
    return found


def provenance(found: Contents, given: Path | None) -> Provenance:
    """Read the recipe that is given, else the run's summary in the folder, else a recipe in the folder.

    Raises `InputError` for a file that cannot be read as what it should be.
    """
    summary = _summary(found.folder / SUMMARY)
    if given is not None:
        recipe: Recipe | None = _read_recipe(given)
    elif summary:
        recipe = _of_run(summary)
    else:
        recipe = _read_recipe(found.folder / found.recipe) if found.recipe else None
    data = summary.get("data")
    return Provenance(
        recipe=recipe,
        steps=summary["steps"] if isinstance(summary.get("steps"), int) else None,
        data=data if isinstance(data, str) else None,
        figures=tuple(_dev_figures(summary)),
    )


def _summary(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}.") from None
    if not isinstance(value, dict) or not isinstance(value.get("recipe"), dict):
        raise InputError(f"{path} is not what o1-retriever train writes; expected an object with a recipe.")
    return value


def _of_run(summary: dict[str, Any]) -> Recipe:
    import yaml

    said = yaml.safe_dump(summary["recipe"], sort_keys=False, allow_unicode=True, width=110)
    return Recipe(
        content=said.encode(),
        values=summary["recipe"],
        fingerprint=str(summary.get("fingerprint") or "") or None,
    )


def _read_recipe(path: Path) -> Recipe:
    from o1_retriever_training.recipe import read_yaml

    values = read_yaml(path)
    if not isinstance(values, dict):
        raise SettingsError(f"The recipe {path} is no mapping; expected sections such as model and data.")
    return Recipe(content=path.read_bytes(), values=values)


def _dev_figures(summary: dict[str, Any]) -> list[Figure]:
    best, evaluation = summary.get("best"), summary.get("recipe", {}).get("evaluation")
    if not isinstance(best, dict) or not isinstance(evaluation, dict):
        return []
    name, metric = Path(str(evaluation.get("collection"))).name, str(evaluation.get("metric"))
    queries = evaluation.get("queries")
    found = []
    for path in _PATHS:
        value = best.get(f"{metric} {path}")
        if isinstance(value, int | float):
            tokens = best.get("tokens per thought") if path == "thinking" else None
            found.append(
                Figure(
                    collection=name,
                    split=str(evaluation.get("split") or "dev"),
                    system=f"this model, {path}",
                    measures={metric: float(value)},
                    queries=queries if isinstance(queries, int) else None,
                    cost={"thought_tokens": tokens},
                )
            )
    return found


def read_figures(paths: Sequence[str | Path]) -> list[Figure]:
    """Read result files: `results.jsonl` of a report, what `eval --json` prints, or a report's folder.

    A line is an object with `collection`, `split`, `system` and `measures`; others may follow. Raises
    `InputError` naming the file and line of what cannot be used.
    """
    files = [file for path in paths for file in _result_files(Path(path))]
    return [figure for file in files for figure in _in_results(file)]


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


def as_eval_results(figures: Sequence[Figure]) -> list[Any]:
    """`huggingface_hub.EvalResult`s of the model's own systems, not of what it was compared with."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type=_TASK,
            task_name="Information Retrieval",
            dataset_type=figure.collection.removeprefix("hub:"),
            dataset_name=figure.collection,
            dataset_split=figure.split,
            metric_type=_metric(name),
            metric_name=f"{name}, {figure.system}",
            metric_value=round(value, 4),
        )
        for figure in _own(figures)
        for name, value in figure.measures.items()
    ]


def _own(figures: Sequence[Figure]) -> list[Figure]:
    # The first model measured is the one that is published; its name ends at the first comma or space.
    dense = [figure for figure in figures if not figure.system.startswith(_NOT_OURS)]
    first = _model(dense[0]) if dense else ""
    return [each for each in dense if _model(each) == first and "BM25" not in each.system]


def _model(figure: Figure) -> str:
    return re.split(r"[ ,]", figure.system)[0]


def _metric(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower().replace("@", "_at_")).strip("_")


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


def _result_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(path.rglob("results.jsonl"))
    if not found:
        raise InputError(
            f"{path} holds no results.jsonl; expected a report of o1-retriever eval.",
            hint="Type: o1-retriever eval --model FOLDER --data COLLECTION --report report",
        )
    return found


def _in_results(path: Path) -> list[Figure]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        said = getattr(error, "strerror", None) or error
        raise InputError(f"The results {path} cannot be read: {said}.") from None
    figures = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            figures.extend(_in_line(line, f"{path}, line {number}"))
    if not figures:
        raise InputError(
            f"{path} is empty; expected the figures of o1-retriever eval, one JSON object a line."
        )
    return figures


def _in_line(line: str, where: str) -> list[Figure]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where} is not JSON: {error}.") from None
    rows = value if isinstance(value, list) else [value]
    return [_figure(row, where) for row in rows]


def _figure(row: Any, where: str) -> Figure:
    measures = row.get("measures") if isinstance(row, dict) else None
    names = [row.get(name) for name in ("collection", "system")] if isinstance(row, dict) else []
    numbers = isinstance(measures, dict) and all(_number(value) for value in measures.values())
    if not measures or not numbers or not all(isinstance(name, str) and name for name in names):
        raise InputError(
            f"{where} is no result; expected an object with collection, split, system and measures.",
            hint="Pass the results.jsonl of: o1-retriever eval --report FOLDER",
        )
    cost = row.get("cost")
    return Figure(
        collection=row["collection"],
        split=str(row.get("split") or ""),
        system=row["system"],
        measures={name: float(value) for name, value in measures.items()},
        queries=row.get("queries") if isinstance(row.get("queries"), int) else None,
        cost=cost if isinstance(cost, dict) else {},
    )


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
