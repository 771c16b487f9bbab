"""Systems, their comparison, the report, other wordings and the command, on a small collection."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import ir_measures
import numpy as np
import pytest

from o1_retriever import Index, ThinkingEmbedder, ThoughtSettings
from o1_retriever.documents import Document
from o1_retriever.encoders import CallableEncoder
from o1_retriever.errors import CollectionError, SettingsError
from o1_retriever.evaluation import load_collection
from o1_retriever.evaluation.collection import Collection, encode_corpus
from o1_retriever.evaluation.comparison import Evaluation, evaluate
from o1_retriever.evaluation.report import changes, markdown, records, write_report
from o1_retriever.evaluation.sources import (
    SYNONYMS,
    follow_wording,
    open_collection,
    variants,
    with_synonyms,
    with_typos,
)
from o1_retriever.evaluation.systems import (
    NEVER,
    Dense,
    Hyde,
    Lexical,
    Plan,
    bm25_over,
    family_of,
    parse_dimensions,
    parse_thoughts,
)
from tests.support.small_collection import DOCUMENTS, QUERIES, write_small

THOUGHTS = {
    "q1": ["Iron rust from oxygen and water.", "Nails are iron."],
    "q2": ["Salt lowers freezing.", "Roads get salt."],
    "q3": ["Yeast makes carbon dioxide.", "Dough is lifted."],
    "q4": [
        "The moon pulls the ocean into tides, the moon, the ocean, tides.",
        "The moon pulls the ocean into tides.",
    ],
}


def embed(texts: list[str]) -> np.ndarray:
    """Bags of words by hashing: words in common mean near vectors."""
    rows = np.full((len(texts), 64), 1e-3, dtype=np.float32)
    for row, text in zip(rows, texts, strict=True):
        for word in re.findall(r"\w+", text.lower()):
            row[sum(place * ord(letter) for place, letter in enumerate(word, 1)) % 64] += 1
    return rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_small(tmp_path / "small")


@pytest.fixture
def collection(folder: Path) -> Collection:
    return load_collection(folder, strict=True)


@pytest.fixture
def thoughts_file(tmp_path: Path) -> Path:
    path = tmp_path / "thoughts.jsonl"
    rows = [{"_id": key, "text": QUERIES[key], "thoughts": said} for key, said in THOUGHTS.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def embedder(thoughts_file: Path) -> ThinkingEmbedder:
    return ThinkingEmbedder.from_parts(thoughts_file, CallableEncoder(embed, name="words"), cache=False)


@pytest.fixture
def evaluation(collection: Collection, embedder: ThinkingEmbedder, tmp_path: Path) -> Evaluation:
    plan = Plan(thoughts=(0, 1, 2), hybrid=True, bm25=True, hyde=True, work=tmp_path / "work")
    return evaluate(collection, plan.systems(collection.corpus, {"words": embedder}, ThoughtSettings()))


def test_a_plan_compares_every_switch_at_once(evaluation: Evaluation) -> None:
    names = [result.name for result in evaluation.results]
    dense = ["words, no thoughts", "words, 1 thought", "words, 2 thoughts"]
    fused = [
        "words + BM25, no thoughts",
        "words + BM25, 1 thought",
        "HyDE words, 1 thought",
        "words + BM25, 2 thoughts",
        "HyDE words, 2 thoughts",
    ]
    assert names == dense + fused + ["BM25", "BM25, 1 thought", "BM25, 2 thoughts"]
    success = {name: evaluation[name].means["Success@1"] for name in names}
    # The thoughts name the right document for three questions, and lead astray on the fourth.
    assert success["words, 2 thoughts"] > success["words, no thoughts"]
    assert evaluation["BM25"].values["Success@1"]["q4"] == 1
    assert evaluation["BM25"].values["Success@1"]["q1"] == 0
    assert evaluation["BM25, 1 thought"].values["Success@1"]["q1"] == 1
    assert evaluation["HyDE words, 1 thought"].values["Success@1"]["q3"] == 1


def test_each_model_is_fused_with_bm25_that_reads_its_own_thoughts(
    collection: Collection, embedder: ThinkingEmbedder, tmp_path: Path
) -> None:
    other = ThinkingEmbedder.from_parts(
        lambda queries, k: [["Yeast."] * k for _ in queries],
        CallableEncoder(embed, name="words"),
        cache=False,
    )
    plan = Plan(thoughts=(1,), hybrid=True, bm25=True, work=tmp_path)
    systems = plan.systems(collection.corpus, {"a": embedder, "b": other}, ThoughtSettings())
    assert [system.name for system in systems] == [
        "a, 1 thought",
        "a + BM25, 1 thought",
        "b, 1 thought",
        "b + BM25, 1 thought",
        "BM25, 1 thought",
    ]
    [read] = systems[3].parts[1].search(["Why?"], 6).thoughts
    assert [thought.text for thought in read] == ["Yeast."]
    assert systems[-1].search([QUERIES["q3"]], 6).thoughts[0][0].text == THOUGHTS["q3"][0]


def test_dense_and_hyde_vectors_are_those_of_their_definitions(
    collection: Collection, embedder: ThinkingEmbedder, tmp_path: Path
) -> None:
    encoded = encode_corpus(embedder, collection.corpus, tmp_path)
    unit = lambda rows: rows / np.linalg.norm(rows, axis=-1, keepdims=True)  # noqa: E731
    one = ThoughtSettings(n_thoughts=1)
    parts = {"embedder": embedder, "corpus": collection.corpus, "encoded": encoded}
    query, thought = QUERIES["q1"], THOUGHTS["q1"][0]
    expected = {
        Dense(name="d", settings=one, **parts): unit(embed([f"{query} {thought}"]))[0],
        Dense(name="d", settings=NEVER, **parts): unit(embed([query]))[0],
        Hyde(name="h", settings=one, **parts): unit(unit(embed([query, thought])).mean(axis=0)),
    }
    for system, vector in expected.items():
        found = system.search([query], 6).rankings[0]
        scores = unit(embed(list(DOCUMENTS.values()))) @ vector
        assert found.scores == pytest.approx(np.sort(scores)[::-1], abs=1e-6)
        assert scores[found.keys] == pytest.approx(found.scores, abs=1e-6)


def test_bm25_reads_query_and_thoughts_and_finds_only_what_shares_a_word(
    collection: Collection, embedder: ThinkingEmbedder
) -> None:
    index = bm25_over(collection.corpus)
    thinking = Lexical(
        name="b",
        corpus=collection.corpus,
        index=index,
        embedder=embedder,
        settings=ThoughtSettings(n_thoughts=2),
    )
    answer = thinking.search([QUERIES["q4"]], 6)
    expected = index.scores(QUERIES["q4"]) + sum(index.scores(text) for text in THOUGHTS["q4"]) / 2
    (found,) = answer.rankings
    assert expected[found.keys] == pytest.approx(found.scores, abs=1e-5)
    assert len(found) == np.count_nonzero(expected)
    assert len(answer.thoughts[0]) == 2
    alone = Lexical(name="b", corpus=collection.corpus, index=index)
    assert [len(ranking.keys) for ranking in alone.search([QUERIES["q4"], "zebra"], 6).rankings] == [1, 0]
    with pytest.raises(SettingsError, match="embedder"):
        Lexical(name="b", corpus=collection.corpus, index=index, settings=ThoughtSettings())


def test_a_plan_pools_in_each_way_and_the_best_thought_is_that_of_all_scores(
    collection: Collection, embedder: ThinkingEmbedder, tmp_path: Path
) -> None:
    plan = Plan(thoughts=(0, 1, 2), pooling=("mean", "best"), hybrid=True, work=tmp_path)
    systems = plan.systems(collection.corpus, {"words": embedder}, ThoughtSettings())
    assert [system.name for system in systems[:4]] == [
        "words, no thoughts",
        "words, 1 thought",
        "words, 2 thoughts",
        "words, 2 thoughts, best",
    ]
    assert systems[-1].name == "words + BM25, 2 thoughts, best"
    best = systems[3]
    assert isinstance(best, Dense)
    queries = list(QUERIES.values())
    answer = best.search(queries, 6)
    for query, ranking in zip(queries, answer.rankings, strict=True):
        vectors = embedder.embed_query(query, settings=ThoughtSettings(n_thoughts=2)).vectors
        brute = (best.encoded.matrix @ vectors.T).max(axis=1)
        assert ranking.scores == pytest.approx(np.sort(brute)[::-1], abs=1e-5)
        assert brute[ranking.keys] == pytest.approx(ranking.scores, abs=1e-5)
        (few,) = best.search([query], 2).rankings
        assert list(few.keys) == list(ranking.keys[:2])


def test_hybrid_fuses_as_an_index_does(
    collection: Collection, embedder: ThinkingEmbedder, evaluation: Evaluation, tmp_path: Path
) -> None:
    encoded = encode_corpus(embedder, collection.corpus, tmp_path)
    near = encoded.matrix @ embedder.embed_query(QUERIES["q4"], settings=NEVER).vector
    words = bm25_over(collection.corpus).scores(QUERIES["q4"])
    total = (near - near.min()) / (near.max() - near.min()) + words / words.max()
    found = evaluation["words + BM25, no thoughts"].run["q4"]
    assert [found[key] for key in collection.corpus.ids] == pytest.approx(list(total / 2), abs=1e-5)


def test_costs_and_comparisons_are_in_the_table(evaluation: Evaluation) -> None:
    rows = {row["system"]: row for row in records(evaluation)}
    assert rows["words, no thoughts"]["against_first"] is None
    gain = rows["words, 2 thoughts"]["against_first"]
    expected = (
        evaluation["words, 2 thoughts"].means["nDCG@10"] - evaluation["words, no thoughts"].means["nDCG@10"]
    )
    assert gain["difference"] == pytest.approx(expected)
    assert gain["wins"] + gain["losses"] + gain["ties"] == 4
    assert rows["words, 1 thought"]["cost"]["ms_per_query"] > 0
    assert json.loads(json.dumps(rows["words, 1 thought"])) == rows["words, 1 thought"]
    text = markdown(evaluation, [])
    assert text.count("\n| ") == len(rows) + 2, "heads, a rule and a line for each system"
    assert "4 queries, 6 documents" in text


def test_a_graph_search_can_take_the_place_of_the_exact_one(
    collection: Collection, embedder: ThinkingEmbedder, tmp_path: Path
) -> None:
    plan = Plan(thoughts=(0,), hnsw=True, dimensions=(None, 8), work=tmp_path)
    done = evaluate(collection, plan.systems(collection.corpus, {"w": embedder}, ThoughtSettings()))
    assert [result.name for result in done.results] == ["w, no thoughts", "w, 8 dimensions, no thoughts"]
    assert done["w, no thoughts"].recall_lost.at_10 == 0
    assert "0.0% @10" in markdown(done, [])


def test_the_report_stands_alone_and_shows_whom_thinking_helps(
    evaluation: Evaluation, tmp_path: Path
) -> None:
    target = write_report(evaluation, tmp_path / "report")
    page = (target / "report.html").read_text()
    assert page.count("<svg") == 3  # recorded thoughts have no tokens to plot against
    assert not re.search(r"(src|href)=\"(?!#)", page.replace("xlink:href", "href").replace('href="#', ""))
    for svg in (target / "plots").glob("*.svg"):
        ET.fromstring(svg.read_text())
    text = (target / "report.md").read_text()
    helped = changes(evaluation)
    assert helped[0].gain > 0 > helped[-1].gain
    assert "Thinking helps most (words, 2 thoughts against words, no thoughts, nDCG@10)" in text
    assert "Thinking hurts most (words, 2 thoughts against words, no thoughts, nDCG@10)" in text
    assert THOUGHTS["q4"][0] in text
    assert THOUGHTS["q4"][0] in page
    run: dict[str, list[str]] = {}
    for row in ir_measures.read_trec_run(str(target / "runs" / "words-2-thoughts.trec")):
        run.setdefault(row.query_id, []).append(row.doc_id)
    assert run == {key: list(found) for key, found in evaluation["words, 2 thoughts"].run.items()}
    assert (target / "runs" / "words-2-thoughts.thoughts.jsonl").is_file()
    assert len((target / "per_query.jsonl").read_text().splitlines()) == 4
    again = write_report(evaluation, tmp_path / "again")
    assert (again / "report.html").read_text() == page


def test_hostile_text_stays_text_in_the_report(
    folder: Path, embedder: ThinkingEmbedder, tmp_path: Path
) -> None:
    bad = "<script>alert('x')</script> why?"
    collection = load_collection(folder).with_queries({"q1": bad})
    plan = Plan(thoughts=(0, 1), work=tmp_path)
    said = ThinkingEmbedder.from_parts(
        {bad: ["<b>Iron rust oxygen water"]}, embedder.backend.encoder, cache=False
    )
    done = evaluate(collection, plan.systems(collection.corpus, {"w": said}, ThoughtSettings()))
    page = (write_report(done, tmp_path / "r") / "report.html").read_text()
    assert "<script>" not in page
    assert "<b>Iron" not in page


def test_other_wordings_are_small_repeatable_changes() -> None:
    text = "Which important animals keep warm during cold weather?"
    assert with_typos(text) == with_typos(text) != text
    assert with_typos(text, seed=1) != with_typos(text)
    assert abs(len(with_typos(text)) - len(text)) <= 2
    assert with_typos("a b c") == "a b c"
    assert with_synonyms("Animals are BIG, is it cold?") == "Creatures are LARGE, is it chilly?"
    assert all(SYNONYMS[other] == word for word, other in SYNONYMS.items())


def test_recorded_thoughts_follow_other_wordings(collection: Collection, embedder: ThinkingEmbedder) -> None:
    names = [variant.name for variant in variants(collection)]
    assert names == ["small", *(f"small ({n})" for n in ("typos", "synonyms", "upper case", "lower case"))]
    upper = variants(collection)[3]
    follower = follow_wording(embedder, collection, upper)
    found = follower.think([upper.queries["q1"]], n_thoughts=2)[0]
    assert [thought.text for thought in found] == THOUGHTS["q1"]


def test_switches_are_parsed_or_explained() -> None:
    assert parse_thoughts("never, 1,3,1") == (0, 1, 3)
    assert parse_dimensions("all,128") == (None, 128)
    for text in ("", "0", "often", "-1", "1;3"):
        with pytest.raises(SettingsError, match="number of thoughts"):
            parse_thoughts(text)


def test_a_name_that_is_nowhere_says_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(CollectionError, match=r"corpus\.jsonl"):
        open_collection("./no-such-folder", work=tmp_path)


def test_the_graph_that_is_measured_is_the_one_that_an_index_builds(
    collection: Collection, embedder: ThinkingEmbedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from chromadb.api.client import Client

    made: list[dict[str, object]] = []
    create = Client.create_collection

    def seen(self, *arguments, **named):
        found = create(self, *arguments, **named)
        made.append(dict(found._model.configuration_json["hnsw"]))
        return found

    monkeypatch.setattr(Client, "create_collection", seen)
    with Index(tmp_path / "index", embedder) as index:
        index.add([Document(id=key, text=text) for key, text in DOCUMENTS.items()])
    plan = Plan(thoughts=(0,), hnsw=True, work=tmp_path / "work")
    evaluate(collection, plan.systems(collection.corpus, {"w": embedder}, ThoughtSettings()))
    of_index, of_evaluation = made
    assert of_evaluation == of_index
    assert [of_index[name] for name in ("ef_construction", "ef_search", "max_neighbors", "space")] == [
        200, 400, 32, "cosine"
    ]  # fmt: skip


def test_systems_that_differ_in_their_number_of_thoughts_are_a_family() -> None:
    names = ["MiniLM, no thoughts", "MiniLM, 1 thought", "MiniLM, 3 thoughts"]
    assert {family_of(name) for name in names} == {"MiniLM"}
    assert family_of("MiniLM, 128 dimensions, 3 thoughts, best") == "MiniLM, 128 dimensions, best"
    assert family_of("BM25") == family_of("BM25, 2 thoughts") == "BM25"
