"""The server shows the reports of `o1-retriever eval`, as they are when somebody asks."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the extra `serve`")
pytest.importorskip("ir_measures", reason="needs the extra `eval`")
pytest.importorskip("bm25s", reason="needs the extra `index`")

import httpx

from o1_retriever.errors import SettingsError
from o1_retriever.evaluation.comparison import CONTROLS
from o1_retriever_server import create_app
from tests.support.adapters import small_embedder
from tests.support.http_server import serving
from tests.support.reports import riddles


def test_an_audit_is_read_with_the_queries_that_gained(tmp_path: Path) -> None:
    written = riddles(tmp_path)
    with serving(create_app(small_embedder(), reports=[tmp_path])) as server:
        address = f"{server.url}/v1/reports"
        [report] = httpx.get(address, trust_env=False).json()
        assert (report["queries"], report["documents"], report["measure"]) == (12, 12, "nDCG@10")
        plain, thinking = report["systems"]
        assert (plain["controls"], plain["verdict"]) == ([], None)
        assert thinking["mean"] > plain["mean"]
        assert "it is what they say that helps" in thinking["verdict"]
        assert [each["name"] for each in thinking["controls"]] == ["the query alone", *CONTROLS]
        assert thinking["interval"][0] <= thinking["mean"] <= thinking["interval"][1]
        first = report["helped"][0]
        assert first["after"] > first["before"]
        assert first["thoughts"][0].startswith("answer")
        assert "which a relevant document has" in first["why"]
        assert report["hurt"] == []
        (written / "per_query.jsonl").write_text("{")
        answer = httpx.get(address, trust_env=False)
        assert answer.status_code == 404
        assert "cannot be read" in answer.json()["error"]["message"]


def test_a_folder_without_a_report_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="Found no report") as refusal:
        create_app(small_embedder(), reports=[tmp_path])
    assert "--control --report" in str(refusal.value)
    with serving(create_app(small_embedder())) as server:
        assert httpx.get(f"{server.url}/v1/reports", trust_env=False).json() == []
