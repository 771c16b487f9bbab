"""`transformers serve`, an OpenAI-compatible server that nobody here wrote, as the expert."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from o1_retriever.endpoint.exchange import RequestPolicy
from o1_retriever_training.experts import EndpointExpert
from o1_retriever_training.recipe import Contributor, Recipe
from o1_retriever_training.synthesize import Options, synthesize
from o1_retriever_training.vote import vote
from tests.support.facts import FACTS
from tests.support.serve import ModelServer

pytestmark = pytest.mark.long  # the server takes its time to start


def test_pairs_are_thought_about_and_voted(served_model: ModelServer, tmp_path: Path) -> None:
    pairs, thoughts, voted = (tmp_path / f"{name}.jsonl" for name in ("pairs", "thoughts", "voted"))
    rows = [{"query": f"what about {name}?", "pos": [fact]} for name, fact in list(FACTS.items())[:4]]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    policy = RequestPolicy(concurrency=4, timeout=120, deadline=240)
    expert = EndpointExpert(served_model.model, base_url=served_model.url, api_key="none", policy=policy)
    recipe = Recipe(contributors=(Contributor(n=2),), max_tokens=12, examples=1, temperature=1.0)
    tally, problems = synthesize(pairs, thoughts, experts=expert, recipe=recipe, options=Options(show=False))
    assert (tally.written, tally.failures, len(problems)) == (4, 0, 0), served_model.said()
    written = [json.loads(line) for line in thoughts.read_text().splitlines()]
    assert all(len(row["all_thought"]) == 2 and all(row["all_thought"]) for row in written)
    assert all(row["tokens"][0] > 20 and 2 <= row["tokens"][1] <= 24 for row in written)
    assert tally.completion_tokens == sum(row["tokens"][1] for row in written)
    assert vote(thoughts, voted, committee=["bm25"], show=False)["voted"] == 4
