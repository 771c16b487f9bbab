"""The model card: its metadata, its figures, what it keeps of a card that was there."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from o1_retriever.engine.template import TemplateConfig
from o1_retriever.errors import InputError, SettingsError
from o1_retriever_training.publishing.card import (
    CardFacts,
    as_audit,
    as_eval_results,
    as_table,
    read_figures,
)
from o1_retriever_training.publishing.staging import StageOptions, stage
from o1_retriever_training.saving import save_embedder
from tests.support.publishing import CONFIG, saved
from tests.support.tiny import tiny_model


def row(system: str, value: float, *, collection: str = "everyday", tokens: float = 0.0) -> dict:
    return {
        "collection": collection,
        "split": "test",
        "queries": 20,
        "system": system,
        "measures": {"nDCG@10": value, "Recall@100": 0.9},
        "cost": {"thought_tokens": tokens, "ms_per_query": 12.34},
    }


def written(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


def test_what_a_run_knows_stands_in_the_card(tmp_path: Path) -> None:
    facts = CardFacts(repo="me/tiny", license="mit", language=("en",))
    staged = stage(saved(tmp_path / "model"), tmp_path / "staging", facts=facts)
    card = ModelCard((tmp_path / "staging" / "README.md").read_text())
    found = card.data.to_dict()
    assert found["base_model"] == "someone/base"
    assert found["datasets"] == ["someone/pairs"]
    assert (found["license"], found["language"]) == ("mit", ["en"])
    assert (found["library_name"], found["pipeline_tag"]) == ("sentence-transformers", "feature-extraction")
    assert "o1-retriever" in found["tags"]
    values = {each.metric_name: each.metric_value for each in card.data.eval_results}
    assert values == {"nDCG@10, this model, fast": 0.5, "nDCG@10, this model, thinking": 0.625}
    assert {each.dataset_split for each in card.data.eval_results} == {"dev"}
    assert "by which the weights were chosen" in card.text
    assert "| everyday, dev | 20 | this model, thinking | 0.625 | 17 |" in card.text
    assert staged.notes == ()
    assert "LoRA, merged" in card.text
    assert "1,200" in card.text
    assert "0123abcd" in card.text
    recipe = (tmp_path / "staging" / "training_recipe.yaml").read_bytes()

    assert hashlib.sha256(recipe).hexdigest() in card.text
    for framework in (
        "ThinkingEmbedder",
        "O1Embeddings",
        "O1Embedding(",
        "SentenceTransformer",
        "encode_query",
    ):
        assert framework in card.text


def test_the_recipe_that_is_published_is_one_that_train_reads(tmp_path: Path) -> None:
    from o1_retriever_training.joint.recipe import read_train_recipe

    written(tmp_path / "thoughts.jsonl")
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("model: {base: someone/base}\ndata: {train: thoughts.jsonl}\noutput: out\n")
    read = read_train_recipe(recipe, check_files=False)
    folder = saved(tmp_path / "model")
    summary = {
        "recipe": read.to_dict(),
        "fingerprint": read.fingerprint,
        "steps": 3,
        "best": None,
        "data": "x",
    }
    (folder / "training.json").write_text(json.dumps(summary))
    stage(folder, tmp_path / "staging", facts=CardFacts(repo="me/tiny"))
    again = read_train_recipe(tmp_path / "staging" / "training_recipe.yaml", check_files=False)
    assert again == read


def test_a_card_that_was_there_keeps_what_it_says(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    text = "---\nlicense: cc-by-4.0\ntags: [mine]\nmine: {a: 1}\n---\n\n# Mine\n\n## Measured\n\nNothing.\n"
    (folder / "README.md").write_text(text)
    stage(folder, tmp_path / "staging", facts=CardFacts(repo="me/tiny"))
    card = ModelCard((tmp_path / "staging" / "README.md").read_text())
    assert card.data.license == "cc-by-4.0"
    assert card.data.tags[0] == "mine"
    assert card.data.to_dict()["mine"] == {"a": 1}
    assert card.text.strip().startswith("# Mine\n\n## Measured\n\nNothing.\n\n## Use it")
    assert card.text.count("## Measured") == 1
    other = CardFacts(repo="me/tiny", license="mit")
    stage(folder, tmp_path / "other", facts=other)
    assert ModelCard((tmp_path / "other" / "README.md").read_text()).data.license == "mit"


def test_a_card_says_how_the_model_reads(tmp_path: Path) -> None:
    settings = {"n_thoughts": 2, "temperature": 0.5, "max_new_tokens": 6}
    config = TemplateConfig(layout="released", max_length=96, instruction="Find the fact:", settings=settings)
    folder = save_embedder(tmp_path / "model", *tiny_model("llama", "released"), config)
    stage(folder, tmp_path / "staging", facts=CardFacts(repo="me/tiny"))
    text = (tmp_path / "staging" / "README.md").read_text()
    assert "| document | `d <emb>` |" in text
    assert "Before every query stands: `Find the fact:`" in text
    assert "32 numbers of unit length" in text
    assert "Its preferred settings: thoughts 2, temperature 0.5, tokens at most 6." in text
    # A prompt cannot close a query of this layout, so that nobody is told to embed one without this library.
    assert "encode_query" not in text
    assert "Queries of this layout need o1-retriever." in text


def test_metadata_that_is_no_yaml(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    (folder / "README.md").write_text("---\nlicense: [mit\n---\n# x\n")
    with pytest.raises(InputError, match=r"README\.md opens with metadata that cannot be read"):
        stage(folder, tmp_path / "staging", facts=CardFacts(repo="me/tiny"))


def test_what_a_card_lacks_is_said(tmp_path: Path) -> None:
    folder = save_embedder(tmp_path / "model", *tiny_model("llama"), CONFIG)
    base = str(save_embedder(tmp_path / "base", *tiny_model("llama"), CONFIG))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: {{base: {base}}}\n")
    staged = stage(folder, tmp_path / "a", facts=CardFacts(repo="me/tiny"))
    assert [
        word for word in ("licence", "base model", "measured", "recipe") if word not in str(staged.notes)
    ] == []
    # A folder on somebody's disk is no base that a reader could load.
    staged = stage(
        folder, tmp_path / "b", facts=CardFacts(repo="me/tiny"), options=StageOptions(recipe=recipe)
    )
    assert "base model" in str(staged.notes)
    assert base not in (tmp_path / "b" / "README.md").read_text()
    recipe.write_text("model: {base: some/folder}\n")
    (tmp_path / "some" / "folder").mkdir(parents=True)
    options = StageOptions(recipe=recipe)
    staged = stage(folder, tmp_path / "c", facts=CardFacts(repo="me/tiny"), options=options)
    assert "base model" in str(staged.notes)


def test_figures_of_other_systems_are_shown_and_not_claimed(tmp_path: Path) -> None:
    rows = [
        row("o1-embedder-22m, no thoughts", 0.5),
        row("o1-embedder-22m, 3 thoughts", 0.6, tokens=40.5),
        row("o1-embedder-22m + BM25, 3 thoughts", 0.7),
        row("BM25", 0.4),
        row("HyDE o1-embedder-22m, 3 thoughts", 0.3),
        row("MiniLM, no thoughts", 0.8),
    ]
    figures = read_figures([written(tmp_path / "results.jsonl", *rows)])
    table = as_table(figures)
    assert "| everyday, test | 20 | o1-embedder-22m, 3 thoughts | 0.600 | 0.900 | 40 | 12.3 |" in table
    assert all(each["system"] in table for each in rows)
    claimed = as_eval_results(figures)
    assert {each.metric_name for each in claimed if each.metric_type == "ndcg_at_10"} == {
        "nDCG@10, o1-embedder-22m, no thoughts",
        "nDCG@10, o1-embedder-22m, 3 thoughts",
    }
    assert {each.metric_type for each in claimed} == {"ndcg_at_10", "recall_at_100"}
    (tmp_path / "report" / "everyday-test").mkdir(parents=True)
    written(tmp_path / "report" / "everyday-test" / "results.jsonl", *rows[:2])
    assert len(read_figures([tmp_path / "report"])) == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ("not JSON\n", "line 1 is not JSON"),
        ('{"collection": "x"}\n', "line 1 is no result"),
        ('{"collection": "x", "system": "y", "measures": {"nDCG@10": NaN}}\n', "line 1 is no result"),
        ("[1]\n", "line 1 is no result"),
    ],
)
def test_results_that_cannot_be_used(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=said):
        read_figures([path])
    with pytest.raises(InputError, match=r"nowhere\.jsonl cannot be read: No such file"):
        read_figures([tmp_path / "nowhere.jsonl"])


def test_the_audit_of_the_thoughts_stands_in_the_card(tmp_path: Path) -> None:
    against = {"mean": 0.2, "difference": 0.3, "p_corrected": 0.0004, "effect": 0.61, "wins": 9}
    verdict = "The thoughts help, and it is what they say that helps."
    audit = {"compared_by": "nDCG@10", "controls": {"another query's thoughts": against}, "verdict": verdict}
    rows = [row("m, no thoughts", 0.4), {**row("m, 3 thoughts", 0.5), **audit}]
    figures = read_figures([written(tmp_path / "results.jsonl", *rows)])
    text = as_audit(figures)
    assert "| everyday | m, 3 thoughts | 0.500 | 0.200 (p 0.0004, d +0.61) |" in text
    assert text.endswith(f"- everyday, m, 3 thoughts: {verdict}")
    assert as_audit(figures[:1]) == ""
    for shown, facts in (
        (True, CardFacts(repo="me/tiny", figures=tuple(figures))),
        (False, CardFacts(repo="me/tiny")),
    ):
        target = tmp_path / f"staged-{shown}"
        stage(saved(tmp_path / f"saved-{shown}"), target, facts=facts, options=StageOptions())
        assert (f"{verdict}" in (target / "README.md").read_text()) is shown
        assert ("## Is it what the thoughts say?" in (target / "README.md").read_text()) is shown


def test_recipes_that_cannot_be_used(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    facts = CardFacts(repo="me/tiny")
    with pytest.raises(SettingsError, match="There is no file"):
        stage(folder, tmp_path / "a", facts=facts, options=StageOptions(recipe=tmp_path / "nowhere.yaml"))
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(SettingsError, match="is no mapping"):
        stage(folder, tmp_path / "b", facts=facts, options=StageOptions(recipe=tmp_path / "list.yaml"))
    (folder / "training.json").write_text("[]")
    with pytest.raises(InputError, match=r"training\.json is not what"):
        stage(folder, tmp_path / "c", facts=facts)
