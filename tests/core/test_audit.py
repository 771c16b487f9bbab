"""The audit: the same run under controls, what it comes to, and why a query gained or lost."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ir_measures", reason="needs the extra `eval`")
pytest.importorskip("bm25s", reason="needs the extra `index`")

from o1_retriever import ThinkingEmbedder, ThoughtSettings
from o1_retriever.encoders import CallableEncoder
from o1_retriever.errors import SettingsError
from o1_retriever.evaluation.collection import Collection, load_collection
from o1_retriever.evaluation.comparison import (
    ALONE,
    CONTROLS,
    EMPTY,
    OTHERS,
    RANDOM,
    REPEATED,
    Audit,
    Comparison,
    Evaluation,
    compare,
    evaluate,
)
from o1_retriever.evaluation.controls import audited, controlled, with_other_thoughts
from o1_retriever.evaluation.report import as_html, audit_cells, markdown, records, write_report
from o1_retriever.evaluation.sources import write_collection
from o1_retriever.evaluation.systems import Plan
from tests.support.adapters import bag_of_words

ENCODER = CallableEncoder(bag_of_words, name="bag of words")
COUNT = 24
SETTINGS = ThoughtSettings(n_thoughts=2)


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    """Questions that share no word with their answers."""
    folder = tmp_path_factory.mktemp("audit")
    write_collection(
        folder,
        documents=[
            {"_id": f"d{n}", "title": "", "text": f"answer{n} fact{n} about thing{n}"} for n in range(COUNT)
        ],
        queries=[{"_id": f"q{n}", "text": f"riddle{n} please"} for n in range(COUNT)],
        judgments=[(f"q{n}", f"d{n}", 1) for n in range(COUNT)],
    )
    return load_collection(folder, strict=True)


def said(collection: Collection, thought: str) -> ThinkingEmbedder:
    """Thinks one sentence about every query, with its number where there are braces, and a longer one."""
    thoughts = {
        text: [each.format(n=key[1:]) for each in (thought, f"{thought} again")]
        for key, text in collection.queries.items()
    }
    return ThinkingEmbedder.from_parts(thoughts, ENCODER, settings=SETTINGS, cache=False)


def audit_of(collection: Collection, thought: str, folder: Path) -> tuple[Evaluation, Audit]:
    plan = Plan(thoughts=(0, 2), hybrid=True, bm25=True, work=folder)
    embedders = {"words": said(collection, thought)}
    systems = plan.systems(collection.corpus, embedders, SETTINGS)
    found = audited(evaluate(collection, systems), plan, embedders, SETTINGS)
    assert found.audit is not None
    return found, found.audit


def test_a_query_gets_the_thoughts_about_another_one_and_its_own_fast_vector(root: Path) -> None:
    embedder = ThinkingEmbedder.from_pretrained(root / "models" / "o1-embedder-22m", cache=False)
    queries = ["What is ice?", "Why do birds sing?", "Who wrote letters?"]
    settings = embedder.settings.with_changes(thinking="always", n_thoughts=2, max_new_tokens=8)
    own = embedder.embed_queries(queries, settings=settings)
    others = with_other_thoughts(embedder, queries).embed_queries(queries, settings=settings)
    texts = [[thought.text for thought in each.thoughts] for each in own]
    given = [[thought.text for thought in each.thoughts] for each in others]
    assert sorted(given) == sorted(texts)
    for found, before in zip(others, own, strict=True):
        assert [thought.text for thought in found.thoughts] != [thought.text for thought in before.thoughts]
        assert not np.allclose(found.vector, before.vector, atol=1e-4)
    never = settings.with_changes(thinking="never")
    fast = with_other_thoughts(embedder, queries).embed_queries(queries, settings=never)
    for found, wanted in zip(fast, embedder.embed_queries(queries, settings=never), strict=True):
        np.testing.assert_allclose(found.vector, wanted.vector, atol=1e-6)


class TestControls:
    def test_each_has_as_many_thoughts_of_its_own_kind(self, collection: Collection) -> None:
        embedder = said(collection, "answer{n} and a few more words")
        queries = list(collection.queries.values())
        texts = {
            name: [[t.text for t in row] for row in controlled(embedder, name, collection).think(queries)]
            for name in CONTROLS
        }
        own = [[thought.text for thought in row] for row in embedder.think(queries)]
        assert all(given != mine for given, mine in zip(texts[OTHERS], own, strict=True))
        assert Counter(map(tuple, texts[OTHERS])) == Counter(map(tuple, own))
        assert texts[EMPTY] == [["", ""]] * COUNT
        assert texts[REPEATED] == [[query] * 2 for query in queries]
        vocabulary = {word for text in collection.corpus.texts(0, COUNT) for word in text.split()}
        for row in texts[RANDOM]:
            assert [len(text.split()) for text in row] == [6, 7]
            assert vocabulary.issuperset(" ".join(row).split())
            assert row[0] != row[1]
        assert (
            texts[RANDOM]
            == [
                [t.text for t in row] for row in controlled(embedder, RANDOM, collection).think(queries[::-1])
            ][::-1]
        )

    def test_a_thought_that_could_not_be_had_stays_so(self, collection: Collection) -> None:
        embedder = ThinkingEmbedder.from_parts(
            lambda queries, n: [[None] * n for _ in queries], ENCODER, cache=False
        )
        for name in (EMPTY, REPEATED, RANDOM):
            assert controlled(embedder, name, collection).think(["riddle1 please"])[0][0].failed

    def test_their_vectors_are_kept_and_their_thoughts_are_nobodys(
        self, collection: Collection, tmp_path: Path
    ) -> None:
        thinker = {text: ["own"] for text in collection.queries.values()}
        embedder = ThinkingEmbedder.from_parts(thinker, ENCODER, cache=tmp_path)
        query = collection.queries["q1"]
        controlled(embedder, REPEATED, collection).embed_query(query, settings=ThoughtSettings(n_thoughts=1))
        cache = embedder.cache
        assert cache is not None
        assert cache.info().vectors == 1
        found = embedder.embed_query(query, settings=ThoughtSettings(n_thoughts=1))
        assert [thought.text for thought in found.thoughts] == ["own"]

    def test_one_query_has_no_other(self, collection: Collection) -> None:
        with pytest.raises(SettingsError, match="Found 1 query to shuffle"):
            with_other_thoughts(said(collection, "x"), ["riddle1 please"])


class TestAudit:
    def test_it_is_what_they_say(self, collection: Collection, tmp_path: Path) -> None:
        found, audit = audit_of(collection, "answer{n} fact{n}", tmp_path)
        assert list(audit.compared) == ["words, 2 thoughts", "words + BM25, 2 thoughts", "BM25, 2 thoughts"]
        for system, row in audit.compared.items():
            assert list(row) == [ALONE, *CONTROLS]
            assert audit.beaten(system) == list(CONTROLS)
            assert audit.sentence(system) == "The thoughts help, and it is what they say that helps."
            assert audit.means[system][EMPTY] == pytest.approx(audit.means[system][ALONE], abs=0.05)
        own, other = (found.values(found[name]) for name in ("words, 2 thoughts", "words, no thoughts"))
        expected = audit.compared["words, 2 thoughts"][ALONE]
        assert expected.difference == pytest.approx((own - other).mean())
        assert expected.effect == pytest.approx((own - other).mean() / (own - other).std(ddof=1))
        # Corrected for all fifteen rows: none may be below fifteen times the smallest there can be.
        assert min(each.p_corrected for row in audit.compared.values() for each in row.values()) > 14 / 10_001

    def test_what_says_nothing_does_not_help(self, collection: Collection, tmp_path: Path) -> None:
        _, audit = audit_of(collection, "so it is", tmp_path)
        assert audit.sentence("words, 2 thoughts") == "The thoughts do not help beyond chance."

    def test_it_is_in_every_record_and_page(self, collection: Collection, tmp_path: Path) -> None:
        found, audit = audit_of(collection, "answer{n} fact{n}", tmp_path / "work")
        plain, thinking = (record for record in records(found) if record["system"].startswith("words, "))
        assert "controls" not in plain
        assert thinking["verdict"] == audit.sentence("words, 2 thoughts")
        assert thinking["controls"][OTHERS]["mean"] == audit.means["words, 2 thoughts"][OTHERS]
        assert json.loads(json.dumps(thinking)) == thinking
        heads, rows = audit_cells(found)
        assert len(rows) == 3 * (1 + len(CONTROLS))
        assert {len(row) for row in rows} == {len(heads)}
        for page in (markdown(found, []), as_html(found, [])):
            assert "Thoughts against controls" in page
            assert "and it is what they say that helps" in page
            assert "which a relevant document has" in page.replace("&#x27;", "'")
        target = write_report(found, tmp_path / "report")
        row = json.loads((target / "per_query.jsonl").read_text().splitlines()[0])
        assert row["diagnosis"]["in_relevant"] == pytest.approx(2 / 3)  # not "again"
        bare = replace(found, audit=None)
        assert "controls" not in markdown(bare, []).lower()
        assert "diagnosis" not in (write_report(bare, tmp_path / "bare") / "per_query.jsonl").read_text()

    def test_without_thoughts_there_is_nothing_to_audit(self, collection: Collection, tmp_path: Path) -> None:
        plan = Plan(thoughts=(0,), work=tmp_path)
        embedders = {"words": said(collection, "x")}
        done = evaluate(collection, plan.systems(collection.corpus, embedders, SETTINGS))
        with pytest.raises(SettingsError, match="Nothing was thought"):
            audited(done, plan, embedders, SETTINGS)


def comparison(difference: float, p: float) -> Comparison:
    base = compare(np.zeros(2), {"x": np.ones(2)})["x"]
    return replace(base, difference=difference, p=p, p_corrected=p)


UP, EQUAL, DOWN = comparison(0.1, 0.001), comparison(0.01, 0.6), comparison(-0.1, 0.001)


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        ([UP, UP, UP, UP, UP], "The thoughts help, and it is what they say that helps."),
        (
            [UP, UP, UP, UP, EQUAL],
            "The thoughts help, but any text of this length would have helped (not worse beyond chance: "
            "random words).",
        ),
        (
            [UP, EQUAL, UP, EQUAL, DOWN],
            "The thoughts help, but any text of this length would have helped (not worse beyond chance: "
            "another query's thoughts, the query again, random words).",
        ),
        (
            [UP, UP, EQUAL, UP, UP],
            "The thoughts help, but not by what they say (not worse beyond chance: empty thoughts).",
        ),
        ([EQUAL, UP, EQUAL, UP, UP], "The thoughts do not help beyond chance."),
        (
            [EQUAL, UP, UP, UP, UP],
            "The thoughts do not help beyond chance. What they say matters: every control is worse.",
        ),
        ([DOWN, EQUAL, UP, UP, UP], "The thoughts hurt."),
        ([None, UP, UP, UP, UP], "The thoughts beat the controls, and it is what they say that helps."),
        (
            [None, UP, EQUAL, UP, UP],
            "Whether they help was not measured, but not by what they say (not worse beyond chance: "
            "empty thoughts).",
        ),
    ],
)
def test_a_sentence_says_what_it_comes_to(found: list[Comparison | None], sentence: str) -> None:
    row = {name: each for name, each in zip((ALONE, *CONTROLS), found, strict=True) if each is not None}
    assert Audit(compared={"s": row}, means={}, diagnoses={}).sentence("s") == sentence


def test_effects_are_gains_in_standard_deviations() -> None:
    rise = compare(np.array([0.0, 0.0, 0.0]), {"x": np.array([0.1, 0.2, 0.3])})["x"]
    assert rise.effect == pytest.approx(2.0)
    assert compare(np.zeros(3), {"x": np.zeros(3)})["x"].effect == 0


class TestDiagnosis:
    def diagnosed(self, tmp_path: Path, thought: str, query: str = "Why does dough rise") -> dict:
        write_collection(
            tmp_path,
            documents=[
                {"_id": "yeast", "title": "", "text": "Yeast gas lifts bread."},
                {"_id": "sun", "title": "", "text": "Sunrise follows dawn skies; the sun will rise."},
                {"_id": "moon", "title": "", "text": "Tides rise."},
            ],
            queries=[{"_id": "q", "text": query}, {"_id": "other", "text": "unrelated tides"}],
            judgments=[("q", "yeast", 1), ("other", "moon", 1)],
        )
        collection = load_collection(tmp_path)
        plan = Plan(thoughts=(0, 1), work=tmp_path)
        embedders = {
            "w": ThinkingEmbedder.from_parts(
                {query: [thought or None], "unrelated tides": ["tides"]}, ENCODER, cache=False
            )
        }
        settings = ThoughtSettings(n_thoughts=1, guard=False)
        done = evaluate(collection, plan.systems(collection.corpus, embedders, settings))
        audit = audited(done, plan, embedders, settings).audit
        assert audit is not None
        found = audit.diagnoses["q"]
        return {name: getattr(found, name) for name in found.__slots__}

    def test_a_gain(self, tmp_path: Path) -> None:
        found = self.diagnosed(tmp_path, "Dough: yeasts, yeast, lifts it with gas quickly xylophone")
        assert found["why"] == "the thoughts bring 'yeasts', 'lifts', 'gas', which a relevant document has"
        assert (found["before"], found["after"]) == (3, 1)
        assert found["new"] == pytest.approx(5 / 6)
        assert found["in_relevant"] == found["in_corpus"] == pytest.approx(3 / 5)

    @pytest.mark.parametrize(
        ("thought", "why"),
        [
            ("dawn skies", "the thoughts bring 'dawn', 'skies', which the wrong document sun has"),
            ("dough rising", "the thoughts repeat the query"),
            ("", "there was no thought"),
        ],
    )
    def test_a_loss_and_what_changes_nothing(self, tmp_path: Path, thought: str, why: str) -> None:
        query = "Yeast gas lifts bread dough; rise" if "dawn" in thought else "Why does dough rise"
        found = self.diagnosed(tmp_path, f"{thought} " * 9 if "dawn" in thought else thought, query)
        assert found["why"] == why
