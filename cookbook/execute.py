"""Run the notebooks of this folder, offline, and write what they print into them: `make notebooks`."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

COOKBOOK = Path(__file__).resolve().parent
ROOT = COOKBOOK.parent
# Seconds that a whole notebook may take, on two cores.
LIMIT = 180
# Nothing answers there: whatever asks the network fails at once.
_NOWHERE = "http://127.0.0.1:9"


def notebooks() -> list[Path]:
    """All notebooks, in reading order."""
    return sorted(COOKBOOK.glob("*.ipynb"))


def executed(path: Path) -> nbformat.NotebookNode:
    """A notebook after all its cells ran in this tree, without network, keys or thoughts kept from before.

    Raises `nbclient.exceptions.CellExecutionError` for a cell that fails.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=LIMIT,
            kernel_name="python3",
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": str(COOKBOOK)}},
        )
        client.execute(env=_environment(folder))
    return notebook


def keep(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Write a notebook, without the versions and the warnings of libraries that are of one machine only."""
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr"]
    nbformat.write(notebook, path)


def _environment(folder: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.upper().endswith("_API_KEY")}
    paths = [*map(str, (ROOT, ROOT / "integrations", ROOT / "training")), os.environ.get("PYTHONPATH", "")]
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "O1_RETRIEVER_CACHE": str(Path(folder, "cache")),
        "IPYTHONDIR": str(Path(folder, "ipython")),
        "HF_HUB_OFFLINE": "1",
        "HTTP_PROXY": _NOWHERE,
        "HTTPS_PROXY": _NOWHERE,
        "http_proxy": _NOWHERE,
        "https_proxy": _NOWHERE,
        "NO_PROXY": "127.0.0.1,localhost",
        # Progress bars and loading reports are for people who wait.
        "TQDM_DISABLE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "OMP_NUM_THREADS": "1",
    }


def main(names: list[str]) -> None:
    """Run all notebooks, or those whose file name starts with one of `names`, and keep their outputs."""
    for path in notebooks():
        if not names or path.name.startswith(tuple(names)):
            keep(executed(path), path)


if __name__ == "__main__":
    main(sys.argv[1:])
