"""HTML that stands alone: whatever comes in as text is escaped, and a page loads nothing from anywhere."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Any

from o1_retriever.errors import require

# Base of every page; what a page adds comes after it.
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;margin:.5rem 0}td,th{padding:.2rem .6rem;border-bottom:1px solid #ddd;"
    "text-align:left;vertical-align:top}svg{max-width:100%;height:auto}"
)


def text(value: object) -> str:
    """Any text as HTML that shows it and does nothing else."""
    return escape(str(value))


def element(name: str, content: str = "", /, **attributes: str) -> str:
    """`<name ...>content</name>`. The content is HTML, the attributes are text; empty ones are left out.

    An attribute whose name Python reserves takes an underscore at its end: `class_="row"`.
    """
    given = "".join(f' {key.rstrip("_")}="{escape(value)}"' for key, value in attributes.items() if value)
    return f"<{name}{given}>{content}</{name}>"


def table(rows: Iterable[Sequence[str]], heads: Sequence[str] = ()) -> str:
    """A table of texts."""
    head = element("thead", _row("th", heads)) if heads else ""
    return element("table", head + element("tbody", "\n".join(_row("td", row) for row in rows)))


def items(contents: Iterable[str]) -> str:
    """A list without numbers; the contents are HTML."""
    return element("ul", "".join(element("li", content) for content in contents))


def page(title: str, parts: Iterable[str], *, style: str = "") -> str:
    """A whole page: `title` is text, `parts` are HTML, `style` is added to that of all pages."""
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{text(title)}</title>'
        f"<style>{_STYLE}{style}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def svg(draw: Callable[[Any], None], width: float, height: float, *, extra: str) -> str:
    """The SVG element of what `draw` draws in a figure of matplotlib, which `extra` installs; in inches."""
    require("matplotlib", extra=extra, purpose="Drawing the plots of a report")
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # A fixed salt and no date: the same data give the same file.
    with mpl.rc_context({"svg.hashsalt": "o1-retriever", "svg.fonttype": "none"}):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        target = io.StringIO()
        figure.savefig(target, format="svg", metadata={"Date": None})
    drawn = target.getvalue()
    return drawn[drawn.index("<svg") :]


def _row(name: str, cells: Iterable[str]) -> str:
    return element("tr", "".join(element(name, text(cell)) for cell in cells))
