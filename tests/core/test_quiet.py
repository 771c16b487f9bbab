"""What a user's own program shows of warnings: none, neither ours nor those of libraries about our calls."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

PROGRAM = """
import sys
from o1_retriever import ThinkingEmbedder, ThoughtSettings

settings = ThoughtSettings(n_thoughts=2, max_new_tokens=4)
embedder = ThinkingEmbedder.from_pretrained(sys.argv[1], settings=settings, cache=False, {options})
embedder.encode_queries(["Why does the mirror fog up?", "What is dew?"], show_progress_bar=False)
embedder.encode_documents(["Water vapour condenses on cold glass."], show_progress_bar=False)
"""


@pytest.mark.parametrize("options", ["", "load_in_4bit=True"])
def test_a_program_that_thinks_and_embeds_shows_nothing(options: str, root: Path) -> None:
    if options and importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("needs the extra `4bit`")
    # Deprecations as well, which Python hides from users until they are errors; no bar of loading weights.
    command = [
        sys.executable,
        "-W",
        "default::DeprecationWarning:o1_retriever",
        "-W",
        "always::FutureWarning",
    ]
    done = subprocess.run(
        [*command, "-c", PROGRAM.format(options=options), root / "models" / "o1-embedder-22m"],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=root,
        env={**os.environ, "TQDM_DISABLE": "1"},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
