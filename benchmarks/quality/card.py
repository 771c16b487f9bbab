"""The metadata of o1-embedder-22m's card: the recorded figures in the Hub's format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from o1_retriever_training.publishing.card import Figure, as_eval_results

MEASURE = "nDCG@10"
SYSTEMS = {"o1_embedder_22m_fast": "fast", "o1_embedder_22m_thinking": "thinking, 3 thoughts"}
DATASETS = [
    "rajpurkar/squad",
    "hotpotqa/hotpot_qa",
    "allenai/scifact",
    "allenai/qasc",
    "openai/gsm8k",
    "qiaojin/PubMedQA",
]


def with_results(card: str, rows: Sequence[Mapping[str, object]], sets: Sequence[str]) -> str:
    """The card with nDCG@10 of every set in its metadata, fast and thinking; its text stays as it is."""
    from huggingface_hub import ModelCard, ModelCardData

    values = {str(row["name"]): float(str(row["value"])) for row in rows}
    figures = [
        Figure(collection=name, split="test", system=title, measures={MEASURE: values[f"{name}/{system}"]})
        for name in sets
        for system, title in SYSTEMS.items()
    ]
    # One by one: of several systems only the first model's would be taken.
    results = [result for figure in figures for result in as_eval_results([figure])]
    read = ModelCard(card)
    data = {name: value for name, value in read.data.__dict__.items() if value is not None}
    data |= {"datasets": DATASETS, "model_name": "o1-embedder-22m", "eval_results": results}
    return f"---\n{ModelCardData(**data).to_yaml()}\n---\n\n{read.text.strip()}\n"
