"""Numbers with their nouns, and tables in Markdown."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """`1 thought`, `2 thoughts`, `1,000 queries`; `plural` where it is not the noun with an s."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def markdown_table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], *, texts: Collection[int] = (0,)
) -> str:
    """A Markdown table. Columns are numbers, to the right, but for those whose places are in `texts`."""
    rules = ["---" if place in texts else "---:" for place in range(len(heads))]
    cells = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, rules, *cells))
