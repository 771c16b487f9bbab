"""How much thoughts should count, from questions whose passages are known."""

from __future__ import annotations

import json

import numpy as np
import pytest

from o1_retriever import Index, Retriever, ThinkingEmbedder, ThoughtSettings
from o1_retriever.documents import Document
from o1_retriever.encoders import CallableEncoder
from o1_retriever.errors import InputError
from o1_retriever.evaluation.calibration import WEIGHTS, Calibration, _chosen, calibrate
from tests.support.adapters import bag_of_words

pytest.importorskip("ir_measures", reason="needs the extra `eval`")
SUBJECTS = [f"subject{n}" for n in range(24)]
ENCODER = CallableEncoder(bag_of_words, name="bag of words")


@pytest.fixture
def index(tmp_path):
    """Each subject has the passage that answers and one that only repeats the question's words."""
    with Index(tmp_path / "index", ThinkingEmbedder.from_parts({"q": ["t"]}, ENCODER, cache=False)) as index:
        for subject in SUBJECTS:
            answer = Document(
                id=f"{subject}-answer", text=f"{subject} vapour glass", metadata={"source": f"{subject}.md"}
            )
            index.add([answer, Document(id=f"{subject}-echo", text=f"why does {subject} wet")])
        yield index


def retriever_of(index: Index, thought: str) -> tuple[Retriever, list[str]]:
    asked: list[str] = []

    def think(queries: list[str], k: int) -> list[list[str]]:
        asked.extend(queries)
        return [[f"{query.split()[2]} {thought}"] * k for query in queries]

    settings = ThoughtSettings(n_thoughts=2, guard=False)
    return Retriever(
        ThinkingEmbedder.from_parts(think, ENCODER, settings=settings, cache=False), index
    ), asked


def questions(name: str = "{}-answer") -> dict[str, list[str]]:
    return {f"why does {subject} get": [name.format(subject)] for subject in SUBJECTS}


@pytest.mark.parametrize("name", ["{}-answer", "{}.md"])
def test_thoughts_that_help_count_and_are_written_once(index, name):
    retriever, asked = retriever_of(index, "vapour glass vapour glass")
    found = calibrate(retriever, questions(name))
    assert sorted(asked) == sorted(questions())
    assert found.query_weight is not None
    assert found.by_weight[found.query_weight] == max(found.by_weight.values()) > found.alone
    assert found.low > 0
    assert found.p < 0.001
    assert found.sentence.startswith("Thinking adds +")
    settings = retriever.embedder.settings.with_changes(query_weight=found.query_weight)
    first = retriever.search(next(iter(questions())), k=1, settings=settings).hits[0]
    assert first.id == "subject0-answer"
    assert json.loads(json.dumps(found.to_dict()))["questions"] == len(SUBJECTS)


def test_thoughts_that_harm_are_not_to_be_had(index):
    retriever, _ = retriever_of(index, "why does why does wet wet wet")
    found = calibrate(retriever, questions())
    assert found.query_weight is None
    assert found.gain <= 0
    assert "do not think" in found.sentence


def test_no_gain_is_measured_where_it_was_chosen():
    """Values of pure chance: the best of many weights looks good, and its honest gain does not."""
    chosen, honest = [], []
    for seed in range(30):
        draw = np.random.default_rng(seed)
        alone, rows = draw.uniform(size=20), draw.uniform(size=(len(WEIGHTS), 20))
        found = _chosen(alone, rows)
        chosen.append(max([found.alone, *found.by_weight.values()]) - found.alone)
        honest.append(found.gain)
        assert found.low <= found.gain <= found.high
    assert np.mean(chosen) > 0.05
    assert abs(np.mean(honest)) < 0.05


def test_what_chance_may_explain_is_said():
    found = Calibration(
        query_weight=1.0,
        alone=0.4,
        by_weight={1.0: 0.41},
        gain=0.01,
        low=-0.02,
        high=0.04,
        p=0.4,
        questions=20,
    )
    assert "chance may explain it" in found.sentence


def test_questions_that_cannot_be_used_are_refused_before_anybody_thinks(index):
    retriever, asked = retriever_of(index, "vapour")
    with pytest.raises(InputError, match="Found 1 question with relevant passages; expected 10 or more"):
        calibrate(retriever, {"why": ["a"]})
    with pytest.raises(InputError, match="has no list of relevant passages"):
        calibrate(retriever, {**questions(), "why": []})
    assert asked == []
