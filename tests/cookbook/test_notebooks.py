"""The notebooks run as they stand, and what is shown in them came from running them."""

from __future__ import annotations

import importlib.util
import re
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs nbclient and ipykernel")

NAMES = [
    "01_retrieve_and_see_the_thoughts",
    "02_langchain_agent",
    "03_llama_index_query_engine",
    "04_train_your_own",
    "05_any_model_any_encoder",
    "06_does_thinking_pay",
    "07_think_for_your_index",
    "08_scale_out_with_ray",
    "09_mcp_agent",
    "10_grounded_and_multi_hop",
]


@pytest.fixture(scope="module")
def execute(root: Path) -> ModuleType:
    pytest.importorskip("nbclient", reason="needs nbclient and ipykernel")
    specification = importlib.util.spec_from_file_location("execute", root / "cookbook" / "execute.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(notebook: Any) -> str:
    outputs = [output for cell in cells(notebook) for output in cell.outputs]
    return "\n".join(str(each.get("text") or each.get("data", {}).get("text/plain", "")) for each in outputs)


def committed(root: Path, name: str) -> str:
    return shown(nbformat.read(root / "cookbook" / f"{name}.ipynb", as_version=4))


def test_all_notebooks_are_known(execute: ModuleType, root: Path) -> None:
    assert [path.stem for path in execute.notebooks()] == NAMES
    page = (root / "cookbook" / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| \[.*\]\((\w+)\.ipynb\)", page, re.MULTILINE) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_what_is_committed_was_run_from_top_to_bottom_and_names_no_machine(name: str, root: Path) -> None:
    path = root / "cookbook" / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert [cell.execution_count for cell in cells(notebook)] == list(range(1, len(cells(notebook)) + 1))
    assert "thought" in shown(notebook)
    assert "**At the end you have**" in notebook.cells[0].source
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w.])/(home|root|tmp|Users|usr|work|opt)/|site-packages|Traceback", text)
    assert '"stderr"' not in text
    assert len(text) < 160_000  # pictures among it


@pytest.mark.notebooks
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_within_three_minutes(name: str, root: Path, execute: ModuleType) -> None:
    path = root / "cookbook" / f"{name}.ipynb"
    execute.LIMIT *= 4  # three minutes on two cores, of which a machine may be four times slower
    started = time.monotonic()
    fresh = execute.executed(path)
    assert time.monotonic() - started < execute.LIMIT
    committed = nbformat.read(path, as_version=4)
    # Thoughts are sampled and may differ by machine; which cells show something does not.
    assert [bool(cell.outputs) for cell in cells(committed) if cell.outputs] == [
        bool(cell.outputs) for cell in cells(fresh) if not _only_warns(cell)
    ]
    assert "thought" in shown(fresh)


def _only_warns(cell: Any) -> bool:
    return all(output.get("name") == "stderr" for output in cell.outputs)


def test_recorded_thoughts_find_more_than_none(root: Path) -> None:
    """The claim of the first notebook, in its committed outputs."""
    text = committed(root, "01_retrieve_and_see_the_thoughts")
    first = {
        name: int(count) for name, count in re.findall(r"^([A-Za-z2' ]+?) +(\d+) of 20 first", text, re.M)
    }
    assert first["recorded thoughts"] > first["without thinking"] + 3


def test_the_audit_says_what_the_notebook_concludes(root: Path) -> None:
    text = committed(root, "06_does_thinking_pay")
    assert text.count("The thoughts help, and it is what they say that helps.") == 2


def test_the_trained_model_finds_more_when_it_thinks(root: Path) -> None:
    """The claim of the fourth notebook, in its committed outputs."""
    text = committed(root, "04_train_your_own")
    found = {
        name: float(value) for name, value in re.findall(r"^(\w+) +nDCG@10 ([\d.]+)$", text, re.MULTILINE)
    }
    assert found["thinking"] > found["not_thinking"] + 0.3
    assert "bit-equal to the trained model: True" in text
    assert re.search(r"training/ +[\d,]+ bytes left out", text)
