"""What is pickled, copied, spawned and forked works where it arrives, and never takes weights along."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch

from o1_retriever import Index, Retriever, ThinkingEmbedder
from o1_retriever.cache import ThoughtCache
from o1_retriever.concurrency import processes
from o1_retriever.concurrency.processes import check_device
from o1_retriever.encoders import CallableEncoder
from o1_retriever.errors import ModelError, NotSendableError
from o1_retriever.thinkers import CallableThinker, LocalThinker, RecordedThinker
from tests.support import process_work as work
from tests.support.tiny import tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint."""
    return saved(tmp_path_factory.mktemp("model"))


def saved(folder: Path, seed: int = 0) -> Path:
    model, tokenizer = tiny_model("llama", seed=seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def embedder(folder: Path) -> ThinkingEmbedder:
    return ThinkingEmbedder.from_pretrained(folder, cache=False)


def forgotten() -> None:
    """As in a process to which nothing was sent yet."""
    processes._here.clear()
    processes._arrived_once.cache_clear()


def sent_elsewhere(thing: Any) -> Any:
    """The thing as it arrives in another process."""
    raw = pickle.dumps(thing)
    forgotten()
    return pickle.loads(raw)


class TestEmbedder:
    def test_what_is_sent_holds_no_weights_and_gives_the_same_vectors(
        self, embedder: ThinkingEmbedder
    ) -> None:
        assert len(pickle.dumps(embedder)) < 2000
        arrived = sent_elsewhere(embedder)
        assert arrived.backend is not embedder.backend
        assert np.allclose(work.query_vector(arrived), work.query_vector(embedder), atol=1e-6)
        assert arrived.space == embedder.space

    def test_nothing_is_loaded_before_it_is_used_and_everything_once(
        self, embedder: ThinkingEmbedder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("o1_retriever.engine.backend.load_model", lambda *_: pytest.fail("loaded"))
        arrived = sent_elsewhere(embedder)
        again = pickle.loads(pickle.dumps(embedder))
        assert arrived.backend is again.backend
        assert pickle.loads(pickle.dumps(arrived)).backend is arrived.backend, "it travels on, still unmade"

    def test_where_the_model_is_loaded_already_it_is_shared(self, embedder: ThinkingEmbedder) -> None:
        forgotten()
        assert pickle.loads(pickle.dumps(embedder)).backend is embedder.backend

    def test_a_model_stays_loaded_from_task_to_task(self, embedder: ThinkingEmbedder) -> None:
        raw = pickle.dumps(embedder)
        forgotten()
        first = id(pickle.loads(raw).backend.local)
        assert id(pickle.loads(raw).backend.local) == first

    @pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
    def test_a_copy_shares_the_model_and_has_settings_of_its_own(
        self, embedder: ThinkingEmbedder, copied: Any
    ) -> None:
        other = copied(embedder)
        assert other.backend is embedder.backend
        before, other.settings = embedder.settings, work.SHORT
        assert embedder.settings == before != other.settings
        assert np.array_equal(work.query_vector(other), work.query_vector(embedder))

    def test_other_weights_under_the_same_name_are_noticed(self, tmp_path: Path) -> None:
        embedder = ThinkingEmbedder.from_pretrained(saved(tmp_path), cache=False)
        arrived = sent_elsewhere(embedder)
        saved(tmp_path, seed=1)
        with pytest.raises(ModelError, match="other weights here than where it was sent from"):
            work.query_vector(arrived)

    def test_a_relative_folder_means_the_same_elsewhere(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(folder.parent)
        embedder = ThinkingEmbedder.from_pretrained(folder.name, cache="kept")
        raw = pickle.dumps(embedder)
        forgotten()
        monkeypatch.chdir(tmp_path)
        arrived = pickle.loads(raw)
        assert work.query_vector(arrived) == work.query_vector(embedder)
        assert arrived.cache.path == embedder.cache.path == folder.parent / "kept"

    def test_a_model_of_the_caller_stays_where_it_is(self) -> None:
        embedder = ThinkingEmbedder.from_model(*tiny_model("llama"), cache=False)
        assert copy.deepcopy(embedder).backend is embedder.backend
        with pytest.raises(NotSendableError, match="the folder or name of a model instead of a loaded one"):
            pickle.dumps(embedder)

    def test_threads_that_use_what_has_arrived_load_it_once(
        self, embedder: ThinkingEmbedder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from concurrent.futures import ThreadPoolExecutor

        from o1_retriever.engine import backend

        loads, real = [], backend.load_model
        monkeypatch.setattr(backend, "load_model", lambda *given: loads.append(1) or real(*given))
        arrived = sent_elsewhere(embedder)
        with ThreadPoolExecutor(8) as pool:
            vectors = list(pool.map(work.query_vector, [arrived] * 8))
        assert len(loads) == 1
        assert all(np.allclose(each, vectors[0], atol=1e-6) for each in vectors)


class TestParts:
    def test_functions_travel_by_name_and_lambdas_say_that_they_cannot(self) -> None:
        good = ThinkingEmbedder.from_parts(work.thoughts, work.letters, cache=False)
        assert work.query_vector(sent_elsewhere(good)) == work.query_vector(good)
        bad = ThinkingEmbedder.from_parts(lambda queries, n: work.thoughts(queries, n), work.letters)
        assert copy.deepcopy(bad).backend is bad.backend
        with pytest.raises(NotSendableError, match=r"The function of CallableThinker.*instead of a lambda"):
            pickle.dumps(bad)
        with pytest.raises(pickle.PicklingError):
            pickle.dumps(CallableEncoder(lambda texts: work.letters(texts), name="l"))

    def test_picklers_that_send_functions_send_lambdas(self) -> None:
        embedder = ThinkingEmbedder.from_parts(
            CallableThinker(lambda queries, n: [["x"] * n for _ in queries]), work.letters, cache=False
        )
        arrived = cloudpickle.loads(cloudpickle.dumps(embedder))
        assert work.query_vector(arrived) == work.query_vector(embedder)

    def test_recorded_thoughts_travel(self) -> None:
        thinker = RecordedThinker({work.QUERY: ["fog", "dew"]})
        embedder = ThinkingEmbedder.from_parts(thinker, work.letters, cache=False)
        assert work.query_vector(sent_elsewhere(embedder)) == work.query_vector(embedder)

    def test_a_local_thinker_is_loaded_where_it_arrives(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        thinker = LocalThinker(folder, examples=[("Why?", "Because it is so.")])
        embedder = ThinkingEmbedder.from_parts(thinker, work.letters, cache=False)
        arrived = sent_elsewhere(embedder)
        assert "local" not in vars(arrived.backend.thinker)
        assert work.query_vector(arrived) == work.query_vector(embedder)

    def test_the_cache_is_shared(self, folder: Path, tmp_path: Path) -> None:
        cache = ThoughtCache(tmp_path, max_bytes=1 << 20)
        embedder = ThinkingEmbedder.from_pretrained(folder, cache=cache)
        assert copy.deepcopy(embedder).cache is cache
        work.query_vector(embedder)
        arrived = sent_elsewhere(embedder)
        assert arrived.cache.info().max_bytes == 1 << 20
        assert arrived.embed_query(work.QUERY, settings=work.SHORT).thoughts[0].cached


class TestRetriever:
    def test_it_travels_with_its_index(self, folder: Path, tmp_path: Path) -> None:
        embedder = ThinkingEmbedder.from_pretrained(folder, cache=False)
        with Index(tmp_path / "index", embedder) as index:
            index.add([work.Document(id=str(place), text=text) for place, text in enumerate(work.TEXTS)])
            retriever = Retriever(embedder, index, pooling="best")
            arrived = sent_elsewhere(retriever)
            assert "_store" not in vars(arrived.index), "it is opened when it is first used"
            assert arrived.search_settings == retriever.search_settings
            assert work.found(arrived) == work.found(retriever)
            assert arrived.index._embedder is arrived.embedder
            assert len(arrived.index) == 2
            assert copy.deepcopy(retriever).index is index
            arrived.index.close()

    def test_an_index_that_is_gone_is_not_made_anew(self, tmp_path: Path, embedder: ThinkingEmbedder) -> None:
        import shutil

        from o1_retriever.errors import IndexNotFoundError

        with Index(tmp_path / "index", embedder) as index:
            raw = pickle.dumps(index)
        shutil.rmtree(tmp_path / "index")
        with pytest.raises(IndexNotFoundError):
            len(pickle.loads(raw))


def test_a_spawned_pool_loads_once_a_process_and_shares_the_cache(folder: Path, tmp_path: Path) -> None:
    embedder = ThinkingEmbedder.from_pretrained(folder, cache=tmp_path)
    work.query_vector(embedder)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=work.count_loads) as pool:
        seen = list(pool.map(work.loads_of, [embedder] * 3))
        vector = pool.submit(work.query_vector, embedder).result()
    assert seen == [(0, 1, True), (1, 1, True), (1, 1, True)]
    assert np.allclose(vector, work.query_vector(embedder), atol=1e-6)


@pytest.fixture(scope="module")
def said(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What forked children said; their parent has computed with two threads of torch."""
    script = [sys.executable, "-m", "tests.support.process_work", str(root / "models" / "o1-embedder-22m")]
    done = subprocess.run(
        [*script, str(tmp_path_factory.mktemp("forks"))],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
class TestForks:
    @pytest.mark.parametrize("what", ["query", "documents"])
    def test_a_child_computes_what_its_parent_does(self, said: dict[str, Any], what: str) -> None:
        assert said[what] != "hung"
        assert np.allclose(said[what], said["here"][what], atol=1e-4)

    def test_a_child_searches_an_index_that_its_parent_has_open(self, said: dict[str, Any]) -> None:
        assert sorted(said["found first"]) == ["0", "1"]
        assert said["found later"] == said["here"]["found"] == said["after"]

    def test_where_the_parent_has_used_chroma_a_child_that_writes_says_what_to_do(
        self, said: dict[str, Any]
    ) -> None:
        assert said["written later"].startswith("StoreError: Chroma was used before this process was forked")
        assert "get_context('spawn')" in said["written later"]

    def test_a_forked_pool_works(self, said: dict[str, Any]) -> None:
        assert np.allclose(said["pooled"], said["here"]["query"], atol=1e-4)

    def test_a_fork_beside_a_thread_that_thinks_finds_free_locks(self, said: dict[str, Any]) -> None:
        assert said["beside"] == [True] * 4

    def test_a_child_computes_with_one_thread(self, said: dict[str, Any]) -> None:
        assert said["threads"] == 1


def test_a_gpu_is_refused_on_the_other_side_of_a_fork() -> None:
    check_device(torch.device("cpu"), os.getpid() + 1, "a model")
    check_device(torch.device("cuda"), os.getpid(), "a model")
    with pytest.raises(ModelError, match="get_context\\('spawn'\\)"):
        check_device(torch.device("cuda"), os.getpid() + 1, "a model")
