"""The command `o1-retriever`.

`app` has the table of all commands and turns errors into one line each, `options` declares what several
commands share, `models` loads what the options name, and `terminal` is all that is written to a
terminal. Every other module holds one command, or two that belong together: `search` has `think` too, `embed`
`load`, `evaluate` `calibrate`, and `info` `cache`. None of them imports anything heavy before a command needs
it.
"""

from __future__ import annotations

import contextlib
import os
import sys


def main() -> None:
    """Run the command line and end the process."""
    from o1_retriever.cli.terminal import stop

    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character gets a question mark, not a traceback.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        from o1_retriever.cli.app import app

        app(prog_name="o1-retriever")
    except KeyboardInterrupt:
        # While the program was still starting.
        sys.exit(stop())
    finally:
        # What is left, so that a pipe that was closed (by `head`) is not noticed at exit, too late.
        try:
            sys.stdout.flush()
        except OSError:
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
