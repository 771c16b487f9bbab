"""The model card: what the Hub shows of a model, and the metadata by which it is found."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from o1_retriever.engine.template import CONFIG_NAME, Layout, TemplateConfig
from o1_retriever.errors import InputError
from o1_retriever_training.publishing.contents import CARD, NF4
from o1_retriever_training.publishing.figures import Figure, as_eval_results, as_table
from o1_retriever_training.publishing.provenance import RECIPE_FILE, Provenance, Recipe

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
        "k": "thoughts",
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
