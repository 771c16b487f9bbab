"""The parts of a text: what stands under one heading of Markdown or HTML, or one function of a program."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from html import unescape

Scalar = str | int | float | bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of a file that is cut into passages on its own. `code` says that lines matter, not sentences."""

    text: str
    metadata: dict[str, Scalar] = field(default_factory=dict)
    code: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A heading (`level` 1 to 6, with its `title`) or other text (`level` 0), in the order of the file."""

    text: str
    level: int = 0
    title: str = ""


_ATX = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*))?$")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_UNDERLINE = re.compile(r" {0,3}(=+|-{2,})[ \t]*$")
_DEFINITION = re.compile(r"(?:async[ \t]+def|def|class)[ \t]+(\w+)")


def sections(blocks: Iterable[Block], *, joint: str = "\n") -> Iterator[Section]:
    """Join each heading with what follows it. The title is the path of headings, outermost first."""
    path: list[tuple[int, str]] = []
    texts: list[str] = []
    has_body = False
    for block in blocks:
        if block.level:
            if has_body:
                yield _section(path, texts, joint)
                texts, has_body = [], False
            path = [step for step in path if step[0] < block.level]
            if block.title:
                path.append((block.level, block.title))
        has_body = has_body or (not block.level and bool(block.text.strip()))
        texts.append(block.text)
    if any(text.strip() for text in texts):
        yield _section(path, texts, joint)


def _section(path: list[tuple[int, str]], texts: list[str], joint: str) -> Section:
    title = " > ".join(title for _, title in path)
    return Section(text=joint.join(texts), metadata={"title": title} if title else {})


def markdown_blocks(text: str) -> Iterator[Block]:
    """Headings of both kinds (`# Title`, or a line underlined with === or ---) and the lines between."""
    lines = text.split("\n")
    start = _after_front_matter(lines)
    body: list[str] = lines[:start]
    fence = ""
    for line in lines[start:]:
        heading = None
        marker = _FENCE.match(line)
        if fence:
            if marker and marker[1].startswith(fence) and not line.strip().strip(fence[0]):
                fence = ""
        elif marker:
            fence = marker[1]
        elif atx := _ATX.match(line):
            title = re.sub(r"(?:^|(?<=\s))#+$", "", (atx[2] or "").strip()).strip()
            heading = Block(text=line, level=len(atx[1]), title=title)
        elif body and _is_underlined(body, line):
            title = body.pop()
            level = 1 if "=" in line else 2
            heading = Block(text=f"{title}\n{line}", level=level, title=title.strip())
        if heading is None:
            body.append(line)
        else:
            yield from _body(body)
            yield heading
            body = []
    yield from _body(body)


def _after_front_matter(lines: list[str]) -> int:
    if lines[0].strip() == "---":
        for number, line in enumerate(lines[1:], start=1):
            if line.strip() in ("---", "..."):
                return number + 1
    return 0


def _is_underlined(body: list[str], line: str) -> bool:
    alone = len(body) == 1 or not body[-2].strip()
    plain = body[-1].strip() and not body[-1].lstrip().startswith(("-", "*", "+", ">", "|"))
    return bool(alone and plain and _UNDERLINE.match(line))


def _body(lines: list[str]) -> Iterator[Block]:
    text = "\n".join(lines)
    if text.strip():
        yield Block(text=text)


def code_sections(text: str) -> Iterator[Section]:
    """A section per top-level definition, from the comments and decorators above it to the next one."""
    lines = text.split("\n")
    titles = {0: ""}  # by the line where a section begins
    for number, line in enumerate(lines):
        if definition := _DEFINITION.match(line):
            start, last = number, next(reversed(titles))
            while start > last and lines[start - 1].startswith(("#", "@")):
                start -= 1
            titles[start] = definition[1]
    for (start, title), end in zip(titles.items(), [*list(titles)[1:], len(lines)], strict=True):
        part = "\n".join(lines[start:end])
        if part.strip():
            named: dict[str, Scalar] = {"title": title} if title else {}
            yield Section(text=part, metadata={"line": start + 1, **named}, code=True)


_DROPPED_TAGS = {"script", "style", "template", "noscript", "svg"}
_HEADING_TAGS = {f"h{level}": level for level in range(1, 7)}
_BLOCK_TAGS = {
    *("address", "article", "aside", "blockquote", "body", "div", "dl", "fieldset", "figure", "footer"),
    *("form", "header", "hr", "main", "nav", "ol", "p", "pre", "section", "table", "title", "ul"),
}
_LINE_TAGS = {"br", "caption", "dd", "dt", "figcaption", "li", "option", "tr"}
_CELL_TAGS = {"td", "th"}
# html.parser takes quadratic time on tags that are never closed, and raises on some declarations.
_TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9:-]*)")
_TAG_END = re.compile(r">|=\s*(?:\"[^\"]*\"|'[^']*')")
_RAW = {name: re.compile(rf"</{name}\b", re.IGNORECASE) for name in ("script", "style")}


def html_blocks(text: str) -> Iterator[Block]:
    """Headings and text of a page in order; the page's title counts as a heading of level 1."""
    reader = _HtmlReader()
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


class _HtmlReader:
    """Gathers the pieces of a page into blocks."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self._parts: list[str] = []
        self._dropped: list[str] = []
        self._level = 0
        self._preformatted = 0

    def take(self, kind: str, value: str) -> None:
        """Go on with a piece: data, or a tag."""
        if kind == "start" and value in _DROPPED_TAGS:
            self._dropped.append(value)
        elif self._dropped:
            if kind == "end" and value == self._dropped[-1]:
                self._dropped.pop()
        elif kind == "data":
            self._parts.append(value if self._preformatted else re.sub(r"\s+", " ", value))
        elif value in _HEADING_TAGS or value in _BLOCK_TAGS:
            self.end_block()
            if kind == "start":
                # A title is the heading of level 1 until there is another; a later title is plain text.
                first = value == "title" and not self.blocks
                self._level = 1 if first else _HEADING_TAGS.get(value, 0)
            if value == "pre":
                self._preformatted = max(0, self._preformatted + (1 if kind == "start" else -1))
        elif value in _LINE_TAGS:
            self._parts.append("\n")
        elif value in _CELL_TAGS:
            self._parts.append(" ")

    def end_block(self) -> None:
        """Close what is being read, as a heading if it is one."""
        text = "".join(self._parts).strip("\n")
        if not self._preformatted:
            text = "\n".join(" ".join(line.split()) for line in text.split("\n") if line.strip())
        if text.strip():
            title = " ".join(text.split()) if self._level else ""
            self.blocks.append(Block(text=title or text, level=self._level, title=title))
        self._parts = []
        self._level = 0
