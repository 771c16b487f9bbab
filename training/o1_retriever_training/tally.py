"""What a synthesis has brought and what it has cost."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(slots=True, kw_only=True)
class Tally:
    """Counts of one run: rows of the input, those `kept` from before, and what was written now.

    `failures` counts candidates that could not be had, `without` rows without any candidate. Tokens are
    all that were spent, those of answers that could not be used included.
    """

    rows: int = 0
    kept: int = 0
    written: int = 0
    failures: int = 0
    without: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def note(self, prices: tuple[float, float] | None = None) -> str:
        """What a progress bar says beside the count."""
        tokens = self.prompt_tokens + self.completion_tokens
        cost = "" if prices is None else f", ${self.cost(prices):.2f}"
        return f"{tokens:,} tokens{cost}, {self.failures:,} failed"

    def cost(self, prices: tuple[float, float]) -> float:
        """What the tokens cost at (prompt, completion) prices per million."""
        return (self.prompt_tokens * prices[0] + self.completion_tokens * prices[1]) / 1e6

    def to_dict(self) -> dict[str, int]:
        """The counts by name."""
        return asdict(self)


def summarise(path: Path) -> dict[str, int]:
    """What the rows of an output hold, whoever has written them and when."""
    found = dict.fromkeys(
        ("rows", "candidates", "failures", "without", "prompt_tokens", "completion_tokens"), 0
    )
    with path.open("rb") as lines:
        for line in lines:
            row = json.loads(line)
            usable = sum(thought is not None for thought in row["all_thought"])
            tokens = row.get("tokens") or (0, 0)
            found["rows"] += 1
            found["candidates"] += usable
            found["failures"] += len(row["all_thought"]) - usable
            found["without"] += not usable
            found["prompt_tokens"] += tokens[0]
            found["completion_tokens"] += tokens[1]
    return found
