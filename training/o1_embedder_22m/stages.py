"""Run the stages of o1-embedder-22m: `stages.yaml` lists the steps, each a command of ours with its options.

```
python training/o1_embedder_22m/stages.py --data ../shared/data --work build/o1-embedder-22m
```

`{data}`, `{work}` and `{recipes}` in the list stand for folders. A step that was finished with the same
options is not run again, and the steps themselves go on where they were stopped. `--quick` adds the options
that a step has under `quick`: the whole way in minutes, to see that it works; the model that comes out is no
good.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
RECIPES = HERE.parent / "recipes" / "o1-embedder-22m"


def command(step: dict[str, Any], places: dict[str, str], quick: bool) -> list[str]:
    """What a step types: a script of this folder or a command of `o1-retriever`, and its options."""
    name = str(step["run"])
    script = HERE / f"{name}.py"
    words = [str(script)] if script.is_file() else ["-m", "o1_retriever", name]
    words += _texts(step.get("files", []), places)
    # Of an option that stands there twice the last one counts, or both do if it may be repeated.
    for options in (step.get("with", {}), step.get("quick", {}) if quick else {}):
        for key, value in options.items():
            for each in value if isinstance(value, list) else [value]:
                given = [] if each is True else _texts(each, places)
                words += [] if each is False else [f"--{key}", *given]
    return [sys.executable, *words]


def _texts(value: Any, places: dict[str, str]) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [str(each).format(**places) if isinstance(each, str) else str(each) for each in values]


def run(stages: Path, places: dict[str, str], quick: bool) -> None:
    """Run the steps that are not done; raises `SystemExit` with the step that failed."""
    steps = yaml.safe_load(stages.read_text(encoding="utf-8"))["steps"]
    for number, step in enumerate(steps, 1):
        words = command(step, places, quick)
        mark = hashlib.sha256(json.dumps(words[1:]).encode()).hexdigest()[:16]
        done = Path(places["work"]) / "done" / f"{number}-{mark}"
        title = f"step {number} of {len(steps)}: {step['run']}"
        if done.exists():
            print(f"{title}: done before", flush=True)
            continue
        print(f"{title}\n  {' '.join(words[1:])}", flush=True)
        status = subprocess.run(words).returncode  # our own stages  # nosec B603
        if status:
            raise SystemExit(f"{title} failed with status {status}. The same command goes on from there.")
        done.parent.mkdir(parents=True, exist_ok=True)
        done.touch()


def main() -> None:
    """Read the options and run the steps in their order."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data"), help="folder with text/ and train/"
    )
    parser.add_argument("--work", type=Path, default=Path("build/o1-embedder-22m"))
    parser.add_argument("--quick", action="store_true", help="few steps of everything")
    args = parser.parse_args()
    if not args.data.is_dir():
        raise SystemExit(f"There is no folder {args.data}. Type: make o1-embedder-22m DATA=FOLDER")
    args.work.mkdir(parents=True, exist_ok=True)
    places = {"data": str(args.data), "work": str(args.work), "recipes": str(RECIPES)}
    run(HERE / "stages.yaml", places, quick=args.quick)


if __name__ == "__main__":
    main()
