"""The text of an HTML page as blocks: scripts and styles dropped, headings and paragraphs kept apart."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape

from o1_retriever.documents.structure import Block

_DROPPED = {"script", "style", "template", "noscript", "svg"}
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_BLOCKS = {
    *(
        "address",
        "article",
        "aside",
        "blockquote",
        "body",
        "div",
        "dl",
        "fieldset",
        "figure",
        "footer",
        "form",
    ),
    *("header", "hr", "main", "nav", "ol", "p", "pre", "section", "table", "title", "ul"),
}
_LINES = {"br", "caption", "dd", "dt", "figcaption", "li", "option", "tr"}
_CELLS = {"td", "th"}
# html.parser takes quadratic time on tags that are never closed, and raises on some declarations.
_TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9:-]*)")
_TAG_END = re.compile(r">|=\s*(?:\"[^\"]*\"|'[^']*')")
_RAW = {name: re.compile(rf"</{name}\b", re.IGNORECASE) for name in ("script", "style")}


def html_blocks(text: str) -> Iterator[Block]:
    """Headings and text of a page in order; the page's title counts as a heading of level 1."""
    reader = _Reader()
    for kind, value in _tokens(text):
        reader.take(kind, value)
    reader.end_block()
    yield from reader.blocks


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    """Pieces of a page in order: `data`, or the name of a tag that begins (`start`) or ends (`end`)."""
    position = 0
    while (found := text.find("<", position)) >= 0:
        yield "data", _unescaped(text[position:found])
        tag = _TAG.match(text, found)
        if tag:
            position = _end_of_tag(text, tag.end())
            name = tag[2].lower()
            if position >= 0:
                yield "end" if tag[1] else "start", name
                if name in _RAW and not tag[1]:
                    closing = _RAW[name].search(text, position)
                    position = closing.start() if closing else len(text)
        elif text.startswith("<!--", found):
            end = text.find("-->", found + 4)
            position = end + 3 if end >= 0 else len(text)
        elif text.startswith(("<!", "<?", "</"), found):
            position = text.find(">", found) + 1 or -1
        else:
            yield "data", "<"
            position = found + 1
        if position < 0:
            # No tag can end after this, so that the rest is text.
            position = found
            break
    yield "data", _unescaped(text[position:])


def _end_of_tag(text: str, position: int) -> int:
    """Behind the `>` that ends a tag, not one inside a quoted value; -1 if there is none."""
    for match in _TAG_END.finditer(text, position):
        if match[0] == ">":
            return match.end()
    return -1


def _unescaped(text: str) -> str:
    try:
        return unescape(text)
    except ValueError:
        # A character number of thousands of digits.
        return text


class _Reader:
    """Gathers the pieces of a page into blocks."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self._parts: list[str] = []
        self._dropped: list[str] = []
        self._heading = 0
        self._in_title = False
        self._preformatted = 0

    def take(self, kind: str, value: str) -> None:
        """Go on with a piece: data, or a tag."""
        if kind == "start" and value in _DROPPED:
            self._dropped.append(value)
        elif self._dropped:
            if kind == "end" and value == self._dropped[-1]:
                self._dropped.pop()
        elif kind == "data":
            self._parts.append(value if self._preformatted else re.sub(r"\s+", " ", value))
        elif value in _HEADINGS or value in _BLOCKS:
            self.end_block()
            if kind == "start":
                self._heading = _HEADINGS.get(value, 0)
                self._in_title = value == "title"
            if value == "pre":
                self._preformatted = max(0, self._preformatted + (1 if kind == "start" else -1))
        elif value in _LINES:
            self._parts.append("\n")
        elif value in _CELLS:
            self._parts.append(" ")

    def end_block(self) -> None:
        """Close what is being read, as a heading if it is one."""
        text = "".join(self._parts).strip("\n")
        if not self._preformatted:
            text = "\n".join(" ".join(line.split()) for line in text.split("\n") if line.strip())
        if text.strip():
            if self._heading:
                title = " ".join(text.split())
                self.blocks.append(Block(text=title, level=self._heading, title=title))
            elif self._in_title:
                self._add_title(" ".join(text.split()))
            else:
                self.blocks.append(Block(text=text))
        self._parts = []
        self._heading = 0
        self._in_title = False

    def _add_title(self, title: str) -> None:
        """A title is the heading of level 1 until there is another; a later title is plain text."""
        first = not self.blocks
        self.blocks.append(Block(text=title, level=1, title=title) if first else Block(text=title))
