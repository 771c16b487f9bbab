"""Nothing is needed that only Linux has: without it a program thinks, indexes and searches all the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

# The libraries are those of this system: they are there before its own things are taken away.
ELSEWHERE = """
import mmap, os, sys
import chromadb, numpy, torch
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer

MODULES = ("fcntl", "grp", "pwd", "resource", "termios")

class Absent:
    def find_spec(self, name, path=None, target=None):
        frame = sys._getframe(1)
        while "importlib" in frame.f_code.co_filename:
            frame = frame.f_back
        # Chroma asks for `resource` itself wherever it does not run on Windows.
        if name in MODULES and frame.f_globals["__name__"].startswith("o1_retriever"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
for name in MODULES:
    sys.modules.pop(name, None)
for module, names in (
    (mmap, ("MADV_HUGEPAGE", "MAP_PRIVATE", "MAP_ANONYMOUS")),
    (os, ("fork", "O_NONBLOCK", "register_at_fork", "sysconf")),
):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)

def without_proc(event, arguments):
    if event == "open" and str(arguments[0]).startswith(("/proc", "/sys")):
        raise FileNotFoundError(2, "No such file or directory", arguments[0])

sys.addaudithook(without_proc)

from o1_retriever import Index, Retriever, ThinkingEmbedder, ThoughtSettings
from o1_retriever.index.folder import sync_folder

settings = ThoughtSettings(n_thoughts=2, max_new_tokens=4)
embedder = ThinkingEmbedder.from_pretrained(sys.argv[1], settings=settings, cache=sys.argv[2] + "/cache")
with Index(sys.argv[2] + "/index", embedder) as index:
    sync_folder(index, sys.argv[2] + "/notes", show_progress_bar=False)
    print(Retriever(embedder, index, hybrid=True).search("What makes dough rise?", k=1)[0].text)
"""


def test_a_program_runs_without_what_linux_alone_has(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("chromadb", reason="needs the extra `index`")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "bread.md").write_text("Yeast makes dough rise.\n", encoding="utf-8")
    (tmp_path / "notes" / "moon.txt").write_text("Tides follow the moon.\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, root / "models" / "o1-embedder-22m", tmp_path],
        capture_output=True,
        text=True,
        timeout=280,
        cwd=root,
        env={**os.environ, "TQDM_DISABLE": "1"},
    )
    assert done.stdout.splitlines() == ["Yeast makes dough rise."], done.stderr[-3000:]
