"""Web pages: selectolax builds the tree that a browser builds, and what a person sees of it is kept."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from o1_retriever.documents.source import Source, declared_by_html
from o1_retriever.documents.structure import Block, Section, is_visible, sections
from o1_retriever.errors import require

_HEADINGS = {"title": 0, **{f"h{level}": level for level in range(1, 7)}}
_BLOCKS = {
    *("address", "article", "aside", "blockquote", "body", "center", "details", "dialog", "div", "dl"),
    *("fieldset", "figure", "footer", "form", "header", "hr", "main", "nav", "ol", "p", "pre", "section"),
    *("summary", "svg", "table", "ul", "head", "html", "template"),
}
_LINES = {"br", "caption", "dd", "dt", "figcaption", "legend", "li", "option", "text", "tr"}
# What no browser shows.
_NEVER = "script, style, svg style, svg title, svg desc, svg metadata, svg defs, link, meta, object param"
_HIDDEN = "template, [hidden]:not([hidden='until-found']), [aria-hidden='true'], dialog:not([open]), input"
_HIDDEN_STYLE = re.compile(r"(?:^|;)\s*(?:display\s*:\s*none|visibility\s*:\s*hidden)", re.IGNORECASE)
_NAVIGATION = (
    "nav, [role='navigation'], [role='search'], [role='menu'], [role='menubar'], [role='contentinfo'], "
    "body > footer, body > div > footer, body > div > div > footer"
)
_BANNER = re.compile(
    r"(?:cookie|consent|gdpr)[-_]?(?:alert|banner|bar|box|consent|dialog|disclaimer|message|modal|notice|overlay|"
    r"policy|popup|prompt|wall)|\b(?:onetrust|cookiebot|didomi|truste)\b|onetrust-",
    re.IGNORECASE,
)
# A part that holds more of the page than this is no banner, whatever its class.
_BANNER_SHARE = 0.3
_NO_SCRIPT = 300  # characters of a request to switch JavaScript on
# Elements of rows and cells alone: a table that holds other blocks lays a page out.
_LAYOUT = "table, h1, h2, h3, h4, h5, h6, pre, form, section, article"
_SELF_CLOSED = re.compile(
    r"<(script|style|noscript|template|title|textarea|iframe|svg)\b([^<>]*)/>", re.IGNORECASE
)
_RAW = re.compile(r"<(script|style)\b[^<>]*(?<!/)>", re.IGNORECASE)
# The parser looks through all open elements at each of these, so that a million of them would take hours.
_NESTING = re.compile(
    r"<(/?)(?:address|article|aside|blockquote|center|details|dialog|dir|div|dl|fieldset|figure|footer|form|"
    r"header|hgroup|listing|main|menu|nav|ol|pre|search|section|summary|table|ul)\b[^>]*>?",
    re.IGNORECASE,
)
_DEEPEST = 2000


def read_html(source: Source) -> Iterator[Section]:
    """The sections of a page. What is hidden is left out, and navigation too unless it was asked for."""
    yield from sections(html_blocks(source.text(declared_by_html), source), joint="\n\n")


def html_blocks(text: str, source: Source) -> list[Block]:
    """Headings and text of a page in order. A page that shows nothing is read again, with all it holds."""
    text = _closed(text)
    if _depth(text) > _DEEPEST:
        source.note("it is nested too deep; its structure was left out.")
        text = _NESTING.sub("\n", text)
    tree = _parsed(text)
    blocks = _read(tree, boilerplate=source.options.boilerplate)
    if not blocks and _has_text(tree):
        blocks = _read(tree, boilerplate=True)
        if not blocks and (blocks := _read(tree, boilerplate=True, hidden=True)):
            source.note("it shows nothing without scripts; its hidden text was read.")
    if not blocks and _RAW.search(text) and (blocks := _read(_parsed(_RAW.sub(" ", text)), boilerplate=True)):
        source.note("a script that does not end hides its text; all of it was read.")
    return blocks


def _closed(text: str) -> str:
    """The page with `<script/>` as XHTML means it. HTML would take the rest of the page for the script."""
    if not _SELF_CLOSED.search(text):
        return text
    parts, position = [], 0
    lower = text.lower()
    while raw := _RAW.search(text, position):
        end = lower.find(f"</{raw[1].lower()}", raw.end())
        if end < 0:
            break
        parts += [_SELF_CLOSED.sub(r"<\1\2></\1>", text[position : raw.start()]), text[raw.start() : end]]
        position = end
    return "".join([*parts, _SELF_CLOSED.sub(r"<\1\2></\1>", text[position:])])


def _depth(text: str) -> int:
    """About how deep the elements of a page are nested."""
    depth = deepest = 0
    for tag in _NESTING.finditer(text):
        depth = max(0, depth - 1) if tag[1] else depth + 1
        deepest = max(deepest, depth)
    return deepest


def _parsed(text: str) -> Any:
    return require("selectolax.lexbor", extra="documents", purpose="Reading HTML").LexborHTMLParser(text)


def _has_text(tree: Any) -> bool:
    return tree.root is not None and (is_visible(tree.root.text(deep=True)) or bool(tree.css("img[alt]")))


def _read(tree: Any, *, boilerplate: bool, hidden: bool = False) -> list[Block]:
    return _Walk(_left_out(tree, boilerplate, hidden)).blocks_of(tree.root) if tree.root else []


def _left_out(tree: Any, boilerplate: bool, hidden: bool) -> set[int]:
    """The elements that are passed over, by their addresses: to take them out would free others in use."""
    found = [*tree.css(_NEVER), *(node for node in tree.css("noscript") if _asks_for_scripts(node))]
    if not hidden:
        found += tree.css(_HIDDEN)
        found += [
            node for node in tree.css("[style]") if _HIDDEN_STYLE.search(node.attributes.get("style") or "")
        ]
    if not boilerplate:
        found += tree.css(_NAVIGATION)
        named = [node for node in tree.css("[id], [class]") if _is_banner(node)]
        most = _BANNER_SHARE * len(tree.root.text(deep=True)) if named else 0
        found += [node for node in named if len(node.text(deep=True)) <= most]
    return {node.mem_id for node in found if node.tag not in ("html", "body")}


def _asks_for_scripts(node: Any) -> bool:
    text = node.text(deep=True)
    return len(text) < _NO_SCRIPT and "javascript" in text.lower()


def _is_banner(node: Any) -> bool:
    names = f"{node.attributes.get('id') or ''} {node.attributes.get('class') or ''}"
    return node.tag not in ("main", "article") and bool(_BANNER.search(names))


class _Walk:
    """Gathers the text of a tree into blocks."""

    def __init__(self, left_out: set[int]) -> None:
        self.blocks: list[Block] = []
        self._left_out = left_out
        self._parts: list[str] = []
        self._level: int | None = None
        self._preformatted = 0

    def blocks_of(self, root: Any) -> list[Block]:
        """Go through the elements in order, without recursion: pages are nested as deep as they like."""
        waiting: list[tuple[Any, bool]] = [(root, True)]
        while waiting:
            node, enters = waiting.pop()
            if not enters:
                self._leave(node.tag)
            elif node.mem_id in self._left_out:
                continue
            elif node.tag == "table" and all(part.mem_id == node.mem_id for part in node.css(_LAYOUT)):
                self._table(node)
            else:
                self._enter(node)
                waiting.append((node, False))
                waiting += [(child, True) for child in reversed(list(node.iter(include_text=True)))]
        self._end_block()
        return self.blocks

    def _enter(self, node: Any) -> None:
        tag = node.tag
        if tag == "-text":
            text = node.text_content or ""
            self._parts.append(text if self._preformatted else re.sub(r"\s+", " ", text))
        elif tag in _HEADINGS or tag in _BLOCKS:
            self._end_block()
            self._level = _HEADINGS.get(tag)
            self._preformatted += tag == "pre"
        elif tag in _LINES:
            self._parts.append("\n")
        elif tag in ("td", "th"):
            self._parts.append(" ")
        elif tag == "img" and (description := node.attributes.get("alt")):
            self._parts.append(f" {description} ")

    def _leave(self, tag: str) -> None:
        if tag in _HEADINGS or tag in _BLOCKS:
            self._end_block()
            self._preformatted -= tag == "pre"

    def _table(self, table: Any) -> None:
        """A line for each row, its cells between bars."""
        self._end_block()
        lines = []
        for row in table.css("caption, tr"):
            if row.mem_id in self._left_out:
                continue
            cells = row.css("td, th") if row.tag == "tr" else [row]
            texts = [self._line(cell) for cell in cells if cell.mem_id not in self._left_out]
            if any(texts):
                lines.append(" | ".join(texts))
        if lines:
            self.blocks.append(Block(text="\n".join(lines)))

    def _line(self, cell: Any) -> str:
        blocks = _Walk(self._left_out).blocks_of(cell)
        return " ".join(" ".join(block.text.split()) for block in blocks)

    def _end_block(self) -> None:
        if not self._parts:
            self._level = None
            return
        text = "".join(self._parts).strip("\n")
        if not self._preformatted:
            text = "\n".join(" ".join(line.split()) for line in text.split("\n") if line.strip())
        if text.strip():
            title = " ".join(text.split()) if self._level is not None else ""
            # A second title is plain text: a heading of the whole stands first.
            level = None if self._level == 0 and self.blocks else self._level
            self.blocks.append(Block(text=title or text, level=level, title=title))
        self._parts = []
        self._level = None
