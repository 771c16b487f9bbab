"""How much thoughts should count, from questions whose passages are known."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from o1_retriever import Index, Retriever, ThinkingEmbedder, ThoughtSettings
from o1_retriever.documents import Document
from o1_retriever.encoders import CallableEncoder
from o1_retriever.errors import InputError, SettingsError, StoreError
from o1_retriever.evaluation.calibration import (
    WEIGHTS,
    Calibration,
    _chosen,
    calibrate,
    calibration_error,
    logistic,
)
from o1_retriever.guard import Gate
from o1_retriever.index.foreign import ForeignIndex
from o1_retriever.search.relevance import probability
from o1_retriever.search.result import SearchSettings
from o1_retriever.search.stores import store_settings
from tests.support.adapters import bag_of_words

pytest.importorskip("ir_measures", reason="needs the extra `eval`")
SUBJECTS = [f"subject{n}" for n in range(24)]
FITTED = {"bias": 0.0, "questions": 9, "brier": 0.1, "brier_of_base_rate": 0.1, "calibration_error": 0.1}
ENCODER = CallableEncoder(bag_of_words, name="bag of words")


@pytest.fixture
def index(tmp_path):
    """Each subject has the passage that answers and one that only repeats the question's words."""
    with Index(tmp_path / "index", ThinkingEmbedder.from_parts({"q": ["t"]}, ENCODER, cache=False)) as index:
        index.add(
            Document(id=f"{subject}-{kind}", text=text.format(subject), metadata=metadata)
            for subject in SUBJECTS
            for kind, text, metadata in (
                ("answer", "{} vapour glass", {"source": f"{subject}.md"}),
                ("echo", "why does {} wet", {}),
            )
        )
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
    with pytest.raises(InputError, match="Found 0 questions with relevant passages"):
        calibrate(retriever, {query: [] for query in questions()})
    with pytest.raises(InputError, match="has no list of relevant passages"):
        calibrate(retriever, {**questions(), "why": "subject1-answer"})
    assert asked == []


class TestRelevance:
    """Probabilities that a hit is relevant, and hits that are left out by them."""

    NOTHING = "what of zebras and quarks"  # nothing in the index says anything about it

    @pytest.fixture
    def calibrated(self, index):
        retriever, _ = retriever_of(index, "vapour glass vapour glass")
        nothing = {f"what of zebra{n} and quark{n}": [] for n in range(12)}
        found = calibrate(retriever, {**questions(), **nothing})
        assert found.questions == len(SUBJECTS)
        found.keep(index)
        return retriever, found

    @pytest.mark.parametrize("thinking", ["always", "never"])
    def test_a_cut_off_keeps_what_is_likely_and_may_keep_nothing(self, calibrated, thinking):
        retriever, _ = calibrated
        asked = {"k": 5, "thinking": thinking, "min_relevance": 0.5}
        query = next(iter(questions()))
        if thinking == "always":
            assert [hit.id for hit in retriever.search(query, **asked)] == ["subject0-answer"]
        result = retriever.search(self.NOTHING, **asked)
        assert not result
        assert len(result.left_out) == 5
        whole = retriever.search(self.NOTHING, **{**asked, "min_relevance": 0})
        assert [hit.id for hit in whole] == [hit.id for hit in result.left_out]
        assert max(hit.probability for hit in whole) < 0.2
        record = result.to_dict()
        assert record["hits"] == []
        assert record["search"]["left_out"] == 5
        assert record["search"]["left_out_probability"] == max(hit.probability for hit in whole)
        assert whole[0].to_dict()["probability"] == whole[0].probability

    async def test_every_way_to_search_has_it(self, calibrated):
        retriever, _ = calibrated
        query = next(iter(questions()))
        strict = Retriever(retriever.embedder, retriever.index, min_relevance=0.5)
        expected = [(hit.id, hit.probability) for hit in strict.search(query)]
        assert [(hit.id, hit.probability) for hit in await strict.asearch(query)] == expected
        assert [(hit.id, hit.probability) for hit in strict.explain(query).result] == expected
        assert not strict.explain(self.NOTHING).result
        assert "nothing relevant: 10 passages are left out" in str(strict.explain(self.NOTHING))
        gated = strict.search_many([query, self.NOTHING], thinking="auto", gate=Gate(bias=-9.0))
        assert [result.embedding.thought_about for result in gated] == [False, False]
        assert not gated[1]

    def test_probabilities_do_not_depend_on_how_many_hits_there_are(self, calibrated):
        retriever, _ = calibrated
        few, many = (retriever.search("why does subject3", k=k, min_relevance=0.0) for k in (1, 9))
        assert few[0].probability == many[0].probability

    def test_what_was_not_calibrated_is_said_before_anybody_thinks(self, index):
        retriever, asked = retriever_of(index, "vapour")
        with pytest.raises(SettingsError, match=r"was not calibrated.* Found: nothing") as raised:
            retriever.search("why does subject1", min_relevance=0.5)
        assert f"o1-retriever calibrate questions.jsonl --index {index.path}" in str(raised.value.hint)
        calibrate(retriever, questions()).keep(index)
        asked.clear()
        weighed = retriever.embedder.settings.with_changes(query_weight=5.0)
        for options in ({"pooling": "best"}, {"settings": weighed}):
            with pytest.raises(SettingsError, match="Found: vectors, mean, query alone; ") as raised:
                retriever.search("why does subject1", min_relevance=0.5, **options)
        assert str(raised.value.hint).endswith("--query-weight 5")
        assert asked == []
        calibrate(retriever, questions(), pooling="best").keep(index)  # the others stay
        assert (
            retriever.search("why does subject1", min_relevance=0.0, pooling="best").hits[0].probability
            is not None
        )
        assert retriever.search("why does subject1", min_relevance=0.0).hits[0].probability is not None

    def test_a_weight_of_ones_own_is_calibrated_too(self, index):
        retriever, _ = retriever_of(index, "vapour")
        weighed = retriever.embedder.settings.with_changes(query_weight=5.0)
        found = calibrate(retriever, questions(), settings=weighed)
        assert "vectors, mean, query_weight 5" in found.relevance
        assert 5.0 not in found.by_weight

    @pytest.mark.parametrize(
        "text",
        [
            *("{", "[]", '{"format": 9}', '{"format": 1, "kinds": {"a": {"x": 1}}}'),
            *(
                json.dumps(
                    {"format": 1, "kinds": {"vectors, mean, query alone": {**FITTED, "weights": weights}}}
                )
                for weights in ([1.0], [1.0, float("nan")], "ab", [[1.0], [2.0]])
            ),
        ],
    )
    def test_a_damaged_file_is_named_and_made_anew(self, calibrated, text):
        retriever, found = calibrated
        path = found.keep(retriever.index)
        path.write_text(text, encoding="utf-8")
        with pytest.raises(StoreError, match=r"relevance\.json cannot be used"):
            retriever.search("why does subject1", min_relevance=0.5)
        assert retriever.search("why does subject1")
        found.keep(retriever.index)
        assert retriever.search("why does subject1", min_relevance=0.0)

    def test_a_file_that_cannot_be_written_is_named(self, calibrated):
        retriever, found = calibrated
        path = found.keep(retriever.index)
        path.unlink()
        path.mkdir()
        with pytest.raises(StoreError, match=r"relevance\.json cannot be written"):
            found.keep(retriever.index)
        assert [each.name for each in path.parent.glob("relevance*")] == ["relevance.json"]

    def test_an_empty_index_is_named(self, tmp_path, index):
        retriever, asked = retriever_of(index, "vapour")
        empty = Retriever(retriever.embedder, Index(tmp_path / "empty", retriever.embedder))
        with pytest.raises(InputError, match="has no documents"):
            calibrate(empty, questions())
        assert asked == []

    def test_a_store_of_others_has_no_calibration(self, index):
        with pytest.raises(SettingsError, match="only our own index is calibrated"):
            store_settings({"min_relevance": 0.5}, "FAISS", "")
        retriever, asked = retriever_of(index, "vapour")
        store = ForeignIndex(SimpleNamespace(name="A store"), space=index.info().space)  # type: ignore[arg-type]
        with pytest.raises(SettingsError, match=r"A store was to be searched with min_relevance=0\.5"):
            Retriever(retriever.embedder, store, min_relevance=0.5).search("why does subject1")
        assert asked == []

    @pytest.mark.parametrize("value", [-0.1, 1.1, "a", True])
    def test_a_probability_is_expected(self, value):
        with pytest.raises(SettingsError, match="min_relevance is"):
            SearchSettings(min_relevance=value)


def test_probabilities_are_those_that_made_the_labels():
    draw = np.random.default_rng(0)
    rows = draw.normal(size=(20_000, 2)) * [0.1, 10]
    true = probability(rows, np.array([20.0, -0.1, -1.0]))
    labels = (draw.uniform(size=len(rows)) < true).astype(float)
    assert logistic(rows, labels) == pytest.approx([20.0, -0.1, -1.0], rel=0.1)
    assert calibration_error(true, labels) < 0.02
    assert calibration_error(np.full(len(rows), 0.9), labels) == pytest.approx(0.9 - labels.mean())


@given(st.lists(st.tuples(st.floats(-1, 1), st.booleans()), min_size=1, max_size=30))
def test_any_labels_give_probabilities(pairs):
    """All alike, told apart exactly, or at random: the fit ends, and its probabilities are some."""
    rows, labels = np.array([[score, 1.0] for score, _ in pairs]), np.array([float(own) for _, own in pairs])
    told = probability(rows, logistic(rows, labels))
    assert ((told >= 0) & (told <= 1)).all()
    assert told.mean() == pytest.approx(labels.mean(), abs=0.02)
