"""What only a process of its own can show: what is imported, signals, pipes, and a terminal."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

import pytest

from tests.support.commands import ok

HEAVY = {"torch", "transformers", "chromadb", "sentence_transformers", "bitsandbytes", "openai", "numpy"}
COMMAND = (sys.executable, "-m", "o1_retriever")


@pytest.fixture
def environment(root):
    return {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": ""}


@pytest.mark.parametrize("arguments", [["--help"], ["search", "--help"], ["--version"], ["cache", "path"]])
def test_what_needs_no_model_imports_nothing_heavy(arguments, environment):
    script = (
        "import atexit, sys\n"
        "atexit.register(lambda: print(*{name.split('.')[0] for name in sys.modules}, file=sys.stderr))\n"
        f"sys.argv[1:] = {arguments!r}\n"
        "from o1_retriever.cli import main\nmain()"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert run.returncode == 0
    assert run.stdout
    loaded = set(run.stderr.split())
    assert "o1_retriever" in loaded
    assert not loaded & (HEAVY - {"numpy"} if arguments[0] == "cache" else HEAVY)


def test_the_module_is_the_command(environment):
    run = subprocess.run([*COMMAND, "--version"], capture_output=True, text=True, env=environment)
    assert run.stdout.startswith("o1-retriever 0.")
    bad = subprocess.run([*COMMAND, "index", "nowhere"], capture_output=True, text=True, env=environment)
    assert (bad.returncode, bad.stdout) == (1, "")
    assert bad.stderr.startswith("Error: nowhere: there is no such folder")


@pytest.mark.parametrize("arguments", [["cache", "path"], ["cache", "info"], ["--help"]])
def test_a_reader_that_has_enough_is_no_error_to_speak_of(arguments, environment):
    reading, writing = os.pipe()
    os.close(reading)
    run = subprocess.run([*COMMAND, *arguments], stdout=writing, stderr=subprocess.PIPE, env=environment)
    os.close(writing)
    assert run.stderr == b""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_conversation_until_it_is_interrupted(environment, here):
    ok("index", "notes")
    ours, theirs = os.openpty()
    run = subprocess.Popen(
        [*COMMAND, "search", "--fast", "--json"],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    os.close(theirs)
    assert run.stdout is not None
    # A question that cannot be used does not end the conversation.
    os.write(ours, b"kettle\n\xff\xfe\nmirror\n")
    answers = [run.stdout.readline() for _ in range(2)]
    assert ['"query": "kettle"' in answers[0], '"query": "mirror"' in answers[1]] == [True, True]
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=250)
    os.close(ours)
    assert run.returncode == 130
    assert '"query"' not in out
    assert err.count("Error: query 0 has a lone surrogate") == 1
    assert err.endswith("Interrupted. What was done is kept: type the same command to go on.\n")
    assert "Traceback" not in err


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_terminal_shows_thoughts_while_they_are_written(here, environment):
    terminal, end = os.openpty()
    command = [*COMMAND, "think", "Why?", "--no-cache", "--max-new-tokens", "40"]
    shown_as = {**environment, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(command, stdin=end, stdout=end, stderr=end, env=shown_as):
        os.close(end)
        shown = b""
        with contextlib.suppress(OSError):  # the end of a terminal is an error
            while read := os.read(terminal, 4096):
                shown += read
    os.close(terminal)
    text = shown.decode("utf-8", "replace")
    assert "2 thoughts, " in text
    # The lines are written over more than once before they stand.
    assert text.count("\x1b[2K") > 4
    assert text.index("\x1b[2K") < text.index("2 thoughts, ")
