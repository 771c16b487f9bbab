"""The mean of several runs' weights, as a run that export.py reads (Wortsman et al. 2022).

```
python training/o1_mini/average.py WORK/a WORK/b --run WORK/mean
```

The runs must have started from the same weights; otherwise the mean of their weights is the mean of nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor
from train import save


def average(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Each weight's mean; what is no floating-point number is that of the first."""
    first = states[0]
    return {
        name: torch.stack([state[name] for state in states]).mean(0) if value.is_floating_point() else value
        for name, value in first.items()
    }


def main() -> None:
    """Write the averaged checkpoint."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--run", type=Path, required=True, help="folder to write")
    args = parser.parse_args()
    found = [torch.load(run / "checkpoint.pt", weights_only=True, map_location="cpu") for run in args.runs]
    args.run.mkdir(parents=True, exist_ok=True)
    save(
        args.run / "checkpoint.pt",
        {"model": average([each["model"] for each in found]), "step": found[0]["step"]},
    )


if __name__ == "__main__":
    main()
