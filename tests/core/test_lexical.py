"""BM25 by itself, and the word index that an index keeps beside its documents."""

from __future__ import annotations

import math
import multiprocessing
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest

from o1_retriever.documents import Document
from o1_retriever.errors import InputError, MissingExtraError, SettingsError
from o1_retriever.index.index import Index, embed_documents
from o1_retriever.ranking.bm25 import Bm25, Reading
from o1_retriever.thought import Thought
from tests.support.index_worker import TinyEmbedder, vectors

WORDS = ["apple", "river", "stone", "lamp", "cloud", "paper", "wheel", "honey", "candle", "mirror"]


def sentences(count: int) -> list[Document]:
    """Sentences of words drawn by number; every fifth has none that counts."""
    draw = np.random.default_rng(0)
    return [
        Document(
            id=f"d{n:04d}",
            text="the of and" if n % 5 == 0 else " ".join(draw.choice(WORDS, size=draw.integers(2, 9))),
            metadata={"n": n, "even": n % 2 == 0},
        )
        for n in range(count)
    ]


def lucene(texts: list[str], query: str) -> list[float]:
    """BM25 as Lucene has it, for words that are their own stems."""
    stop = {"the", "of", "and"}
    split = [[word for word in text.split() if word not in stop] for text in texts]
    mean = sum(map(len, split)) / len(split)
    scores = [0.0] * len(texts)
    for word in query.split():
        having = sum(word in words for words in split)
        idf = math.log(1 + (len(texts) - having + 0.5) / (having + 0.5))
        for place, words in enumerate(split):
            count = words.count(word)
            scores[place] += idf * count / (count + 1.5 * (0.25 + 0.75 * len(words) / mean)) if count else 0
    return scores


def plain(index: Index, group: np.ndarray, text: str, k: int, allowed: set[str]) -> list[str]:
    """Fusion written down again, over everything that is in the index."""
    documents = sorted(index.documents(), key=lambda document: document.id)
    matrix = index.vectors([document.id for document in documents])
    near = (matrix @ group.T).max(axis=1)
    words = Bm25([document.text for document in documents]).scores(text)
    kept = [place for place, document in enumerate(documents) if document.id in allowed]
    if not kept:
        return []
    near = np.round(near, 6)
    low, high = near[kept].min(), near[kept].max()
    most = max(words[kept].max(), 1e-9)
    scores = {p: round((near[p] - low) / (high - low) + words[p] / most, 6) for p in kept}
    best = sorted(kept, key=lambda p: (-scores[p], -round(float(near[p]), 6), documents[p].id))[:k]
    return [documents[place].id for place in best]


@pytest.fixture
def embedder():
    return TinyEmbedder()


@pytest.fixture
def index(tmp_path, embedder):
    with Index(tmp_path / "index", embedder) as index:
        index.add(sentences(120))
        yield index


def folders(index: Index) -> list[str]:
    return sorted(path.name for path in (index.path / "documents").glob("bm25-*"))


def ask(index: Index, text: str = "honey candle", **options):
    (hits,) = index.search_groups([vectors(TinyEmbedder(), text)], texts=[text], **options)
    return [hit.id for hit in hits]


def test_bm25_is_that_of_lucene():
    texts = [document.text for document in sentences(40)]
    bm25 = Bm25(texts)
    for query in ("honey", "honey honey candle", "river nothing stone"):
        assert bm25.scores(query) == pytest.approx(lucene(texts, query), rel=1e-5)
    assert bm25.scores("candles") == pytest.approx(bm25.scores("candle"))


@pytest.mark.parametrize("texts", [[], ["the of", "and"], ["火", "apple river"]])
@pytest.mark.parametrize("query", ["the", "火", "unknown", ""])
def test_texts_and_queries_without_words_score_nothing(texts, query, tmp_path):
    bm25 = Bm25(texts)
    assert bm25.scores(query).tolist() == [0.0] * len(texts)
    bm25.save(tmp_path)
    assert Bm25.load(tmp_path, len(texts)).scores("apple").tolist() == bm25.scores("apple").tolist()


def test_thoughts_count_by_their_mean_and_failed_ones_nothing():
    bm25 = Bm25([document.text for document in sentences(40)])
    thoughts = [Thought(text="candle stone"), Thought.failure("down"), Thought(text="river")]
    mean = (bm25.scores("candle stone") + bm25.scores("river")) / 2
    expected = bm25.scores("honey") + mean
    assert bm25.scores(Reading.of("honey", thoughts)) == pytest.approx(expected, rel=1e-5)
    assert bm25.scores(Reading.of("honey", thoughts * 3)) == pytest.approx(expected, rel=1e-5)
    for nothing in ([], [Thought.failure("down")]):
        assert bm25.scores(Reading.of("honey", nothing)).tolist() == bm25.scores("honey").tolist()


def test_thoughts_may_count_differently():
    bm25 = Bm25([document.text for document in sentences(40)])
    found = bm25.scores(Reading("honey", (("candle", 0.5), ("river", 0.1))))
    parts = [bm25.scores(text) for text in ("honey", "candle", "river")]
    assert found == pytest.approx(parts[0] + 0.5 * parts[1] + 0.1 * parts[2], rel=1e-5)


def test_thoughts_that_count_less_than_the_query_count_by_their_median_and_dropped_ones_nothing():
    bm25 = Bm25([document.text for document in sentences(40)])
    texts = ["candle stone", "river candle", "apple", "loop"]
    thoughts = [Thought(text=text) for text in texts[:3]]
    query, *own = (bm25.scores(text) for text in ["honey", *texts[:3]])
    expected = query + np.median(own, axis=0) / 4
    assert bm25.scores(Reading.of("honey", thoughts, 3.0)) == pytest.approx(expected, rel=1e-5)
    assert bm25.scores(Reading.of("honey", [*thoughts, Thought.failure("down")], 3.0)) == pytest.approx(
        expected
    )
    dropped = [*thoughts, Thought(text="loop", dropped="turns in circles")]
    expected = query + np.median([*own, np.zeros(40)], axis=0) / 4
    assert bm25.scores(Reading.of("honey", dropped, 3.0)) == pytest.approx(expected, rel=1e-5)
    mean = query + np.mean(own[:2], axis=0) / 4
    assert bm25.scores(Reading.of("honey", thoughts[:2], 3.0)) == pytest.approx(mean, rel=1e-5)
    assert Reading.of("honey", thoughts, 1.0).median_of == 0, "as much as the query is not less"


@pytest.mark.parametrize("where", [None, {"even": True}, {"n": {"$lt": 7}}, {"n": -1}])
@pytest.mark.parametrize("size", [1, 3])
def test_a_fused_ranking_is_that_of_its_definition(index, where, size):
    allowed = set(index.ids(where))
    groups = [
        vectors(TinyEmbedder(), *(f"{WORDS[n]} {part}" for part in range(size))) for n in range(len(WORDS))
    ]
    texts = [f"{WORDS[n]} {WORDS[n - 1]}" for n in range(len(WORDS))]
    found = index.search_groups(groups, texts=texts, k=10, where=where)
    for group, text, hits in zip(groups, texts, found, strict=True):
        assert [hit.id for hit in hits] == plain(index, group, text, 10, allowed)
        (alone,) = index.search_groups([group], texts=[text], k=10, where=where)
        assert [hit.id for hit in alone] == [hit.id for hit in hits]
        for hit in hits:
            assert hit.relevance == pytest.approx(hit.fused_score, abs=1e-6)
            assert hit.dense_rank is not None
            assert (hit.lexical_score is None) == (hit.lexical_rank is None)
            cosine = float((index.vectors([hit.id]) @ group.T).max())
            assert hit.score == pytest.approx(cosine, abs=1e-5)
        words = sorted((hit.lexical_rank, -hit.lexical_score) for hit in hits if hit.lexical_rank)
        assert [score for _, score in words] == sorted(score for _, score in words)


def test_only_the_first_of_each_ranking_are_fused(index):
    (hits,) = index.search_groups([vectors(TinyEmbedder(), "honey")], texts=["honey candle"], k=2, depth=3)
    assert all((hit.dense_rank or 1) <= 3 and (hit.lexical_rank or 1) <= 3 for hit in hits)
    (hits,) = index.search_groups([vectors(TinyEmbedder(), "x")], texts=["honey"], k=30, depth=30)
    found_by_words_alone = [hit for hit in hits if hit.dense_rank is None]
    assert found_by_words_alone
    for hit in found_by_words_alone:
        cosine = (vectors(TinyEmbedder(), "x") @ index.vectors([hit.id]).T).item()
        assert hit.score == pytest.approx(cosine, abs=1e-5)


def test_groups_without_texts_are_searched_by_their_best_vector(index):
    group = vectors(TinyEmbedder(), "a", "b", "c")
    documents = sorted(index.ids())
    best = (index.vectors(documents) @ group.T).max(axis=1)
    expected = [documents[place] for place in np.argsort(-best, kind="stable")]
    (hits,) = index.search_groups([group], k=200)
    scores = [hit.score for hit in hits]
    assert scores == pytest.approx(sorted(best.tolist(), reverse=True), abs=1e-5)
    (few,) = index.search_groups([group], k=5)
    assert [hit.score for hit in few] == pytest.approx(scores[:5], abs=1e-6)
    assert {hit.id for hit in hits} == set(expected)
    assert few[0].fused_score is None
    assert index.search_groups([]) == []


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"groups": [np.ones((1, 16))], "texts": []}, InputError),
        ({"groups": [np.ones((0, 16))]}, InputError),
        ({"groups": [np.ones((1, 3))]}, InputError),
        ({"groups": [np.ones((1, 16))], "depth": 0}, SettingsError),
        ({"groups": [np.ones((1, 16))], "k": True}, SettingsError),
    ],
)
def test_groups_that_cannot_be_searched_are_refused(index, arguments, error):
    with pytest.raises(error):
        index.search_groups(**arguments)


def test_what_is_added_changed_or_deleted_is_seen_at_once(index):
    new = Document(id="new", text="zeppelin zeppelin", metadata={"n": 0, "even": True})
    assert "new" not in ask(index, "zeppelin", k=5)
    index.add([new])
    assert ask(index, "zeppelin", k=5)[0] == "new"
    index.add([Document(id="new", text="apple", metadata={"n": 0, "even": True})])
    (hits,) = index.search_groups([vectors(TinyEmbedder(), "x")], texts=["zeppelin"], k=200)
    assert {hit.lexical_rank for hit in hits} == {None}
    index.delete(["new"])
    assert "new" not in ask(index, "zeppelin", k=200)
    assert len(folders(index)) == 1


def test_a_second_opening_reads_what_the_first_has_made(index, embedder, monkeypatch):
    expected = ask(index)
    (name,) = folders(index)
    made = {path: path.stat().st_mtime_ns for path in (index.path / "documents" / name).iterdir()}
    with Index(index.path, embedder) as other:
        assert ask(other) == expected
    assert {path: path.stat().st_mtime_ns for path in made} == made


@pytest.mark.parametrize("damage", ["cut", "other", "gone", "empty"])
def test_a_damaged_word_index_is_made_anew(index, embedder, damage, caplog):
    expected = ask(index)
    folder = index.path / "documents" / folders(index)[0]
    file = folder / "data.csc.index.npy"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-8])
    elif damage == "other":
        file.write_bytes(file.read_bytes()[:-4] + b"\x00\x00\x80?")
    elif damage == "gone":
        file.unlink()
    else:
        (folder / "manifest.json").write_text("")
    with Index(index.path, embedder) as other:
        assert ask(other) == expected
    assert "anew" in caplog.text
    caplog.clear()
    with Index(index.path, embedder) as other:
        assert ask(other) == expected
    assert "anew" not in caplog.text


def test_a_writer_that_died_leaves_a_whole_word_index(index, embedder):
    """The ledger has what was written, the generation has not moved: as after a kill in the middle."""
    ask(index)
    document = Document(id="late", text="zeppelin", metadata={"n": 1, "even": False})
    store = index._store
    with store.ledger.session(write=True) as session, session.transaction():
        session.put(embed_documents(embedder, [document], {}, batch_size=1))
        session.remove(["d0001"])
        session.write_state(replace(session.state(), dirty=True))
    (hits,) = index.search_groups([vectors(embedder, "x")], texts=["zeppelin"], k=200)
    assert {hit.id: hit.lexical_rank for hit in hits}["late"] == 1
    assert "d0001" not in {hit.id for hit in hits}
    assert len(hits) == 120


def test_threads_that_ask_first_all_have_the_same_answer(index, tmp_path):
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(ask(index))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 6
    assert all(answer == answers[0] for answer in answers)
    assert len(folders(index)) == 1


def _ask_elsewhere(path: str, answers) -> None:
    with Index(path, TinyEmbedder()) as index:
        answers.put(ask(index))


def test_processes_that_ask_first_all_have_the_same_answer(index):
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    processes = [context.Process(target=_ask_elsewhere, args=(str(index.path), answers)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [answers.get(timeout=250) for _ in processes]
    for process in processes:
        process.join(250)
    assert found == [ask(index)] * 2
    assert len(folders(index)) == 1


def test_a_folder_that_cannot_be_written_is_searched_all_the_same(index, caplog, monkeypatch):
    blocked = index.path / "documents" / f"bm25-{_state(index).graph}-{_state(index).generation}"
    blocked.write_text("a file where the folder should be")
    assert ask(index)
    assert "cannot be kept" in caplog.text


def _state(index: Index):
    return index._store.look(lambda session: session.state())


def test_an_empty_index_answers_with_nothing(tmp_path, embedder):
    with Index(tmp_path / "empty", embedder) as index:
        assert ask(index) == []


def test_a_missing_package_names_its_extra(index, monkeypatch):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(MissingExtraError, match=r"o1-retriever\[index\]"):
        ask(index)
