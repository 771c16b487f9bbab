"""The scripts that measure speed still run, at toy size, and measure what they say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.record import Figure, read, record
from benchmarks.speed import cached, documents, importing, search
from benchmarks.speed.__main__ import main
from benchmarks.speed.child import in_child
from benchmarks.speed.data import documents as real_documents
from benchmarks.speed.pairs import ratio
from benchmarks.speed.plots import draw_growth, draw_ratios
from benchmarks.speed.synthetic import mixtures, random_base
from o1_retriever import ThinkingEmbedder, ThoughtSettings
from tests.support.tiny import tiny_model

PNG = b"\x89PNG\r\n\x1a\n"


def embedder(cache: Path) -> ThinkingEmbedder:
    settings = ThoughtSettings(n_thoughts=2, max_new_tokens=4)
    return ThinkingEmbedder.from_model(*tiny_model("qwen2"), settings=settings, cache=cache)


def test_a_cached_question_is_drawn_from_disk(tmp_path: Path) -> None:
    cached.fill(tmp_path, embedder(tmp_path / "cache"), cached.questions()[:3], documents=40)
    again = embedder(tmp_path / "cache")
    found = cached.draw(tmp_path, again, 6)
    assert 0 < found["embed_ms"] < found["search_ms"]
    assert [figure.name for figure in cached.figures(found, "40")] == [
        "cached_query/p50_ms",
        "cached_query/search_40_p50_ms",
    ]
    with pytest.raises(SystemExit, match="not in the cache"):
        cached.draw(tmp_path, embedder(tmp_path / "empty"), 1)


def test_imports_are_timed_in_fresh_processes() -> None:
    figures = {figure.name: figure for figure in importing.figures(1)}
    assert set(figures) == {"import_time/package_s", "import_time/cli_help_s"}
    assert 0.05 < figures["import_time/cli_help_s"].value < 60
    assert figures["import_time/package_s"].value < figures["import_time/cli_help_s"].value


def test_an_index_grows_through_its_sizes() -> None:
    figures = {figure.name: figure.value for figure in search.grow((20, 60), queries=2)}
    assert 0 < figures["search/20/add_s"] < figures["search/60/add_s"]
    assert all(
        figures[f"search/60/{what}"] > 0 for what in ("query_p50_ms", "filtered_p50_ms", "open_s", "disk_mb")
    )
    assert search.exponent({10: 1.0, 100: 10.0, 1000: 100.0}) == 1.0
    assert search.exponent({10: 4.0, 1000: 4.0}) == 0.0


def test_synthetic_vectors_have_neighbours() -> None:
    base = random_base(16)
    rows = mixtures(base, 200, seed=1)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-5)
    assert np.array_equal(rows, mixtures(base, 200, seed=1))
    assert (rows @ base.T).max(1).min() > 0.3 > np.abs(base @ base.T - np.eye(16)).max()


def test_streamed_texts_differ_and_are_of_mixed_length() -> None:
    name, texts = real_documents(20)
    assert name in ("scifact", "everyday")
    assert len(texts) == 20
    streamed = list(documents.variations(texts, 300))
    assert len(set(streamed)) == len(streamed) == 300
    words = [len(text.split()) for text in streamed]
    assert min(words) < 12
    assert max(words) >= 42
    assert streamed == list(documents.variations(texts, 300))


def test_a_ratio_says_how_many_times_as_fast_ours_is(capsys: pytest.CaptureFixture[str]) -> None:
    def work(steps: int) -> int:
        return sum(range(steps))

    assert ratio(lambda: work(100_000), lambda: work(1_000_000), pairs=3, said="toy") > 3
    assert capsys.readouterr().out.count("toy: ") == 3


def test_the_peak_of_a_process_is_its_own() -> None:
    script = (
        "import subprocess, sys; held = b'1' * (400 << 20);"
        "code = 'from o1_retriever.evaluation.comparison import peak_megabytes as p; print(p())';"
        "sys.exit(subprocess.run([sys.executable, '-c', code]).returncode)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    if not Path("/proc/self/status").is_file():
        pytest.skip("this system does not tell a process's own peak")
    assert 5 < float(done.stdout) < 300


def test_a_child_that_fails_says_why() -> None:
    with pytest.raises(SystemExit, match="unrecognized arguments"):
        in_child("benchmarks.speed", "--nonsense")


def test_pictures_follow_the_figures(tmp_path: Path) -> None:
    ratios = {
        "encode_queries/16M/q32/ratio": 7.0,
        "encode_queries/16M/q1/int8_ratio": 2.0,
        "encode_documents/ratio": 0.9,
        "encode_documents/peak_ratio": 0.7,
    }
    costs = {f"search/{n}/{what}": n / 100 for n in (10, 100) for what in ("add_s", "query_p50_ms")}
    for name, draw, values in (("a", draw_ratios, ratios), ("b", draw_growth, costs)):
        results, picture = tmp_path / f"{name}.jsonl", tmp_path / "new" / f"{name}.png"
        assert not draw(read(results), picture)
        assert not picture.exists()
        record(results, [Figure(name=key, value=value, unit="") for key, value in values.items()])
        assert draw(read(results), picture)
        assert picture.read_bytes().startswith(PNG)


def test_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["quickly"])
    assert "unknown quickly; expected some of queries," in capsys.readouterr().err
